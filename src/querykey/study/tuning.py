"""The learning rate of each design, chosen on validation with seeds of its own.

A rate that suits the baseline is a confounder. The grid is tried for every design on every task with seeds that the
comparison does not use, the rate with the best mean validation score is taken, and what is reported is the test score.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from statistics import fmean

import pandas as pd

from querykey.study.plan import Cell

FIRST_SEED = 1_000_000  # beyond what any comparison uses


def grid(cells: Sequence[Cell], rates: Sequence[float]) -> list[Cell]:
    """The cells to try: each task and design at each of the task's own rates or of these, with the tuning's seeds."""
    first = [cell for cell in cells if cell.seed == 0]
    return [
        dataclasses.replace(with_rate(cell, rate), seed=FIRST_SEED + seed)
        for seed in range(max((cell.task.tune_seeds for cell in first), default=0))
        for cell in first
        if seed < cell.task.tune_seeds
        for rate in cell.task.tune or rates
    ]


def best_rates(
    tried: Sequence[Cell], records: pd.DataFrame, higher: Mapping[str, bool]
) -> dict[tuple[str, str], float]:
    """The rate with the best mean validation score, by (task, design).

    A rate at which a cell diverged is not taken, unless all have: then it is the smallest.
    """
    metrics = dict(zip(records["key"], records["metrics"], strict=True))
    scores: dict[tuple[str, str], dict[float, list[float]]] = {}
    for cell in tried:
        worst = float("-inf") if higher[cell.task.name] else float("inf")
        score = metrics[cell.key].get("validation", worst)
        rates = scores.setdefault((cell.task.name, str(cell.design)), {})
        rates.setdefault(cell.task.config.lr, []).append(score)
    chosen = {}
    for (task, design), rates in scores.items():
        sign = 1.0 if higher[task] else -1.0
        chosen[task, design] = max(sorted(rates), key=lambda rate: sign * fmean(rates[rate]))
    return chosen


def with_rate(cell: Cell, rate: float) -> Cell:
    """The same cell at another learning rate."""
    config = dataclasses.replace(cell.task.config, lr=rate)
    return dataclasses.replace(cell, task=dataclasses.replace(cell.task, config=config))
