"""Attention whose query, key and value projections are a choice, and the evidence to choose."""

__version__ = "0.1.0"
