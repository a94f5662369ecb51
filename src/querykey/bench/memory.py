"""Memory: the peak of a pass, and a lower bound on what a benchmark needs, before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch.autograd.profiler import profile

from querykey.bench.case import Case
from querykey.bench.timing import Run
from querykey.extras import load
from querykey.layout import Layout
from querykey.report.numbers import size


def peak_bytes(run: Run, device: torch.device) -> int:
    """The most bytes that one run allocates at a time: results, graph, and workspace of kernels.

    It runs once before, so that what is made only once, such as tables of angles, is not counted.
    """
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would print its own lines
    with profile(profile_memory=True) as profiled:
        result = run()
    del result
    allocated = peak = 0
    for _, change in sorted(_allocations(profiled)):
        allocated += change
        peak = max(peak, allocated)
    return peak


def refuse_too_large(layouts: list[Layout], case: Case, available: int | None = None) -> None:
    """Refuse a shape whose tensors do not fit, before any of them is made.

    Raises:
        ValueError: with the bytes needed and available.
    """
    needed = needed_bytes(layouts, case)
    free = available_bytes(case.device) if available is None else available
    if needed > free:
        raise ValueError(
            f"shape {case.shape}: {case.what} of {len(layouts)} layers in {str(case.dtype).removeprefix('torch.')} "
            f"needs at least {size(needed)}, but {size(free)} are free on {case.device}; "
            "take a smaller shape or fewer designs"
        )


def needed_bytes(layouts: list[Layout], case: Case) -> int:
    """A lower bound on the bytes of a case: what all its layers keep, and the tensors of the largest pass.

    Each layer keeps its weights and those of its lower bound, and either the tensors of the lower bound or two caches.
    A pass makes the projections, the mixed values and the output; in training also the gradients of input and weights.
    Scores are not counted: most kernels do not keep them.
    """
    kept = sum(2 * layout.parameters + _tensors(layout, case) for layout in layouts)
    return case.dtype.itemsize * (kept + max(pass_numbers(layout, case) for layout in layouts))


def pass_numbers(layout: Layout, case: Case) -> int:
    """A lower bound on the numbers that one pass of a layer makes."""
    positions = case.shape.batch * (1 if case.decoding else case.shape.length)
    forward = positions * (_projected(layout) + layout.heads * layout.head_dim + layout.dim)
    return forward + positions * layout.dim + layout.parameters if case.training else forward


def available_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(load("psutil", "bench").virtual_memory().available)


def _tensors(layout: Layout, case: Case) -> int:
    batch, length, dim, _ = case.shape
    if case.decoding:
        return 2 * batch * case.cached * sum(heads * size for heads, size in layout.cached.values())
    return batch * length * (dim + _projected(layout) + layout.heads * layout.head_dim)


def _projected(layout: Layout) -> int:
    """Numbers of one position after the projections."""
    return sum(heads * size for heads, size in layout.projections.values())


def _allocations(profiled: profile) -> Iterable[tuple[int, int]]:
    """Times with the bytes that the allocator of the CPU gave out then, negative where it took them back."""
    assert profiled.kineto_results is not None
    events: Any = profiled.kineto_results.events()
    for event in events:
        if event.name() == "[memory]":
            yield event.start_ns(), event.nbytes()
