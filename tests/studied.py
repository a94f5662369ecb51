"""What tests of whole studies share: what records must agree in, and a driver that is killed again and again."""

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time

from querykey.study.records import Records

KEPT = ("task", "design", "seed", "status", "metrics", "curve", "config")


def lasting(folder):
    """What must be the same for the same command: not the time, nor what the machine was doing."""
    with Records(folder) as records:
        rows = records.cells().to_dict("records")
    assert len(rows) == len({row["key"] for row in rows})
    return {row["key"]: [row[name] for name in KEPT] for row in rows}


def count(folder):
    """How many cells are there, also while they are being written."""
    try:
        with sqlite3.connect(f"file:{folder}/records.sqlite?mode=ro", uri=True, timeout=0) as database:
            return database.execute("select count(*) from cells").fetchone()[0]
    except sqlite3.Error:
        return 0


def killed_and_finished(plan, out, kills, seed, engine="local"):
    """Run `querykey compare` and kill it at random moments, `kills` times; then let it finish.

    Gives how often there was something to kill: on a fast machine the study may end before the last.
    """
    command = [sys.executable, "-m", "querykey.cli", "compare", str(plan), "--out", str(out)]
    command += ["--engine", engine, "--workers", "2"]
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
    last = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert last.returncode == 0, last.stderr
    assert not list((out / "weights").glob("*.partial"))
    return lived
