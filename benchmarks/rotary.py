"""What rotary positions cost: the rotation against its formula, and the layer against itself without.

    python benchmarks/rotary.py [--rounds 15] [--threads N]

Ratios of times within a round, with the interval that holds the middle half of the rounds. A shape is (batch, length,
dim, heads). The formula is [x₁ cos − x₂ sin, x₂ cos + x₁ sin] under autograd, with cosines and sines that are kept, or
worked out at each call as well.
"""

from __future__ import annotations

import torch
from options import rounds_of
from torch import Tensor

from querykey import Rotary, SelfAttention
from querykey.attention import rotary
from querykey.attention.sequence import Span
from querykey.bench.passes import differentiated
from querykey.bench.timing import interleave, ratio

SHAPES = ((8, 1, 512, 8), (32, 64, 128, 4), (8, 128, 256, 4), (4, 512, 512, 8), (1, 2048, 512, 8))


def main() -> None:
    rounds = rounds_of(__doc__)
    print("| shape | pass | rotation / formula | rotation / formula, anew | q,k,v: with / without | q=k,v |")
    print("|---|---|---|---|---|---|")
    for shape in SHAPES:
        for backward in (False, True):
            cells = [*_rotations(*shape, backward, rounds)]
            cells += [_layers(*shape, design, backward, rounds) for design in ("q,k,v", "q=k,v")]
            words = (", ".join(map(str, shape)), "forward + backward" if backward else "forward")
            print("| " + " | ".join((*words, *cells)) + " |", flush=True)


def _rotations(batch: int, length: int, dim: int, heads: int, backward: bool, rounds: int) -> tuple[str, str]:
    size = dim // heads
    x = torch.randn(batch, length, heads, size).transpose(1, 2).requires_grad_(backward)
    frequencies = Rotary().frequencies(size)
    angle = rotary.angles(frequencies, torch.arange(length))
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)

    def formula(cos: Tensor = cos, sin: Tensor = sin) -> Tensor:
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def anew() -> Tensor:
        angle = rotary.angles(frequencies, torch.arange(length))
        return formula(angle.cos().to(x.dtype), angle.sin().to(x.dtype))

    variants = {"rotate": lambda: rotary.rotate(x, frequencies, Span(0, length)), "formula": formula, "anew": anew}
    times = interleave({name: differentiated(run, [x] if backward else []) for name, run in variants.items()}, rounds)
    return str(ratio(times, "rotate", "formula")), str(ratio(times, "rotate", "anew"))


def _layers(batch: int, length: int, dim: int, heads: int, design: str, backward: bool, rounds: int) -> str:
    x = torch.randn(batch, length, dim, requires_grad=backward)
    variants = {}
    for name, turned in (("with", True), ("without", False)):
        layer = SelfAttention(dim, heads, design, causal=True, rotary=turned)
        variants[name] = differentiated(lambda layer=layer: layer(x), [x, *layer.parameters()] if backward else [])
    return str(ratio(interleave(variants, rounds), "with", "without"))


if __name__ == "__main__":
    main()
