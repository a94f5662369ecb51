"""What tests of whole studies share: made-up records, what records must agree in, and a driver that is killed."""

import io
import math
import os
import random
import signal
import sqlite3
import subprocess
import time
from contextlib import closing, contextmanager

import pytest
from rich.console import Console

from querykey.design import Design
from querykey.study import training
from querykey.study.compare import describe, facts_of
from querykey.study.plan import Config, Plan, TaskChoice
from querykey.study.records import Records, weights_path
from querykey.study.report import read
from querykey.study.training import Outcome

KEPT = ("task", "design", "seed", "status", "metrics", "curve", "config")
CONFIG = Config(layers=1, dim=12, heads=2, mlp=0, steps=2, batch=3, evaluations=2)
GONE = "not trained yet"


def outcome(score, evaluations=2, rising=False, curve=None, **metrics):
    """A cell with this test score; a curve that rises does so until training ends, or is what `curve` is."""
    if score is None:
        return Outcome("diverged", {}, {"step": [1], "loss": [math.nan], "validation": [0.5]}, 1.5)
    validation = curve or [score * (n + 1) / evaluations if rising else score for n in range(evaluations)]
    steps = len(validation)
    curve = {"step": [*range(1, steps + 1)], "loss": [1 / (n + 1) for n in range(steps)], "validation": validation}
    return Outcome("finished", {"test": score, "validation": score - 0.0625, **metrics}, curve, 1.25)


@contextmanager
def new_records(folder):
    """Records to write made-up cells to; no cell waits for the disk."""
    with Records(folder, create=True) as records:
        records._database.execute("pragma synchronous = off")
        yield records


def keep(
    folder, scores, tasks=("cycle",), name="mine", question="", weights=False, match="width", curves=None, **cells
):
    """Records with these scores by (task, design), one per seed, or by design for each task; None is diverged.

    `curves` holds the validation curves of designs that have one of their own.
    """
    designs = tuple(dict.fromkeys(key[1] if isinstance(key, tuple) else key for key in scores))
    choices = [task if isinstance(task, TaskChoice) else TaskChoice(task, {}, CONFIG) for task in tasks]
    seeds = max(len(some) for some in scores.values())
    plan = Plan(name, tuple(map(Design.parse, designs)), tuple(choices), seeds, question, match)
    made = plan.make_tasks()
    declared = plan.cells(made)
    with new_records(folder) as records:
        records.keep_study(describe(plan, facts_of(plan, made, records.folder), declared))
        for cell in declared:
            design = str(cell.design)
            of_seeds = scores.get((cell.task.name, design)) or scores[design]
            if of_seeds[cell.seed] is not GONE:
                kept = weights_path(records.folder, cell.key) if weights and cell.seed == 0 else None
                own = {"curve": curves[design]} if design in (curves or {}) else {}
                records.add(cell, _trained(cell, kept) if kept else outcome(of_seeds[cell.seed], **own, **cells))
    return read(folder)


def _trained(cell, weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "VALIDATION", 7)
        patch.setattr(training, "TEST", 11)
        return training.train(cell, weights)


def near(score, seeds=6, spread=0.001):
    """Scores of seeds about a mean."""
    return [score + spread * (seed % 3 - 1) for seed in range(seeds)]


def remedied(folder):
    """One matrix is far worse, one with a core is not."""
    scores = {"q,k,v": near(0.9), "q=k,v": near(0.3, spread=0.01), "q=k,v+core=full": near(0.9)[::-1]}
    return keep(folder, scores, tasks=("cycle", "swap"), question="Do they?")


def printed(report, width=100, **options):
    """What a terminal of this width shows."""
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(report)
    return console.file.getvalue()


def lasting(folder):
    """What must be the same for the same command: not the time, nor what the machine was doing."""
    with Records(folder) as records:
        rows = records.cells().to_dict("records")
    assert len(rows) == len({row["key"] for row in rows})
    return {row["key"]: [row[name] for name in KEPT] for row in rows}


def count(folder):
    """How many cells are there, also while they are being written."""
    try:
        with closing(sqlite3.connect(f"file:{folder}/records.sqlite?mode=ro", uri=True, timeout=0)) as database:
            return database.execute("select count(*) from cells").fetchone()[0]
    except sqlite3.Error:
        return 0


def killed(command, out, kills, seed):
    """Run a command that writes records to `out` and kill it at random moments, `kills` times.

    Gives how often there was something to kill: on a fast machine the study may end before the last.
    """
    moments, lived = random.Random(seed), 0
    for _ in range(kills):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "start_new_session": True}
        process = subprocess.Popen(command, **quiet)
        before, started = count(out), time.monotonic()
        anywhere = moments.random() < 0.3  # else soon after a cell has come, while others are being written
        while not anywhere and process.poll() is None and count(out) == before and time.monotonic() - started < 60:
            time.sleep(0.01)
        time.sleep(moments.uniform(0.0, 3.0) if anywhere else moments.uniform(0.0, 0.1))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            lived += 1
        process.wait()
    return lived


def finished(command, out):
    """Run the command to its end; gives what it printed on stderr."""
    last = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert last.returncode == 0, last.stderr
    assert not list((out / "weights").glob("*.partial"))
    return last.stderr
