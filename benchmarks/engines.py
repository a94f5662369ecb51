"""Cells per minute with one worker and with two, and the driver's memory while many cells come and go.

    python benchmarks/engines.py [--rounds 5] [--cells 2000]

Numbers of workers alternate, each time over the same 16 cells of the plan `why`, with the start of the workers in the
measured time. The ratio is that of the medians. The bound is how much two processes of matrix products that share
nothing get done on this machine, against one.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time

import psutil
import torch

import querykey
from querykey.study.compare import adjust
from querykey.study.plan import from_mapping, load_plan

TINY = {
    "designs": ["q,k,v", "q=k,v"],
    "model": {"layers": 1, "dim": 8, "heads": 1, "mlp": 0, "steps": 3, "batch": 2, "evaluations": 1},
    "tasks": {"cycle": {"length": 6}, "swap": {"length": 6}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cells", type=int, default=2000)
    chosen = parser.parse_args()
    plan = adjust(load_plan("why"), tasks=["induction", "shift"], designs=["q,k,v", "q=k,v"], seeds=4)
    seconds: dict[int, list[float]] = {1: [], 2: []}
    bound: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(chosen.rounds):
        for workers in seconds:
            seconds[workers].append(run(plan, workers))
            bound[workers].append(products(workers))
    for workers, times in seconds.items():
        print(f"{workers} workers: {16 * 60 / statistics.median(times):.1f} cells per minute, rounds {spread(times)} s")
    print(f"2 workers against 1: {ratio(seconds):.2f}, bound {2 * ratio(bound):.2f} (bare matrix products)")
    memory(chosen.cells)


def run(plan, workers: int) -> float:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        querykey.compare(plan, out=folder, workers=workers)
        return time.perf_counter() - began


def products(processes: int) -> float:
    """Seconds that each of so many processes takes for the same matrix products."""
    with multiprocessing.get_context("spawn").Pool(processes) as pool:
        return statistics.mean(pool.map(multiply, range(processes), chunksize=1))


def multiply(_: int) -> float:
    torch.set_num_threads(1)
    a = torch.randn(256, 256)
    began = time.perf_counter()
    for _ in range(3000):
        a @ a
    return time.perf_counter() - began


def memory(cells: int) -> None:
    seen = []

    def watch(step) -> None:
        if step.done % (cells // 5) == 0:
            seen.append(f"{psutil.Process().memory_info().rss / 1e6:.0f} MB at {step.done}")

    with tempfile.TemporaryDirectory() as folder:
        querykey.compare(from_mapping(TINY | {"seeds": cells // 4}, "tiny"), out=folder, workers=2, watch=watch)
    print(f"memory of the driver: {', '.join(seen)} cells")


def ratio(seconds: dict[int, list[float]]) -> float:
    return statistics.median(seconds[1]) / statistics.median(seconds[2])


def spread(times: list[float]) -> str:
    return " ".join(f"{one:.1f}" for one in sorted(times))


if __name__ == "__main__":
    main()
