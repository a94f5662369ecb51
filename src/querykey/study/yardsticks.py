"""Scores that a trained model must reach to count as trained: n-gram models of what a cell of the task reads."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from querykey.report.files import write_atomically
from querykey.study.config import Config
from querykey.study.training import TEST, generator
from querykey.tasks import Task

SEEDS = 8  # whose test examples are scored
MOST_TOKENS = 8_000_000  # that are counted at most, so that memory stays below 1 GB


def yardsticks(task: Task, config: Config, folder: Path) -> dict[str, float]:
    """Test scores of n-gram models, by name, or {} for a task without data. Kept in `folder`, for the next run.

    They count as many windows as one cell reads, and are scored on the test examples of the first seeds.
    """
    if task.data_hash is None:
        return {}
    examples = min(config.steps * config.batch, MOST_TOKENS // task.length)
    made_of = json.dumps([task.name, task.data_hash, task.options, examples], sort_keys=True)
    path = folder / f"yardsticks-{hashlib.sha256(made_of.encode()).hexdigest()[:16]}.json"
    if path.is_file():
        return dict(json.loads(path.read_text()))
    tests = (task.sample(TEST, generator(task.name, seed, "test"), "test") for seed in range(SEEDS))
    found = task.yardsticks(examples, generator(task.name, 0, "yardsticks"), tests)
    with write_atomically(path) as partial:
        partial.write_text(json.dumps(found))
    return found
