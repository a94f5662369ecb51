"""Decoding one position with a cache: what a step costs, by what is kept, how large it is, and how it came about.

    python benchmarks/decoding.py [--rounds 15] [--threads N]

A step is the whole layer on one new position of each row: dim 512, 8 heads, float32, with `cached` positions before it.
Ratios of times within a round, with the interval that holds the middle half of the rounds.

1. Designs, without and with rotary positions, to q,k,v without; and the bytes that they keep.
2. K = V with rotary positions: keys rotated on reading (by size: in parts, or all at once), or kept beside the values;
   q,k,v has rotary positions too.
3. A cache that was grown step by step against one that was filled at once; and a window of 256.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator
from statistics import median

import torch
from options import rounds_of
from torch import Tensor

from querykey import KVCache, SelfAttention
from querykey.attention import decoding
from querykey.bench.timing import interleave, ratio

DIM, HEADS = 512, 8
SIZES = tuple((batch, cached) for batch in (1, 8) for cached in (256, 1024, 4096))
DESIGNS = ("q,k=v", "q=k,v", "q=k=v", "q,k,v+kv_heads=2", "q,k=v+kv_heads=2", "q,k,v+qk_dim=16")


def main() -> None:
    rounds = rounds_of(__doc__)
    with torch.no_grad():
        for table in (_designs, _readings, _growth):
            for row in table(rounds):
                print("| " + " | ".join(row) + " |", flush=True)
            print()


def _designs(rounds: int) -> Iterator[tuple[str, ...]]:
    yield "batch", "cached", "q,k,v, µs", *DESIGNS, "q,k,v rotary", "q,k=v rotary"
    yield ("---",) * (len(DESIGNS) + 5)
    for batch, cached in SIZES:
        steps, sizes = {}, {}
        for design in ("q,k,v", *DESIGNS):
            steps[design], sizes[design] = _step(batch, cached, design)
        for design in ("q,k,v", "q,k=v"):
            name = f"{design} rotary"
            steps[name], sizes[name] = _step(batch, cached, design, rotary=True)
        times = interleave(steps, rounds)
        cells = [f"{ratio(times, name, 'q,k,v')}, bytes {sizes[name] / sizes['q,k,v']:.3g}" for name in list(steps)[1:]]
        yield str(batch), str(cached), _microseconds(times["q,k,v"]), *cells


def _readings(rounds: int) -> Iterator[tuple[str, ...]]:
    yield (
        "batch",
        "cached",
        "read, µs",
        "in parts / read",
        "at once / read",
        "kept / read",
        "read / q,k,v",
        "kept / q,k,v",
    )
    yield ("---",) * 8
    for batch, cached in SIZES:
        read, _ = _step(batch, cached, "q,k=v", rotary=True)

        def whole_up_to(most: int, read: Callable[[], Tensor] = read) -> Tensor:
            before, decoding.MOST_BYTES = decoding.MOST_BYTES, most
            try:
                return read()
            finally:
                decoding.MOST_BYTES = before

        steps = {
            "read": read,
            "in parts": functools.partial(whole_up_to, 0),
            "at once": functools.partial(whole_up_to, 1 << 62),
            "kept": _step(batch, cached, "q,k=v", rotary=True, keep_rotated=True)[0],
            "q,k,v": _step(batch, cached, "q,k,v", rotary=True)[0],
        }
        times = interleave(steps, rounds)
        pairs = [(name, "read") for name in ("in parts", "at once", "kept")] + [
            (one, "q,k,v") for one in ("read", "kept")
        ]
        yield str(batch), str(cached), _microseconds(times["read"]), *(str(ratio(times, *pair)) for pair in pairs)


def _growth(rounds: int) -> Iterator[tuple[str, ...]]:
    yield "batch", "cached", "grown / filled", "window 256 / all", "padded rows / all"
    yield ("---",) * 5
    for batch, cached in SIZES:
        padding = torch.arange(batch) + 1
        steps = {
            "filled": _step(batch, cached, "q,k,v")[0],
            "grown": _step(batch, cached, "q,k,v", by_steps=True)[0],
            "window": _step(batch, cached, "q,k,v", window=256)[0],
            "padded": _step(batch, cached, "q,k,v", padding=padding)[0],
        }
        times = interleave(steps, rounds)
        yield str(batch), str(cached), *(str(ratio(times, name, "filled")) for name in ("grown", "window", "padded"))


def _step(
    batch: int,
    cached: int,
    design: str,
    *,
    rotary: bool = False,
    window: int | None = None,
    keep_rotated: bool = False,
    padding: Tensor | None = None,
    by_steps: bool = False,
) -> tuple[Callable[[], Tensor], int]:
    """A step after `cached` positions, each from a copy that shares the buffers, and the bytes that are kept."""
    layer = SelfAttention(DIM, HEADS, design, causal=True, rotary=rotary, window=window)
    cache = KVCache(keep_rotated=keep_rotated, padding=padding)
    for part in torch.randn(batch, cached, DIM).split(1 if by_steps else cached, 1):
        layer(part, cache=cache)
    kept = cache.nbytes
    x = torch.randn(batch, 1, DIM)
    layer(x, cache=cache)  # so that the buffer has a place for the next
    return lambda: layer(x, cache=copy.copy(cache)), kept


def _microseconds(times: list[float]) -> str:
    return f"{median(times) * 1e6:.0f}"


if __name__ == "__main__":
    main()
