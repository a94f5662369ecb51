"""What designs cost at given sizes: parameters, FLOPs and cached bytes, side by side.

    from querykey import cost
    cost(dim=512, heads=8, designs=("q,k,v", "q,k=v"), layers=12)[1].ratio("cache_bytes")     # 0.5

All numbers come from `Layout`. The command line reads the signature of `cost` before it loads torch, so `Layout` is
imported where it is used.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple

from querykey.design import PARTITIONS, Design, DesignError

if TYPE_CHECKING:
    from querykey.layout import Layout

DType = Literal["float32", "bfloat16", "float16", "float64"]
DESIGNS = tuple(map(Design.parse, (*PARTITIONS, "q=k,v+core=full", "q=k=v+core=full")))


class Amounts(NamedTuple):
    """Of all layers together: learned numbers, FLOPs of one forward pass, bytes of the KV cache.

    `cache_bytes` is the cache of one sequence of the length that was asked for, `cache_bytes_per_token` that of one
    position.
    """

    parameters: int
    flops: int
    cache_bytes_per_token: int
    cache_bytes: int


@dataclass(frozen=True)
class Cost:
    """The cost of one design.

    Args:
        design: with the number of key heads that it was given.
        kv_heads: number of key and value heads.
        amounts: what it costs.
        baseline: what the first design costs.
        note: why the design was not given the number of key heads that was asked for; empty otherwise.
    """

    design: Design
    kv_heads: int
    amounts: Amounts
    baseline: Amounts
    note: str = ""

    def ratio(self, amount: str) -> float:
        """One of `Amounts`, relative to the first design."""
        found: float = getattr(self.amounts, amount) / getattr(self.baseline, amount)
        return found


def cost(
    *,
    dim: int,
    heads: int,
    designs: Sequence[Design | str] = DESIGNS,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    layers: int = 1,
    length: int = 2048,
    dtype: DType = "float32",
) -> list[Cost]:
    """The cost of each design in the attention of a model.

    Args:
        dim: width of the model.
        heads: number of query heads.
        designs: designs to list; the first is the baseline.
        kv_heads: number of key and value heads, for the designs that can have fewer than query heads.
        head_dim: size of a head (default: dim / heads).
        layers: number of attention layers.
        length: positions of the forward pass, and of the cache.
        dtype: of the cache.

    Raises:
        ValueError: if a number is not positive, or `kv_heads` does not divide `heads`.
        DesignError: if a design is impossible at these sizes.
    """
    for name, number in {"layers": layers, "length": length}.items():
        if number < 1:
            raise ValueError(f"{name} must be at least 1, not {number}")
    if kv_heads is not None and (kv_heads < 1 or heads % kv_heads):
        raise ValueError(f"kv_heads {kv_heads} must divide the {heads} query heads")
    found: list[Cost] = []
    for design in designs:
        layout, note = _grouped(Design.parse(design), dim, heads, kv_heads, head_dim)
        amounts = _amounts(layout, layers, length, dtype)
        found.append(Cost(layout.design, layout.kv_heads, amounts, found[0].baseline if found else amounts, note))
    return found


def _grouped(design: Design, dim: int, heads: int, kv_heads: int | None, head_dim: int | None) -> tuple[Layout, str]:
    """The layout with the key heads asked for, where the design can have them; else without, and the reason."""
    from querykey.layout import Layout

    plain = Layout.of(design, dim, heads, head_dim=head_dim)
    if kv_heads in (None, plain.kv_heads) or design.kv_heads:
        return plain, ""
    try:
        return Layout.of(dataclasses.replace(design, kv_heads=kv_heads), dim, heads, head_dim=head_dim), ""
    except DesignError as error:
        reason = str(error).partition(": ")[2]
        return plain, f"{design} is shown with {plain.kv_heads} key heads: {reason}"


def _amounts(layout: Layout, layers: int, length: int, dtype: DType) -> Amounts:
    import torch

    per_token = layers * layout.cache_bytes(getattr(torch, dtype))
    return Amounts(layers * layout.parameters, layers * layout.flops(length), per_token, per_token * length)
