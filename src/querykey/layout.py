"""A design at concrete sizes: its named weights, which of them each role reads, and what it costs.

This is the only place that knows what each option means for shapes, parameters, FLOPs and cached bytes, and the only
one that refuses a combination. The attention layer is built from it, the cost table printed from it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.design import Design, DesignError

Init = Literal["normal", "alternating", "constant"]


@dataclass(frozen=True)
class Weight:
    """One learned tensor, and its initial values.

    ``normal`` has standard deviation `scale`, ``constant`` is `scale` everywhere, ``alternating`` is ±1 in turn along
    the last axis.
    """

    name: str
    shape: tuple[int, ...]
    init: Init
    scale: float

    @property
    def size(self) -> int:
        """Number of learned numbers."""
        return math.prod(self.shape)


class PlainWeights(NamedTuple):
    """A design written out as ordinary attention: the weights that the textbook formula needs, per head.

    A core is folded into `W_Q` and `b_Q`; keys and values of a group are given once. `temperature` is τ of the cosine
    similarity, the gains belong to the norms of queries and keys; None where the design has none.
    """

    W_Q: Float[Tensor, "heads dim qk_dim"]
    W_K: Float[Tensor, "kv_heads dim qk_dim"]
    W_V: Float[Tensor, "kv_heads dim head_dim"]
    W_O: Float[Tensor, "heads head_dim dim"]
    b_Q: Float[Tensor, "heads qk_dim"] | None = None
    b_K: Float[Tensor, "kv_heads qk_dim"] | None = None
    b_V: Float[Tensor, "kv_heads head_dim"] | None = None
    b_O: Float[Tensor, " dim"] | None = None
    temperature: Float[Tensor, " heads"] | None = None
    q_gain: Float[Tensor, " qk_dim"] | None = None
    k_gain: Float[Tensor, " qk_dim"] | None = None


@dataclass(frozen=True)
class Layout:
    """A design at sizes, made by `Layout.of`.

    `projections` maps each projection, such as ``"qk_proj"``, to its (heads, head size); `reads` maps each role to the
    projection that it reads, or to ``"x"``; `cached` maps what a decoding step must keep to its (heads, head size).
    """

    design: Design
    dim: int
    heads: int
    kv_heads: int
    head_dim: int
    qk_dim: int
    bias: bool
    rotary: bool

    @classmethod
    def of(
        cls,
        design: Design | str,
        dim: int,
        heads: int,
        *,
        head_dim: int | None = None,
        bias: bool = False,
        rotary: bool = False,
    ) -> Layout:
        """The weights of a design at these sizes, and what they cost.

        Args:
            design: a `Design`, or the word that spells it.
            dim: width of the model.
            heads: number of query heads.
            head_dim: head size of values, and of queries and keys unless the design's `qk_dim` says otherwise;
                ``dim / heads`` when not given.
            bias: whether each projection has a bias.
            rotary: whether queries and keys are rotated by position.

        Raises:
            DesignError: if the design is impossible, at all or at these sizes.
        """
        design = Design.parse(design)
        try:
            _refuse_impossible(design, rotary)
            for name, value in {"dim": dim, "heads": heads, "head_dim": head_dim}.items():
                if value is not None and value < 1:
                    raise DesignError(f"{name} must be positive, not {value}")
            if head_dim is None:
                if dim % heads:
                    raise DesignError(f"{heads} heads do not divide dim {dim}; change one of them or give head_dim")
                head_dim = dim // heads
            kv_heads = heads if design.kv_heads is None else design.kv_heads
            if heads % kv_heads:
                raise DesignError(f"kv_heads {kv_heads} must divide the {heads} query heads")
            layout = cls(design, dim, heads, kv_heads, head_dim, design.qk_dim or head_dim, bias, rotary)
            _refuse_sizes(layout)
        except DesignError as error:
            raise DesignError(f"design {design}: {error}") from None
        return layout

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """Each learned projection of the input, with its number of heads and their size."""
        return {_projection_name(part): self.head_shape(part[0]) for part in self.design.parts if "x" not in part}

    @property
    def reads(self) -> dict[str, str]:
        """Each role, with the projection that it reads; ``"x"`` is the input itself."""
        return {role: _projection_name(part) for part in self.design.parts for role in part if role != "x"}

    @property
    def cached(self) -> dict[str, tuple[int, int]]:
        """Each tensor that step-by-step decoding keeps, with its number of heads and their size."""
        if self.design.shares("k", "v"):
            return {"kv": self.head_shape("v")}
        return {"k": self.head_shape("k"), "v": self.head_shape("v")}

    def head_shape(self, role: str) -> tuple[int, int]:
        """(number of heads, head size) of the tensor that a role reads, before a core."""
        if role == "q" and not (self.design.core == "full" and self.design.shares("q", "k")):
            return self.heads, self.qk_dim
        return self.kv_heads, self.head_dim if role == "v" else self.qk_dim

    @property
    def weights(self) -> tuple[Weight, ...]:
        """Every learned tensor; a projection has shape (heads × head size, dim), as `nn.functional.linear` wants."""
        reads = self.reads
        found = []
        for name, (heads, size) in self.projections.items():
            scale = self.design.qkscale if name in (reads["q"], reads["k"]) else 1.0
            found.append(Weight(name, (heads * size, self.dim), "normal", scale * self.dim**-0.5))
            if self.bias:
                found.append(Weight(f"{name}.bias", (heads * size,), "constant", 0.0))
        inner = self.heads * self.head_dim
        found.append(Weight("o_proj", (self.dim, inner), "normal", inner**-0.5))
        if self.bias:
            found.append(Weight("o_proj.bias", (self.dim,), "constant", 0.0))
        return (*found, *self._core_weights(), *self._similarity_weights())

    def _core_weights(self) -> list[Weight]:
        size, scale = self.qk_dim, self.qk_dim**-0.5
        match self.design.core:
            case None:
                return []
            case "signed":
                return [Weight("core", (self.heads, size // 2 if self.rotary else size), "alternating", 1.0)]
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
        return found

    @property
    def parameters(self) -> int:
        """Number of learned numbers."""
        return sum(weight.size for weight in self.weights)

    def flops(self, length: int) -> int:
        """FLOPs (two per multiply-add) of the matrix products of one forward pass over `length` positions.

        Scores and weighted sums are counted for all pairs of positions, also where a causal mask leaves half of them.
        """
        projected = self.dim * sum(heads * size for heads, size in self.projections.values())
        core = {None: 0, "signed": 0, "symmetric": self.qk_dim**2, "full": self.qk_dim**2}[self.design.core]
        output = self.heads * self.head_dim * self.dim
        pairs = self.heads * (self.qk_dim + self.head_dim)
        return 2 * length * (projected + self.heads * core + output + length * pairs)

    def cache_bytes(self, dtype: torch.dtype = torch.float32) -> int:
        """Bytes that decoding keeps per token."""
        return dtype.itemsize * sum(heads * size for heads, size in self.cached.values())

    def expand(self, tensors: Mapping[str, Tensor]) -> PlainWeights:
        """The plain weights that `tensors`, one for each name in `weights`, amount to. Differentiable."""
        W = {role: self._per_head(tensors, role) for role in ("q", "k", "v")}
        b = {role: self._bias_per_head(tensors, role) for role in ("q", "k", "v")}
        if self.design.core is not None:
            core = self.core_matrix(tensors["core"])
            group = self.heads // W["q"].shape[0]
            W["q"] = W["q"].repeat_interleave(group, 0) @ core
            if b["q"] is not None:
                b["q"] = (b["q"].repeat_interleave(group, 0).unsqueeze(-2) @ core).squeeze(-2)
        return PlainWeights(
            W["q"],
            W["k"],
            W["v"],
            tensors["o_proj"].T.unflatten(0, (self.heads, self.head_dim)),
            b["q"],
            b["k"],
            b["v"],
            tensors.get("o_proj.bias"),
            tensors.get("temperature"),
            tensors.get("q_gain", tensors.get("qk_gain")),
            tensors.get("k_gain", tensors.get("qk_gain")),
        )

    def core_matrix(self, core: Tensor) -> Float[Tensor, "heads qk_dim qk_dim"]:
        """The core as one square matrix per query head."""
        match self.design.core:
            case "signed":
                return torch.diag_embed(torch.cat([core, core], -1) if self.rotary else core)
            case "symmetric":
                rows, columns = torch.triu_indices(self.qk_dim, self.qk_dim, device=core.device)
                place = torch.zeros(self.qk_dim, self.qk_dim, dtype=torch.long, device=core.device)
                place[rows, columns] = place[columns, rows] = torch.arange(len(rows), device=core.device)
                return core[:, place]
            case _:
                return core

    def _per_head(self, tensors: Mapping[str, Tensor], role: str) -> Tensor:
        heads, size = self.head_shape(role)
        name = self.reads[role]
        if name == "x":
            like = tensors["o_proj"]
            matrix = torch.eye(self.dim, dtype=like.dtype, device=like.device)
        else:
            matrix = tensors[name]
        return matrix.view(heads, size, self.dim).transpose(1, 2)

    def _bias_per_head(self, tensors: Mapping[str, Tensor], role: str) -> Tensor | None:
        bias = tensors.get(f"{self.reads[role]}.bias")
        return None if bias is None else bias.unflatten(0, self.head_shape(role))


def _refuse_impossible(design: Design, rotary: bool) -> None:
    """What cannot be at any size."""
    tied = design.shares("q", "k")
    with_values = design.shares("q", "v") or design.shares("k", "v")
    unprojected = {role for role in ("q", "k") if design.shares(role, "x")}
    if design.core and not tied:
        raise DesignError("a core acts where queries and keys are shared; write q=k, or leave the core out")
    if design.core == "symmetric" and rotary:
        raise DesignError(
            "a symmetric core does not commute with rotary positions, so its scores would not be symmetric; "
            "take core=signed or core=full"
        )
    if design.kv_heads and design.shares("q", "v") and not tied:
        raise DesignError("q = v gives as many value heads as query heads, so kv_heads cannot be chosen")
    if design.kv_heads and tied and design.core != "full":
        raise DesignError(
            "q = k with kv_heads needs core=full: each query head then has its own core over its group's keys"
        )
    if design.qk_dim and with_values:
        raise DesignError("queries or keys that are shared with values have their head size; leave qk_dim out")
    if design.qkscale != 1.0:
        if design.similarity == "cosine":
            raise DesignError("a cosine does not feel the scale of W_Q and W_K; leave qkscale out")
        if with_values:
            raise DesignError("qkscale would also scale the values that share the weight; leave it out")
        if unprojected == {"q", "k"}:
            raise DesignError("qkscale has no weight to scale where queries and keys are the input; leave it out")


def _refuse_sizes(layout: Layout) -> None:
    """What cannot be at these sizes."""
    if layout.rotary and layout.qk_dim % 2:
        raise DesignError(
            f"rotary positions turn pairs of numbers, but the head size of queries and keys is {layout.qk_dim}, odd"
        )
    for part in layout.design.parts:
        if "x" in part:
            heads, size = layout.head_shape(part[0])
            if any(layout.head_shape(role) != (heads, size) for role in part if role != "x"):
                shapes = ", ".join(f"{role}: {layout.head_shape(role)}" for role in part if role != "x")
                raise DesignError(f"roles that are the input must have the same heads and sizes, not {shapes}")
            if heads * size != layout.dim:
                raise DesignError(
                    f"the unprojected input is read as {heads} heads of {size}, which is {heads * size} numbers, "
                    f"but dim is {layout.dim}; they must be equal"
                )


def _projection_name(part: tuple[str, ...]) -> str:
    return "x" if "x" in part else "".join(part) + "_proj"
