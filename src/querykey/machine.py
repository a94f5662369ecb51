"""The machine that results come from, and how many of its threads torch uses."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


def description() -> dict[str, Any]:
    """System, architecture, processor, number of cores, and the name of the GPU (None without one)."""
    return {
        "system": platform.system(),
        "architecture": platform.machine(),
        "processor": processor(),
        "cores": os.cpu_count(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def name(device: str = "cpu") -> str:
    """A name for files: cores and processor, such as ``"2-core-amd-epyc"``, or the GPU's, such as ``"nvidia-h200"``."""
    if torch.device(device).type == "cuda":
        return _slug(torch.cuda.get_device_name(device))
    return f"{cores()}-core-{_slug(processor())}"


def processor() -> str:
    """The name that the system gives to the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists() and (found := re.search(r"^model name\s*:\s*(.+)$", info.read_text(errors="replace"), re.M)):
        return found[1].strip()
    if platform.system() == "Darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True)
        return asked.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Within this block torch uses that many threads on the CPU; also a decorator."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Within this block torch uses one thread; also a decorator.

    For many small operations: a second thread costs more time than it saves (30 times as much on a busy machine), and
    sums do not depend on the number of threads.
    """
    with threads(1):
        yield


def at_once(function: Callable[[T], R], items: Iterable[T], most: int | None = None) -> Iterator[R]:
    """``map(function, items)``, as many items at a time as torch has threads, which they share; `most` bounds them.

    For many small operations: threads of one operation wait for each other, on a busy machine for long.
    """
    whole = torch.get_num_threads()
    workers = whole if most is None else max(1, min(whole, most))
    pool = ThreadPoolExecutor(workers)
    try:
        yield from pool.map(threads(whole // workers)(function), items)
    finally:
        pool.shutdown(cancel_futures=True)  # after an error too


def _slug(name: str) -> str:
    """``"Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz"`` -> ``"intel-xeon-gold-6330"``."""
    name = re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor)\b|\b\d+-Core\b", " ", name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "cpu"
