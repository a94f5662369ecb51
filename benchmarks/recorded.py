"""A decoding step on a GPU: operation by operation, and recorded as one CUDA graph, which is what serving does.

    python benchmarks/recorded.py [--device cuda] [--dtype bfloat16] [--rounds 15] [--shapes 8,8192,2048,16 …]

A shape is (batch, cached positions, dim, heads); rotary positions. Operation by operation the cache grows, and each
step starts from a copy that shares its buffers; recorded, it is static and just large enough. Where no GPU is, nothing
is recorded: the second column is the step with a static cache. Ratios of times within a round, with the interval that
holds the middle half of the rounds; bytes are those of the cache, relative to q,k,v.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from querykey import KVCache, SelfAttention
from querykey.bench.timing import interleave, ratio

DESIGNS = ("q,k,v", "q,k=v", "q=k=v", "q,k,v+kv_heads=2", "q,k=v+kv_heads=2", "q,k=v+latent=256")
HEADER = ("batch, cached, dim, heads", "design", "step, µs", "recorded, µs", "recorded / step", "recorded / q,k,v")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--designs", nargs="+", default=DESIGNS)
    parser.add_argument("--shapes", nargs="+", default=("1,256,512,8",))
    chosen = parser.parse_args()
    print("| " + " | ".join((*HEADER, "bytes", "kernel")) + " |\n|" + "---|" * (len(HEADER) + 2))
    with torch.no_grad():
        for shape in chosen.shapes:
            for cells in _rows(shape, chosen):
                print("| " + " | ".join(cells) + " |", flush=True)


def _rows(shape: str, chosen: argparse.Namespace) -> list[tuple[str, ...]]:
    steps: dict[str, Callable[[], object]] = {}
    kept, kernels = {}, {}
    for design in chosen.designs:
        made = _steps(*map(int, shape.split(",")), design, torch.device(chosen.device), getattr(torch, chosen.dtype))
        steps[design], steps[f"{design} recorded"], kept[design], kernels[design] = made
    times, first = interleave(steps, chosen.rounds), chosen.designs[0]
    return [
        (
            shape.replace(",", ", "),
            design,
            *(f"{1e6 * median(times[name]):.0f}" for name in (design, f"{design} recorded")),
            str(ratio(times, f"{design} recorded", design)),
            str(ratio(times, f"{design} recorded", f"{first} recorded")),
            f"{kept[design] / kept[first]:.2g}",
            kernels[design],
        )
        for design in chosen.designs
    ]


def _steps(
    batch: int, cached: int, dim: int, heads: int, design: str, device: torch.device, dtype: torch.dtype
) -> tuple[Callable[[], object], Callable[[], object], int, str]:
    """The step, the recorded step, the bytes of the cache, and the kernel of the recorded one."""
    layer = SelfAttention(dim, heads, design, causal=True, rotary=True, device=device, dtype=dtype)
    x = torch.randn(batch, 1, dim, device=device, dtype=dtype)
    growing = KVCache()
    static = KVCache.static(batch, cached + 1, layer.layout, device=device, dtype=dtype)
    for part in torch.randn(batch, cached, dim, device=device, dtype=dtype).split(1024, 1):
        layer(part, cache=growing)
    static.append(**growing.contents())
    layer(x, cache=growing)  # so that the buffer has a place for the next

    def step() -> Tensor:
        out: Tensor = layer(x, cache=static)
        static.crop(-1)
        return out

    kernel = layer.backend(x, cache=static)
    return lambda: layer(x, cache=copy.copy(growing)), _recorded(step, device), static.nbytes, kernel


def _recorded(step: Callable[[], Tensor], device: torch.device) -> Callable[[], object]:
    if device.type != "cuda":
        return step
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()

    def replay() -> Callable[[], Tensor]:
        graph.replay()
        return step  # whose tensors a graph does not keep alive

    return replay


if __name__ == "__main__":
    main()
