"""FLOPs and bytes of a pass, from a design's `Layout`.

P are the FLOPs of one position's projections and core, S those of one pair of positions (score and weighted sum, all
heads), and A is the number of pairs that may attend: L², with a causal mask L(L + 1)/2, with a window fewer.

    prefill     B (L P + A S)
    training    B (3 L P + 3.5 A S): each product has two in the backward pass, and the fused kernels, which keep no
                scores, compute them again there: 7 products of all positions with all in place of 2
    decoding    B (P + (n + 1) S) with n positions cached, or a window in place of n + 1

    bytes of a decoding step    size of a number × (parameters + B (n + 1) × numbers cached per token)

The predicted saving is the ratio of FLOPs for prefill and training, whose products do many operations for each number
that they read. A decoding step does 2 B operations for each weight and 2 for each cached number (times the query heads
of its group), far fewer than a processor can do while it reads the next one. So its predicted saving is the ratio of
bytes, as long as B is small.
"""

from __future__ import annotations

from querykey.bench.case import Case
from querykey.layout import Layout


def work(layout: Layout, case: Case) -> int:
    """The amount whose ratio predicts the saving: bytes of a decoding step, else FLOPs."""
    return step_bytes(layout, case) if case.decoding else flops(layout, case)


def flops(layout: Layout, case: Case) -> int:
    """FLOPs of one pass of a layer, two per multiply-add."""
    position, pair = _per_position_and_pair(layout)
    batch, length, *_ = case.shape
    if case.decoding:
        return batch * layout.step_flops(case.seen)
    near = length if case.window is None else min(case.window, length)
    pairs = near * (near + 1) // 2 + (length - near) * near if case.causal else length**2
    if case.training:
        return batch * (3 * length * position + 7 * pairs * pair // 2)
    return batch * (length * position + pairs * pair)


def step_bytes(layout: Layout, case: Case) -> int:
    """Bytes that one decoding step must read: all weights once, and the cached positions that it attends to."""
    return case.dtype.itemsize * layout.parameters + case.shape.batch * case.seen * layout.cache_bytes(case.dtype)


def _per_position_and_pair(layout: Layout) -> tuple[int, int]:
    """FLOPs over L positions are L P + L² S, so those over one and two positions give P and S."""
    pair = layout.flops(2) // 2 - layout.flops(1)
    return layout.flops(1) - pair, pair
