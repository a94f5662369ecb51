"""A design at concrete sizes: its named weights, which of them each role reads, and what it costs.

This is the only place that knows what each option means for shapes, parameters, FLOPs and cached bytes, and the only
one that refuses a combination. The attention layer is built from a `Layout`, and the cost table is printed from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch

from querykey.design import Design, DesignError, check_combination
from querykey.positions import Frequencies, Rotary

Init = Literal["normal", "alternating", "constant"]


@dataclass(frozen=True)
class Weight:
    """One learned tensor, and its initial values.

    ``normal`` has standard deviation `scale`, ``constant`` is `scale` everywhere, ``alternating`` is ±1 in turn along
    the last axis. `like` names the weight whose initial values are copied, if there is one.
    """

    name: str
    shape: tuple[int, ...]
    init: Init
    scale: float
    like: str = ""

    @property
    def size(self) -> int:
        """Number of learned numbers."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """A design at sizes, made by `Layout.of`.

    `projections` maps each projection of the input, such as ``"qk_proj"``, to its (heads, head size); `reads` maps each
    role to the projection that it reads, or to ``"x"``; `products` maps each fused matrix product of the layer to the
    rows of its weights; `cached` maps what a decoding step must keep to its (heads, head size).
    """

    design: Design
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    qk_dim: int
    bias: bool
    rotary: Rotary | None
    context_dim: int | None = None
    sinks: bool = False

    @classmethod
    def of(
        cls,
        design: Design | str,
        dim: int,
        heads: int,
        *,
        head_dim: int | None = None,
        bias: bool = False,
        rotary: Rotary | bool | None = False,
        context_dim: int | None = None,
        sinks: bool = False,
    ) -> Layout:
        """The weights of a design at these sizes, and what they cost.

        Args:
            design: a `Design`, or the word that spells it.
            dim: width of the model.
            heads: number of query heads.
            head_dim: head size of values, and of queries and keys unless the design's `qk_dim` says otherwise;
                ``dim / heads`` when not given.
            bias: whether each projection has a bias.
            rotary: how queries and keys are rotated by position; True for `Rotary()`.
            context_dim: width of what keys and values are made of, where that is always another input than that of
                queries (cross-attention).
            sinks: whether each head has a learned score that takes part in the softmax and reads no value.

        Raises:
            DesignError: if the design is impossible, at all or at these sizes.
        """
        design = Design.parse(design)
        try:
            check_combination(design, rotary=bool(rotary))
            sizes = {"dim": dim, "heads": heads, "head_dim": head_dim, "context_dim": context_dim}
            for name, value in sizes.items():
                if value is not None and value < 1:
                    raise DesignError(f"{name} must be positive, not {value}")
            if head_dim is None:
                if dim % heads:
                    raise DesignError(f"{heads} heads do not divide dim {dim}; change one of them or give head_dim")
                head_dim = dim // heads
            kv_heads = heads if design.kv_heads is None else design.kv_heads
            if heads % kv_heads:
                raise DesignError(f"kv_heads {kv_heads} must divide the {heads} query heads")
            qk_dim, turned = design.qk_dim or head_dim, Rotary.of(rotary)
            layout = cls(design, dim, heads, kv_heads, head_dim, qk_dim, bias, turned, context_dim, sinks)
            _refuse_sizes(layout)
        except DesignError as error:
            raise DesignError(f"design {design}: {error}") from None
        return layout

    @cached_property
    def latent(self) -> int:
        """Width of the latent; 0 where the design has none."""
        return self.design.latent or 0

    @cached_property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Each learned projection of the input, with its number of heads and their size; a latent is one head."""
        shapes = {}
        for part in self.design.parts:
            if part == self.design.latent_roles:
                shapes[_projection_name(part)] = (1, self.latent)
            elif "x" not in part:
                shapes[_projection_name(part)] = self.head_shape(part[0])
        return shapes

    @cached_property
    def ups(self) -> dict[str, tuple[int, int]]:
        """Each projection of the latent, such as ``"k_up"``, with its number of heads and their size."""
        return {f"{role}_up": self.head_shape(role) for role in self.design.latent_roles}

    @cached_property
    def reads(self) -> dict[str, str]:
        """Each role, with the projection that it reads; ``"x"`` is the input itself."""
        return {role: _projection_name(part) for part in self.design.parts for role in part if role != "x"}

    @cached_property
    def matrices(self) -> dict[str, str]:
        """Each role, with the matrix whose rows are its heads: its projection, or its projection of the latent."""
        return self.reads | {role: f"{role}_up" for role in self.design.latent_roles}

    @cached_property
    def cached(self) -> dict[str, tuple[int, int]]:
        """Each tensor that step-by-step decoding keeps, with its number of heads and their size."""
        if self.reads["k"] == self.reads["v"]:
            return {"kv": (1, self.latent) if self.ups else self.head_shape("v")}
        return {"k": self.head_shape("k"), "v": self.head_shape("v")}

    @cached_property
    def products(self) -> dict[str, dict[str, slice]]:
        """The rows of each fused matrix product: ``{"in_proj": {"q_proj": slice(0, 64), …}, …}``."""
        shapes: dict[str, dict[str, tuple[int, int]]] = {"in_proj": {}, "context_proj": {}}
        for name, shape in self.projections.items():
            shapes["context_proj" if self.reads_context(name) else "in_proj"][name] = shape
        shapes |= {"up_proj": self.ups, "o_proj": {"o_proj": (1, self.dim)}}
        return {product: _rows(parts) for product, parts in shapes.items() if parts}

    def reads_context(self, projection: str) -> bool:
        """Whether a projection is one of a context only."""
        return self.context_dim is not None and projection != self.reads["q"]

    @cached_property
    def one_query_and_key(self) -> bool:
        """Whether queries and keys are one tensor, also after a core."""
        return self.design.shares("q", "k") and self.design.core is None

    @cached_property
    def maps_keys(self) -> bool:
        """Whether keys are normalised or rotated, so that they are not what their projection gives."""
        return self.rotary is not None or self.design.qknorm or self.design.similarity == "cosine"

    @cached_property
    def frequencies(self) -> Frequencies | None:
        """Which numbers of queries and keys are rotated, and how fast; None without rotary positions."""
        return None if self.rotary is None else self.rotary.frequencies(self.qk_dim)

    @cached_property
    def makes_keys(self) -> bool:
        """Whether a cache keeps what keys are made of, a latent or values, and not the keys themselves."""
        return "kv" in self.cached and bool(self.ups or self.maps_keys)

    def head_shape(self, role: str) -> tuple[int, int]:
        """(number of heads, head size) of a role's tensor, before a core."""
        if role == "q" and not (self.design.core == "full" and self.design.shares("q", "k")):
            return self.heads, self.qk_dim
        return self.kv_heads, self.head_dim if role == "v" else self.qk_dim

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        """Every learned tensor; a projection has shape (heads × head size, width), as `nn.functional.linear` wants."""
        found = []
        for name, (heads, size) in self.projections.items():
            found += self._matrix(name, heads * size, self._width(name))
        for name, (heads, size) in self.ups.items():
            found += self._matrix(name, heads * size, self.latent)
        found += self._matrix("o_proj", self.dim, self.heads * self.head_dim)
        return (*found, *self._core_weights(), *self._similarity_weights())

    def _width(self, projection: str) -> int:
        """Size of what a projection reads."""
        return self.context_dim if self.context_dim is not None and self.reads_context(projection) else self.dim

    def _matrix(self, name: str, rows: int, width: int) -> list[Weight]:
        scale = self.design.qkscale if name in (self.matrices["q"], self.matrices["k"]) else 1.0
        like = "q_proj" if self.design.tiedstart and name == "k_proj" else ""
        found = [Weight(name, (rows, width), "normal", scale * width**-0.5, like)]
        if self.bias:
            found.append(Weight(f"{name}.bias", (rows,), "constant", 0.0))
        return found

    def _core_weights(self) -> list[Weight]:
        size, scale = self.qk_dim, self.qk_dim**-0.5
        match self.design.core:
            case None:
                return []
            case "signed":
                pairs = len(self.frequencies.near) if self.frequencies else 0  # of which each has one value
                return [Weight("core", (self.heads, size - pairs), "alternating", 1.0)]
            case "symmetric":  # the upper triangle, row by row: what can be learned and no more
                return [Weight("core", (self.heads, size * (size + 1) // 2), "normal", scale)]
            case "full":
                return [Weight("core", (self.heads, size, size), "normal", scale)]

    def _similarity_weights(self) -> list[Weight]:
        found = []
        if self.design.similarity == "cosine":
            found.append(Weight("temperature", (self.heads,), "constant", self.qk_dim**0.5))
        if self.design.qknorm:
            names = ["qk_gain"] if self.design.shares("q", "k") else ["q_gain", "k_gain"]
            found += [Weight(name, (self.qk_dim,), "constant", 1.0) for name in names]
        if self.sinks:
            found.append(Weight("sinks", (self.heads,), "constant", 0.0))
        return found

    @cached_property
    def parameters(self) -> int:
        """Number of learned numbers."""
        return sum(weight.size for weight in self.weights)

    def flops(self, length: int) -> int:
        """FLOPs (two per multiply-add) of the matrix products of one forward pass over `length` positions.

        Scores and weighted sums are counted for all pairs of positions, also where a causal mask leaves half of them.
        """
        projected = sum(self._width(name) * heads * size for name, (heads, size) in self.projections.items())
        projected += sum(self.latent * heads * size for heads, size in self.ups.values())
        core = {None: 0, "signed": 0, "symmetric": self.qk_dim**2, "full": self.qk_dim**2}[self.design.core]
        output = self.heads * self.head_dim * self.dim
        pairs = self.heads * (self.qk_dim + self.head_dim)
        return 2 * length * (projected + self.heads * core + output + length * pairs)

    def step_flops(self, cached: int) -> int:
        """FLOPs of the matrix products of one decoding step that attends to `cached` positions, itself among them.

        Where a latent is cached, keys are made of it anew, and its weighted sum is taken before the values are made.
        """
        pair = self.heads * (self.qk_dim + self.head_dim)
        position = self.flops(1) - 2 * pair
        if not (self.ups and "kv" in self.cached):
            return position + 2 * cached * pair
        latent, (groups, size) = self.latent, self.head_shape("k")
        pairs = cached * (groups * size * latent + self.heads * (size + latent))
        return position + 2 * (pairs + latent * self.head_dim * (self.heads - groups) - latent * groups * size)

    def cache_bytes(self, dtype: torch.dtype = torch.float32) -> int:
        """Bytes that decoding keeps per token."""
        return dtype.itemsize * sum(heads * size for heads, size in self.cached.values())


def _refuse_sizes(layout: Layout) -> None:
    """Raise for what is impossible at these sizes."""
    queries = next(part for part in layout.design.parts if "q" in part)
    if layout.context_dim is not None and {*queries} & {"k", "v"}:
        raise DesignError(
            "with context_dim keys and values are never made of the input of queries, so they cannot share with them; "
            "leave context_dim out, or write q on its own"
        )
    if layout.rotary is not None:
        if layout.rotary.size is None and layout.qk_dim % 2:
            raise DesignError(
                "rotary positions rotate pairs of numbers, but the head size of queries and keys is "
                f"{layout.qk_dim}, odd"
            )
        if layout.rotary.size is not None and layout.rotary.size > layout.qk_dim:
            raise DesignError(
                f"{layout.rotary.size} numbers of a head are rotated, but the head size of queries and keys is "
                f"{layout.qk_dim}"
            )
    for part in layout.design.parts:
        if "x" in part:
            heads, size = layout.head_shape(part[0])
            if any(layout.head_shape(role) != (heads, size) for role in part if role != "x"):
                shapes = ", ".join(f"{role}: {layout.head_shape(role)}" for role in part if role != "x")
                raise DesignError(f"roles that are the input must have the same heads and sizes, not {shapes}")
            width = layout.context_dim if layout.context_dim is not None and part[0] != "q" else layout.dim
            if heads * size != width:
                raise DesignError(
                    f"the unprojected input is read as {heads} heads of {size}, which is {heads * size} numbers, "
                    f"but its width is {width}; they must be equal"
                )


def _projection_name(part: tuple[str, ...]) -> str:
    return "x" if "x" in part else "".join(part) + "_proj"


def _rows(shapes: Mapping[str, tuple[int, int]]) -> dict[str, slice]:
    """Consecutive rows for matrices of these (heads, head size)."""
    rows, start = {}, 0
    for name, (heads, size) in shapes.items():
        rows[name] = slice(start, start + heads * size)
        start += heads * size
    return rows
