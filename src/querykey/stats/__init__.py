"""Hypothesis tests, intervals, verdicts and convergence: numpy and scipy only."""
