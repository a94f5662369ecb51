"""Matched, paired comparisons of designs: plan, train, store, test, report."""
