"""A layer written out as plain attention: W_Q, W_K, W_V and W_O per head, whatever its design shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.layout import Layout


class PlainWeights(NamedTuple):
    """A design written out as ordinary attention: the weights that the textbook formula needs, per head.

    A core is folded into `W_Q` and `b_Q`, and a latent into the weights of its roles; keys and values of a group are
    given once. `temperature` is τ of the cosine similarity, the gains belong to the norms of queries and keys, and
    sinks are scores without a value; None where the design has none. With a context of another width, W_K and W_V have
    that width.
    """

    W_Q: Float[Tensor, "heads dim qk_dim"]
    W_K: Float[Tensor, "kv_heads context_dim qk_dim"]
    W_V: Float[Tensor, "kv_heads context_dim head_dim"]
    W_O: Float[Tensor, "heads head_dim dim"]
    b_Q: Float[Tensor, "heads qk_dim"] | None = None
    b_K: Float[Tensor, "kv_heads qk_dim"] | None = None
    b_V: Float[Tensor, "kv_heads head_dim"] | None = None
    b_O: Float[Tensor, " dim"] | None = None
    temperature: Float[Tensor, " heads"] | None = None
    q_gain: Float[Tensor, " qk_dim"] | None = None
    k_gain: Float[Tensor, " qk_dim"] | None = None
    sinks: Float[Tensor, " heads"] | None = None


def expand(layout: Layout, tensors: Mapping[str, Tensor]) -> PlainWeights:
    """The plain weights that `tensors`, one for each name in the layout's `weights`, amount to. Differentiable."""
    W = {role: _per_head(layout, tensors, role) for role in ("q", "k", "v")}
    b = {role: _bias_per_head(layout, tensors, role) for role in ("q", "k", "v")}
    if layout.design.core is not None:
        core = core_matrix(layout, tensors["core"])
        group = layout.heads // W["q"].shape[0]
        W["q"] = W["q"].repeat_interleave(group, 0) @ core
        if b["q"] is not None:
            b["q"] = (b["q"].repeat_interleave(group, 0).unsqueeze(-2) @ core).squeeze(-2)
    return PlainWeights(
        W["q"],
        W["k"],
        W["v"],
        tensors["o_proj"].T.unflatten(0, (layout.heads, layout.head_dim)),
        b["q"],
        b["k"],
        b["v"],
        tensors.get("o_proj.bias"),
        tensors.get("temperature"),
        tensors.get("q_gain", tensors.get("qk_gain")),
        tensors.get("k_gain", tensors.get("qk_gain")),
        tensors.get("sinks"),
    )


def core_matrix(layout: Layout, core: Tensor) -> Float[Tensor, "heads qk_dim qk_dim"]:
    """The core as one square matrix per query head."""
    match layout.design.core:
        case "signed":
            return torch.diag_embed(signed_diagonal(layout, core))
        case "symmetric":
            size = layout.qk_dim
            rows, columns = torch.triu_indices(size, size, device=core.device)
            index = torch.zeros(size, size, dtype=torch.long, device=core.device)
            index[rows, columns] = index[columns, rows] = torch.arange(len(rows), device=core.device)
            return core[:, index]
        case _:
            return core


def signed_diagonal(layout: Layout, core: Tensor) -> Float[Tensor, "heads qk_dim"]:
    """The diagonal of a signed core; the two numbers of a rotated pair have one value."""
    if layout.frequencies is None:
        return core
    pairs, others = core.split([len(layout.frequencies.near), core.shape[-1] - len(layout.frequencies.near)], -1)
    paired = pairs.repeat_interleave(2, -1) if layout.frequencies.interleaved else torch.cat([pairs, pairs], -1)
    return torch.cat([paired, others], -1) if others.shape[-1] else paired


def _per_head(layout: Layout, tensors: Mapping[str, Tensor], role: str) -> Tensor:
    heads, size = layout.head_shape(role)
    name = layout.reads[role]
    if name == "x":
        like = tensors["o_proj"]
        width = layout.dim if role == "q" or layout.context_dim is None else layout.context_dim
        matrix = torch.eye(width, dtype=like.dtype, device=like.device)
    else:
        matrix = tensors[name]
    if role in layout.design.latent_roles:
        matrix = tensors[layout.matrices[role]] @ matrix
    return matrix.view(heads, size, -1).transpose(1, 2)


def _bias_per_head(layout: Layout, tensors: Mapping[str, Tensor], role: str) -> Tensor | None:
    bias = tensors.get(f"{layout.reads[role]}.bias")
    if bias is not None and role in layout.design.latent_roles:
        up = layout.matrices[role]
        bias = tensors[up] @ bias + tensors[f"{up}.bias"]
    return None if bias is None else bias.unflatten(0, layout.head_shape(role))
