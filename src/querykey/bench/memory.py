"""Memory: the peak of a pass, and what a benchmark will need, before anything is allocated."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile

from querykey.attention import kernels
from querykey.attention.blocked import MOST_BYTES
from querykey.bench.config import Case
from querykey.bench.timing import Run
from querykey.extras import load
from querykey.layout import Layout


def peak_bytes(run: Run, device: torch.device) -> int:
    """The most that one run holds at a time beside what was held before it: results, graph, and kernels' workspace.

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
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would write lines between ours
    with profile(profile_memory=True) as profiled:
        result = run()
    del result
    held = peak = 0
    for _, change in sorted(_changes(profiled)):
        held += change
        peak = max(peak, held)
    return peak


def _changes(profiled: profile) -> Iterable[tuple[int, int]]:
    """When how many bytes were given out by the allocator of the CPU, or negative, came back."""
    assert profiled.kineto_results is not None
    events: Any = profiled.kineto_results.events()
    for event in events:
        if event.name() == "[memory]":
            yield event.start_ns(), event.nbytes()


def refuse_too_large(layouts: list[Layout], case: Case, available: int | None = None) -> None:
    """Refuse a shape whose tensors do not fit, before any of them is made.

    Raises:
        ValueError: with the bytes needed and available.
    """
    needed = needed_bytes(layouts, case)
    free = available_bytes(case.device) if available is None else available
    if needed > free:
        raise ValueError(
            f"shape {case.shape}: {case.what} of {len(layouts)} designs in {str(case.dtype).removeprefix('torch.')} "
            f"needs about {_gigabytes(needed)}, but {_gigabytes(free)} are free on {case.device}; "
            "take a smaller shape or fewer designs"
        )


def needed_bytes(layouts: list[Layout], case: Case) -> int:
    """About what all variants of a case hold, and beside it the largest of their passes.

    Held are, of each design, its weights and those of its floor, the floor's tensors, and the caches of decoding. A
    pass makes queries, keys, values and their mixture, their gradients in training, and all scores where they are kept.
    """
    held = sum(_held_numbers(layout, case) for layout in layouts)
    running = max(_running_numbers(layout, case) for layout in layouts)
    return case.dtype.itemsize * (held + running)


def available_bytes(device: torch.device) -> int:
    """What can still be allocated."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return int(load("psutil", "bench").virtual_memory().available)


def _held_numbers(layout: Layout, case: Case) -> int:
    batch, length, dim, _ = case.shape
    if case.decoding:
        kept = sum(heads * size for heads, size in layout.cached.values())
        return 2 * layout.parameters + 3 * batch * case.cached * kept  # the layer's has double room, the floor's none
    projected = sum(heads * size for heads, size in layout.projections.values())
    return 2 * layout.parameters + batch * length * (dim + projected + layout.heads * layout.head_dim)


def _running_numbers(layout: Layout, case: Case) -> int:
    """Projections, mixture and output; what is laid out anew; the gradients of all these; scores that are kept."""
    batch, length, dim, heads = case.shape
    decoding, on_cpu = case.decoding, case.device.type == "cpu"
    queries, keys = (1, case.cached + 1) if decoding else (length, length)
    projected = sum(count * size for count, size in layout.projections.values())
    of_queries, of_keys = (sum(math.prod(layout.head_shape(role)) for role in roles) for roles in ("q", "kv"))
    mixed = heads * (layout.head_dim + (layout.qk_dim if layout.design.core else 0))
    found = batch * queries * (projected + mixed + dim)
    if layout.qk_dim != layout.head_dim and not (decoding and on_cpu):
        widest = max(layout.qk_dim, layout.head_dim)
        found += batch * widest * (2 * heads * queries + 2 * layout.kv_heads * keys)
    if case.training:
        found += batch * length * (of_queries + of_keys + mixed + dim) + layout.parameters
    scores = batch * heads * queries * keys
    if decoding:
        return found + 2 * scores
    if keeps_all_scores(layout, case):
        return found + (5 if case.training else 3) * scores
    return found + min(scores, MOST_BYTES // case.dtype.itemsize) * (case.causal and on_cpu)


def keeps_all_scores(layout: Layout, case: Case) -> bool:
    """Whether PyTorch's quadratic kernel runs, asked with a head or two of two positions."""

    def tiny(role: str) -> Tensor:
        heads = 2 if role == "q" and layout.kv_heads < layout.heads else 1
        size = min(layout.head_shape(role)[1], 1024)  # no fused kernel that stops at a size takes as many
        return torch.zeros(1, heads, 2, size, dtype=case.dtype, device=case.device, requires_grad=case.training)

    call = kernels.prepare(
        tiny("q"),
        tiny("k"),
        tiny("v"),
        scale=1.0,
        causal=case.causal,
        mask=None,
        dropout=0.0,
        selfmask=layout.design.selfmask,
    )
    return kernels.backend_of(call) == "math"


def _gigabytes(number: int) -> str:
    return f"{number / 1e9:,.3g} GB"
