"""Sliding windows on a CPU: blocks of rows against the fused kernel under a mask, and against the whole past.

    python benchmarks/windows.py [--rounds 15] [--threads N]

Ratios of times of the whole layer within a round, with the interval that holds the middle half of the rounds. Where
blocks / mask is below 1 from some length on, at every window, that length is BLOCKED_WINDOW of `kernels`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from options import rounds_of
from torch import Tensor

from querykey import SelfAttention
from querykey.attention.kernels import forcing_blocks
from querykey.bench.passes import differentiated
from querykey.bench.timing import interleave, ratio

SHAPES = ((16, 64, 256, 4), (8, 128, 256, 4), (4, 256, 512, 8), (4, 512, 512, 8), (2, 1024, 512, 8), (1, 2048, 512, 8))


def main() -> None:
    rounds = rounds_of(__doc__)
    print("| shape | window | pass | blocks / mask | blocks / whole past |")
    print("|---|---|---|---|---|")
    for shape in SHAPES:
        for window in (16, 64, 256):
            if window < shape[1]:
                for backward in (False, True):
                    print(_row(*shape, window, backward, rounds), flush=True)


def _row(batch: int, length: int, dim: int, heads: int, window: int, backward: bool, rounds: int) -> str:
    layer, whole = (SelfAttention(dim, heads, causal=True, window=size) for size in (window, None))
    whole.load_state_dict(layer.state_dict())
    x = torch.randn(batch, length, dim, requires_grad=backward)

    def run(one: SelfAttention, force: bool | None) -> Callable[[], object]:
        def forward() -> Tensor:
            with forcing_blocks(force):
                return one(x)

        return differentiated(forward, [x, *one.parameters()] if backward else [])

    times = interleave({"blocks": run(layer, True), "mask": run(layer, False), "whole": run(whole, None)}, rounds)
    words = (f"{batch}, {length}, {dim}, {heads}", str(window), "forward + backward" if backward else "forward")
    cells = (str(ratio(times, "blocks", to)) for to in ("mask", "whole"))
    return "| " + " | ".join((*words, *cells)) + " |"


if __name__ == "__main__":
    main()
