"""Packed documents, causal: time and peak memory of a training step, over the same layer under a mask of all pairs.

    python benchmarks/packing.py [--device cuda] [--dtype bfloat16] [--rounds 15] [--shapes 8,512,512,8 …] [--ragged]

A shape is (documents, tokens in each, dim, heads); all documents lie in one row. With --ragged their lengths rise from
almost none to twice that. Ratios of times within a round, with the interval that holds the middle half of the rounds.
The step without documents, whose memory is the least that a causal layer takes, stands beside it.
"""

from __future__ import annotations

import argparse

import torch

from querykey import SelfAttention
from querykey.bench.memory import peak_bytes
from querykey.bench.passes import differentiated
from querykey.bench.timing import interleave, ratio

SHAPES = ("8,512,512,8", "8,512,128,8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--shapes", nargs="+", default=SHAPES)
    parser.add_argument("--ragged", action="store_true")
    chosen = parser.parse_args()
    print("| documents, tokens, dim, heads | time | memory | memory without documents, causal |\n|---|--:|--:|--:|")
    for shape in chosen.shapes:
        print("| " + " | ".join([shape.replace(",", ", "), *measured(shape, chosen)]) + " |", flush=True)


def measured(shape: str, chosen: argparse.Namespace) -> list[str]:
    count, length, dim, heads = map(int, shape.split(","))
    device, dtype = torch.device(chosen.device), getattr(torch, chosen.dtype)
    layer = SelfAttention(dim, heads, causal=True, device=device, dtype=dtype)
    x = torch.randn(1, count * length, dim, device=device, dtype=dtype, requires_grad=True)
    ends = torch.arange(1, count + 1, device=device) * length
    ends = ends**2 // (count * length) if chosen.ragged else ends
    document = torch.bucketize(torch.arange(count * length, device=device), ends, right=True)[None]
    mask = (document[:, :, None] == document[:, None])[:, None]
    leaves = [x, *layer.parameters()]
    steps = {
        "packed": differentiated(lambda: layer(x, document=document), leaves),
        "masked": differentiated(lambda: layer(x, mask), leaves),
        "causal": differentiated(lambda: layer(x), leaves),
    }
    peak = {name: peak_bytes(step, device) for name, step in steps.items()}
    times = interleave({name: steps[name] for name in ("packed", "masked")}, chosen.rounds)
    memory = [f"{peak[name] / max(peak['masked'], 1):.2f}" for name in ("packed", "causal")]
    return [str(ratio(times, "packed", "masked")), *memory]


if __name__ == "__main__":
    main()
