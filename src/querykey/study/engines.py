"""Where cells are trained. An engine takes cells and gives back outcomes as they come, in any order."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch

from querykey.study.plan import Cell
from querykey.study.training import Outcome, train

Work = tuple[Cell, Path | None]
LOST_IN_A_ROW = 3


class EngineError(RuntimeError):
    """Workers that cannot go on."""


def run_local(work: Sequence[Work], workers: int) -> Iterator[tuple[Cell, Outcome]]:
    """One process per worker, one thread each, so that a cell's numbers do not depend on how many there are.

    Cells of a worker that was lost (killed, out of memory) are run again by another.

    Raises:
        EngineError: if workers are lost several times in a row with nothing finished in between.
    """
    left, lost = list(work), 0
    while left:
        done = []
        try:
            for cell, outcome in _run_pool(left, workers):
                done.append(cell.key)
                yield cell, outcome
        except BrokenProcessPool:
            lost = 1 if done else lost + 1
            if lost == LOST_IN_A_ROW:
                raise EngineError(
                    f"{lost} times in a row a worker was killed before it finished a cell, perhaps for want of memory; "
                    "what was finished is kept, and fewer --workers or smaller sizes may help"
                ) from None
        finished = set(done)
        left = [item for item in left if item[0].key not in finished]


def _run_pool(work: Sequence[Work], workers: int) -> Iterator[tuple[Cell, Outcome]]:
    context = multiprocessing.get_context(
        "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    )
    if context.get_start_method() == "forkserver":
        # What is imported once need not be by each worker: torch, and what its first optimiser step would load.
        context.set_forkserver_preload([__name__, "torch._dynamo"])
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin_worker) as pool:
        waiting = iter(work)
        running: dict[Future[Outcome], Cell] = {}
        try:
            while True:
                # no more than the workers can begin with: memory stays flat however many cells there are
                while len(running) < 2 * workers and (item := next(waiting, None)) is not None:
                    with _no_main():
                        running[pool.submit(train, *item)] = item[0]
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


@contextmanager
def _no_main() -> Iterator[None]:
    """Workers that start now do not import the script that began the study, which would begin it again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _begin_worker() -> None:
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A parent that is killed cannot end its workers, and each would wait for work for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
