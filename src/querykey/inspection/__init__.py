"""What the heads of a trained checkpoint do with their query and key weights."""
