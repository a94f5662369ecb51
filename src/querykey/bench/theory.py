"""What a pass must do at the least: FLOPs and bytes, from a design's `Layout`.

With P the FLOPs of one position's projections and core, and S those of one pair of positions (score and weighted sum,
all heads), and A the pairs that may attend, L² or with a causal mask L(L + 1)/2, less what a window hides:

    prefill     B (L P + A S)
    training    B (3 L P + 3.5 A S): each product has two in the backward pass, and the fused kernels, which keep no
                scores, form them once more there: 7 products of all positions with all in place of 2
    decoding    B (P + (n + 1) S) with n positions cached, or a window instead of n + 1

    bytes of a decoding step    size of a number × (parameters + B (n + 1) × numbers cached per token)

Prefill and training take the ratio of FLOPs, for their products do many operations for each number that they read. A
step of decoding does 2 B for each weight and 2 for each cached number (times the query heads of its group), far less
than a processor could while it reads the next one, so there the ratio of bytes is taken, as long as B is small.
"""

from __future__ import annotations

import torch

from querykey.bench.setting import Shape
from querykey.layout import Layout


def flops(layout: Layout, shape: Shape, what: str, *, cached: int, causal: bool, window: int | None = None) -> int:
    """FLOPs of one pass of a layer, two per multiply-add; `cached` counts for decoding only."""
    position, pair = _per_position_and_pair(layout)
    batch, length, *_ = shape
    if what == "decoding":
        return batch * (position + seen(cached, window) * pair)
    near = length if window is None else min(window, length)
    pairs = near * (near + 1) // 2 + (length - near) * near if causal else length**2
    if what == "training":
        return batch * (3 * length * position + 7 * pairs * pair // 2)
    return batch * (length * position + pairs * pair)


def step_bytes(layout: Layout, shape: Shape, dtype: torch.dtype, *, cached: int, window: int | None = None) -> int:
    """Bytes that one step of decoding must read: all weights once, and all that is kept."""
    return dtype.itemsize * layout.parameters + shape.batch * seen(cached, window) * layout.cache_bytes(dtype)


def seen(cached: int, window: int | None) -> int:
    """How many positions a step of decoding looks at, its own included."""
    return cached + 1 if window is None else min(cached + 1, window)


def _per_position_and_pair(layout: Layout) -> tuple[int, int]:
    """FLOPs over L positions are L P + L² S, so those over one and two give P and S."""
    pair = layout.flops(2) // 2 - layout.flops(1)
    return layout.flops(1) - pair, pair
