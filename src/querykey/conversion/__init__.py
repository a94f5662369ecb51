"""Trained models that share projections, and new ones that share from the start."""
