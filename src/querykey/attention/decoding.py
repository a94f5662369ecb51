"""Reading a cache that keeps one tensor for keys and values, where keys have yet to be rotated or normalised."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

# Of values: from how many on they are read in parts, and how large a part is, so that the keys that are made of it are
# still near when they are read. benchmarks/decoding.py
MOST_BYTES = 2**24
PART_BYTES = 2**22


def attend_in_parts(
    attend: Callable[[Tensor, Tensor, Tensor | None], Tensor], q: Tensor, v: Tensor, mask: Tensor | None
) -> Tensor:
    """``attend(q, v, mask)``, on a CPU a few heads at a time where there are many values.

    Args:
        attend: from (rows, heads per group, query, size), (rows, 1, key, size) and a mask to the attention.
        q: (batch, heads, query, size).
        v: (batch, groups, key, size).
        mask: broadcasts to (batch, heads, query, key), or None.

    Returns:
        (batch, heads, query, size).
    """
    if not v.is_cpu or v.numel() * v.element_size() <= MOST_BYTES:
        return attend(q, v, mask)
    batch, heads, queries, _ = q.shape
    groups, keys = v.shape[1:3]
    rows = max(1, PART_BYTES // (v[0, 0].numel() * v.element_size()))
    # A head attends alone; those of one group share its values: (batch × groups, heads per group, ...)
    q, v = q.unflatten(1, (groups, -1)).flatten(0, 1), v.flatten(0, 1).unsqueeze(1)
    masks: Iterator[Tensor | None] = itertools.repeat(None)
    if mask is not None:
        mask = mask.expand(batch, heads, queries, keys)
        masks = iter(mask.unflatten(1, (groups, -1)).flatten(0, 1).split(rows))
    parts = zip(q.split(rows), v.split(rows), masks, strict=False)
    return torch.cat([attend(*part) for part in parts]).view(batch, heads, queries, -1)
