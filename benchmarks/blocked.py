"""Causal attention on a CPU by blocks of rows against the fused kernel, and in the whole layer.

    python benchmarks/blocked.py [--rounds 15] [--threads N]

Ratios of times within a round, with the interval that holds the middle half of the rounds. A shape is (batch, length,
dim, heads). Where the ratio is below 1 and the length within BLOCKED_TRAINING or BLOCKED_FORWARD, blocks are taken.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from options import rounds_of

from querykey import SelfAttention
from querykey.attention.blocked import blocked_attention, kept_bytes
from querykey.attention.kernels import forcing_blocks
from querykey.bench.passes import differentiated
from querykey.bench.timing import interleave, ratio

SHAPES = ((8, 128, 256, 4), (8, 256, 256, 4), (4, 256, 512, 8), (4, 512, 512, 8), (2, 1024, 512, 8), (1, 2048, 512, 8))


def main() -> None:
    rounds = rounds_of(__doc__)
    print("| shape | kernel, forward | kernel, training | layer, forward | layer, training | kept |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        kernel, kept = _kernel(*shape)
        cells = [
            _ratio(variants, backward, rounds) for variants in (kernel, _layer(*shape)) for backward in (False, True)
        ]
        print(f"| {', '.join(map(str, shape))} | {' | '.join(cells)} | {kept / 1e6:.0f} MB |", flush=True)


Variants = tuple[dict[str, Callable[[], torch.Tensor]], list[torch.Tensor]]


def _kernel(batch: int, length: int, dim: int, heads: int) -> tuple[Variants, int]:
    laid = torch.randn(3, batch, length, heads, dim // heads)
    q, k, v = (tensor.transpose(1, 2).requires_grad_() for tensor in laid)
    scale = (dim // heads) ** -0.5
    variants = {
        "fused": lambda: F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale),
        "blocked": lambda: blocked_attention(q, k, v, scale),
    }
    return (variants, [q, k, v]), kept_bytes(q)


def _layer(batch: int, length: int, dim: int, heads: int) -> Variants:
    layer = SelfAttention(dim, heads, causal=True)
    x = torch.randn(batch, length, dim, requires_grad=True)

    def forced(force: bool) -> torch.Tensor:
        with forcing_blocks(force):
            return layer(x)

    return {"fused": lambda: forced(False), "blocked": lambda: forced(True)}, [x, *layer.parameters()]


def _ratio(variants: Variants, backward: bool, rounds: int) -> str:
    passes, leaves = variants
    runs = {name: differentiated(run, leaves if backward else ()) for name, run in passes.items()}
    return str(ratio(interleave(runs, rounds), "blocked", "fused"))


if __name__ == "__main__":
    main()
