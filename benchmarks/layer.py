"""The layer against its floor and its peers: `python benchmarks/layer.py [--rounds 15]`.

The floor is what no layer can avoid: the bare matrix products, and the bare kernel on tensors that already lie as it
wants them. A shape is (batch, length, dim, heads). Peers of q,k,v: `nn.MultiheadAttention`, and
x-transformers with its flash path where it is installed. Every figure is a ratio of times within a round; the
interval holds the middle half of the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from timing import interleave, ratio
from torch import Tensor, nn

from querykey import PARTITIONS, SelfAttention

SHAPES = ((32, 64, 128, 4), (8, 128, 256, 4), (4, 512, 512, 8))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--designs", nargs="+", default=list(PARTITIONS))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {chosen.threads} threads, {chosen.rounds} rounds\n")
    print("| shape | mask | pass | design | layer / floor | MultiheadAttention / layer | x-transformers / layer |")
    print("|---|---|---|---|---|---|---|")
    for shape in SHAPES:
        for causal in (False, True):
            for backward in (False, True):
                for design in chosen.designs:
                    print(_row(shape, causal, backward, design, chosen.rounds), flush=True)


def _row(shape: tuple[int, int, int, int], causal: bool, backward: bool, design: str, rounds: int) -> str:
    batch, length, dim, heads = shape
    layer = SelfAttention(dim, heads, design, causal=causal)
    x = torch.randn(batch, length, dim, requires_grad=backward)
    leaves = (x, *layer.parameters()) if backward else ()
    variants = {"layer": _pass(lambda: layer(x), leaves), "floor": _floor(layer, x, backward)}
    if design == "q,k,v":
        variants |= _peers(dim, heads, causal, x, backward)
    times = interleave(variants, rounds)
    cells = [str(ratio(times, "layer", "floor"))]
    cells += [str(ratio(times, name, "layer")) if name in times else "" for name in ("mha", "x-transformers")]
    words = ("causal" if causal else "none", "forward + backward" if backward else "forward", f"`{design}`")
    return "| " + " | ".join((", ".join(map(str, shape)), *words, *cells)) + " |"


def _pass(forward: Callable[[], Tensor], leaves: Iterable[Tensor]) -> Callable[[], object]:
    """A forward pass without a graph where there are no leaves, else one with the gradients of the leaves.

    Gradients are returned and not added up in `.grad`, which would cost the floor, with its many leaves, more.
    """
    wanted = list(leaves)
    if not wanted:
        return torch.no_grad()(forward)
    direction = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), wanted, direction)


def _floor(layer: SelfAttention, x: Tensor, backward: bool) -> Callable[[], object]:
    """Input product, kernel, output product, each on leaves of its own that are already laid out."""
    layout, (batch, length, dim) = layer.layout, x.shape
    flat = x.detach().reshape(-1, dim).requires_grad_(backward)
    tensors = {
        name: torch.randn(batch, heads, length, size, requires_grad=backward)
        for name, (heads, size) in layout.projections.items()
    }
    q, k, v = (tensors[layout.reads[role]] for role in "qkv")
    mixed = torch.randn(batch * length, layout.heads * layout.head_dim, requires_grad=backward)
    parts = (
        _pass(lambda: F.linear(flat, layer.in_proj), (flat, layer.in_proj) if backward else ()),
        _pass(
            lambda: F.scaled_dot_product_attention(q, k, v, is_causal=layer.causal),
            tensors.values() if backward else (),
        ),
        _pass(lambda: F.linear(mixed, layer.o_proj), (mixed, layer.o_proj) if backward else ()),
    )

    def run() -> None:
        for part in parts:
            part()

    return run


def _peers(dim: int, heads: int, causal: bool, x: Tensor, backward: bool) -> dict[str, Callable[[], object]]:
    mha = nn.MultiheadAttention(dim, heads, bias=False, batch_first=True)
    mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if causal else None

    def torch_layer() -> Tensor:
        return mha(x, x, x, attn_mask=mask, is_causal=causal, need_weights=False)[0]

    found = {"mha": _pass(torch_layer, (x, *mha.parameters()) if backward else ())}
    try:
        from x_transformers import Attention
    except ImportError:
        print("x-transformers is not installed and left out: pip install x-transformers")
        return found
    other = Attention(dim=dim, heads=heads, dim_head=dim // heads, causal=causal, flash=True)
    return found | {"x-transformers": _pass(lambda: other(x), (x, *other.parameters()) if backward else ())}


if __name__ == "__main__":
    main()
