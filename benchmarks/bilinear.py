"""All measures of a layer's heads, three ways: `python benchmarks/bilinear.py [--rounds 15] [--heads 12]`.

From Gram matrices (querykey), from the dim × dim matrix of each head in float64 (dense), and with TransformerLens'
`FactoredMatrix`, left out where it is not installed. All three give the same twelve numbers per head; how far they are
from the dense ones, relative to each, is printed too. Times are medians per head; every figure in bold is a ratio of
times within a round, and its interval holds the middle half of the rounds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any, NamedTuple

import torch
from torch import Tensor

from querykey.bench.timing import interleave, ratio
from querykey.bilinear import METRICS, BilinearForm

try:
    from transformer_lens import FactoredMatrix
except ImportError:
    FactoredMatrix: Any = None

SIZES = ((384, 32), (768, 64), (1024, 64))


class Parts(NamedTuple):
    """What the measures are made of, with heads as leading dimensions."""

    head_dim: int
    norm: Tensor
    trace: Tensor
    trace_of_square: Tensor
    eigenvalues: Tensor
    singular: Tensor
    rows: Tensor
    columns: Tensor
    overlap: Tensor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--heads", type=int, default=12)
    parser.add_argument("--threads", type=int, default=1)
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    print(f"torch {torch.__version__}, {chosen.threads} threads, {chosen.rounds} rounds, {chosen.heads} heads, float64")
    if FactoredMatrix is None:
        print("TransformerLens is not installed and left out; `pip install transformer-lens` to compare with it.")
    print("\n| dim × head_dim | querykey, ms | dense | TransformerLens | worst deviation from dense |")
    print("|---|---|---|---|---|")
    for dim, head_dim in SIZES:
        print(row(dim, head_dim, chosen.heads, chosen.rounds), flush=True)


def row(dim: int, head_dim: int, heads: int, rounds: int) -> str:
    generator = torch.Generator().manual_seed(0)
    W_Q, W_K = (torch.randn(heads, dim, head_dim, generator=generator, dtype=torch.float64) for _ in range(2))
    ways: dict[str, Callable[[], dict[str, Tensor]]] = {
        "querykey": lambda: BilinearForm.from_weights(W_Q, W_K).metrics(),
        "dense": lambda: dense(W_Q, W_K),
    }
    if FactoredMatrix is not None:
        ways["TransformerLens"] = lambda: factored(W_Q, W_K)
    times = interleave(ways, rounds)
    exact = ways["dense"]()
    deviation = {name: worst(way(), exact) for name, way in ways.items() if name != "dense"}
    cells = [f"{dim} × {head_dim}", f"{median(times['querykey']) / heads * 1e3:.2f}"]
    cells += [compared(times, name, heads) if name in ways else "" for name in ("dense", "TransformerLens")]
    cells.append(", ".join(f"{name} {value:.0e}" for name, value in deviation.items()))
    return "| " + " | ".join(cells) + " |"


def compared(times: dict[str, list[float]], name: str, heads: int) -> str:
    return f"{median(times[name]) / heads * 1e3:.2f} ms, **{ratio(times, name, 'querykey')}** ×"


def dense(W_Q: Tensor, W_K: Tensor) -> dict[str, Tensor]:
    """From `M` itself, one head after the other: a layer of them would not fit into the cache."""
    heads = []
    for A, B in zip(W_Q, W_K, strict=True):
        M = A @ B.mT
        parts = Parts(
            head_dim=A.shape[-1],
            norm=torch.linalg.matrix_norm(M),
            trace=M.trace(),
            trace_of_square=(M * M.mT).sum(),
            eigenvalues=torch.linalg.eigvalsh((M + M.mT) / 2),
            singular=torch.linalg.svdvals(M),
            rows=torch.linalg.vector_norm(M, dim=1),
            columns=torch.linalg.vector_norm(M, dim=0),
            overlap=overlap(A, B),
        )
        heads.append(measures(parts))
    return {name: torch.stack([head[name] for head in heads]) for name in METRICS}


def factored(W_Q: Tensor, W_K: Tensor) -> dict[str, Tensor]:
    """`M` as a product of two factors, and its symmetric part as one of factors twice as wide."""
    M = FactoredMatrix(W_Q, W_K.mT)
    symmetric = FactoredMatrix(torch.cat([W_Q, W_K], -1) / 2, torch.cat([W_K, W_Q], -1).mT)
    eigenvalues = M.eigenvalues
    return measures(
        Parts(
            head_dim=W_Q.shape[-1],
            norm=M.norm(),
            trace=eigenvalues.sum(-1).real,
            trace_of_square=eigenvalues.square().sum(-1).real,
            eigenvalues=symmetric.eigenvalues.real,
            singular=M.S,
            rows=torch.linalg.vector_norm(M.collapse_r(), dim=-1),
            columns=torch.linalg.vector_norm(M.collapse_l(), dim=-2),
            overlap=overlap(W_Q, W_K),
        )
    )


def overlap(W_Q: Tensor, W_K: Tensor) -> Tensor:
    bases = [torch.linalg.qr(W).Q for W in (W_Q, W_K)]
    return (bases[0].mT @ bases[1]).square().sum((-2, -1)) / W_Q.shape[-1]


def measures(parts: Parts) -> dict[str, Tensor]:
    energy, values, singular = parts.norm.square(), parts.eigenvalues, parts.singular
    noise = 1e-9 * singular[..., :1]
    p = singular / singular.sum(-1, keepdim=True)
    r, c = excess(parts.rows), excess(parts.columns)
    return {
        "norm": parts.norm,
        "symmetry": parts.trace_of_square / energy,
        "tied_share": values.clamp(min=0).square().sum(-1) / energy,
        "negative_share": values.clamp(max=0).square().sum(-1) / energy,
        "signed_share": values.square().topk(parts.head_dim, dim=-1).values.sum(-1) / energy,
        "positive": (values > noise).sum(-1),
        "negative": (values < -noise).sum(-1),
        "effective_rank": torch.special.entr(p).sum(-1).exp(),
        "stable_rank": energy / singular[..., 0].square(),
        "distance": 1 - parts.trace / singular.sum(-1),
        "overlap": parts.overlap,
        "directionality": torch.where(r + c > 0, (r - c) / (r + c), 0),
    }


def excess(norms: Tensor) -> Tensor:
    threshold = norms.mean(-1, keepdim=True) + 2 * norms.std(-1, keepdim=True)
    return (norms - threshold).clamp(min=0).sum(-1)


def worst(found: dict[str, Tensor], exact: dict[str, Tensor]) -> float:
    """Largest relative deviation of any number of any head."""
    return max(((found[name] - exact[name]).abs() / exact[name].abs()).max().item() for name in METRICS)


if __name__ == "__main__":
    main()
