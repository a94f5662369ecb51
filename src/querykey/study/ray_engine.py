"""Cells as Ray tasks, on a cluster that Ray makes here or that is given. Results come back to the one database.

Every task runs with one thread on one core, as local workers do, so that the numbers are the same. The weights that are
to be kept travel back with the outcome: a worker may not share the driver's disk. A text must lie at the same paths on
every node; its hash is checked there.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from querykey.extras import needs
from querykey.report.files import write_atomically
from querykey.study.engines import EngineError, Work
from querykey.study.plan import Cell
from querykey.study.training import Outcome, train

LOST_AT_MOST = 3  # times that one cell is begun anew


def run_ray(
    work: Sequence[Work], workers: int, address: str | None = None, gpus: float = 0.0
) -> Iterator[tuple[Cell, Outcome]]:
    """Train cells as Ray tasks; give back outcomes as they come.

    Args:
        work: cells, each with the file for its weights or None.
        workers: cores of the local cluster that is made where there is no address.
        address: of a running cluster, such as "auto" or "ray://host:10001".
        gpus: share of a GPU that each cell asks for.

    Raises:
        MissingExtra: if Ray is not installed.
        EngineError: if the address cannot be reached, or a cell's worker is lost again and again.
    """
    with needs("ray"):
        import ray
    own = not ray.is_initialized()
    if own:
        _connect(ray, workers, address)
    try:
        yield from _run(ray, work, workers if address is None else None, gpus)
    finally:
        if own:
            ray.shutdown()


def _connect(ray: Any, workers: int, address: str | None) -> None:
    try:
        if address is None:
            ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        else:
            _knock(address)
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise EngineError(
            f"Ray cannot be reached at {address or 'this machine'}: {reason}; start a cluster with `ray start --head`, "
            "or leave the address out for a cluster of this machine alone"
        ) from None


def _knock(address: str) -> None:
    """Fail at once where nobody listens: Ray itself would go on trying for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=5).close()


def _run(ray: Any, work: Sequence[Work], workers: int | None, gpus: float) -> Iterator[tuple[Cell, Outcome]]:
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=LOST_AT_MOST)(_train_far)
    ahead = 2 * (workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
    waiting = iter(work)
    running: dict[Any, Work] = {}
    while True:
        while len(running) < ahead and (item := next(waiting, None)) is not None:
            running[remote.remote(item[0], item[1] is not None)] = item
        if not running:
            return
        (first, *_), _ = ray.wait(list(running))
        cell, path = running.pop(first)
        try:
            outcome, weights = ray.get(first)
        except ray.exceptions.RayTaskError as error:
            raise error.as_instanceof_cause() from None  # what the cell itself raised
        except ray.exceptions.RayError as error:
            raise EngineError(
                f"the cell {cell.design} on {cell.task.name}, seed {cell.seed}, was lost {LOST_AT_MOST + 1} times: "
                f"{str(error).splitlines()[0]}; what was finished is kept"
            ) from None
        if path is not None and weights is not None:
            with write_atomically(path) as partial:
                partial.write_bytes(weights)
        yield cell, outcome


def _train_far(cell: Cell, keep: bool) -> tuple[Outcome, bytes | None]:
    """Train in a Ray worker; the weights come back as the bytes of their file."""
    torch.set_num_threads(1)
    if not keep:
        return train(cell), None
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.safetensors"
        outcome = train(cell, path)
        return outcome, path.read_bytes() if path.exists() else None
