"""A running model with its attention heads open: what it computed, and interventions in it."""
