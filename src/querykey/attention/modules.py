"""Plain attention weights in a layer and out of it; `nn.MultiheadAttention` as a source and a target of them.

`querykey.hf` does the same for the attention modules of transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from querykey.attention.decoding import CachedAttention
from querykey.attention.expansion import PlainWeights


def multihead_options(module: Any) -> dict[str, Any]:
    """The arguments of `SelfAttention` for a layer that computes what this `nn.MultiheadAttention` does.

    Raises:
        ValueError: naming the part that a layer does not have.
    """
    if type(module) is not nn.MultiheadAttention:
        raise ValueError(
            f"expected an nn.MultiheadAttention, not {_kind(module)}; querykey.hf.from_module reads the attention "
            "modules of transformers"
        )
    if module.bias_k is not None or module.add_zero_attn:
        part = "bias_k and bias_v" if module.bias_k is not None else "add_zero_attn"
        raise ValueError(f"the module attends to a key that belongs to no token ({part}), which a layer cannot")
    if module.kdim != module.vdim:
        raise ValueError(
            f"keys are made of width {module.kdim} and values of width {module.vdim}; a layer makes both of one width"
        )
    return {
        "dim": module.embed_dim,
        "heads": module.num_heads,
        "bias": module.in_proj_bias is not None,
        "dropout": module.dropout,
        "context_dim": None if module._qkv_same_embed_dim else module.kdim,
        "device": module.out_proj.weight.device,
        "dtype": module.out_proj.weight.dtype,
    }


def read_multihead(module: Any) -> PlainWeights:
    """The weights of an `nn.MultiheadAttention`, per head; views of its parameters."""
    heads, biases = module.num_heads, _biases(module)
    W_Q, W_K, W_V = (matrix.unflatten(0, (heads, -1)).mT for matrix in _projections(module))
    b_Q, b_K, b_V = (bias.unflatten(0, (heads, -1)) for bias in biases) if biases else (None, None, None)
    W_O = module.out_proj.weight.T.unflatten(0, (heads, -1))
    return PlainWeights(W_Q, W_K, W_V, W_O, b_Q, b_K, b_V, module.out_proj.bias)


def named(weights: PlainWeights) -> dict[str, Tensor | None]:
    """Plain weights by the names that they have in a layer that shares none of them."""
    found: dict[str, Tensor | None] = {"o_proj": weights.W_O.flatten(0, 1).T, "o_proj.bias": weights.b_O}
    for role in "QKV":
        matrix, bias = getattr(weights, f"W_{role}"), getattr(weights, f"b_{role}")
        name = f"{role.lower()}_proj"
        found |= {name: matrix.mT.flatten(0, 1), f"{name}.bias": None if bias is None else bias.flatten()}
    return found | {"q_gain": weights.q_gain, "k_gain": weights.k_gain, "sinks": weights.sinks}


@torch.no_grad()
def copy(sources: Mapping[str, Tensor | None], targets: Mapping[str, Tensor]) -> None:
    """Copy tensors to those of the same names; a target without a source, such as a bias, becomes zero."""
    for name, target in targets.items():
        source = sources.get(name)
        target.zero_() if source is None else target.copy_(source)


def plain_weights(layer: CachedAttention, plain: CachedAttention, module: nn.Module) -> PlainWeights:
    """The weights of `layer`, for a module that computes what the layer `plain` does; groups of keys are repeated.

    Raises:
        ValueError: if the two layers compute different things, with what differs.
    """
    ours, theirs = _computes(layer), _computes(plain)
    for name, value in ours.items():
        if value != theirs[name]:
            raise ValueError(
                f"the layer has {name} {value}, and the {_kind(module)} {theirs[name]}, so it cannot hold this layer"
            )
    if layer.layout.frequencies != plain.layout.frequencies:
        raise ValueError(
            f"the layer has rotary positions {layer.layout.rotary}, and the {_kind(module)} {plain.layout.rotary}, so "
            "it cannot hold this layer"
        )
    if layer.layout.bias and not plain.layout.bias:
        raise ValueError(f"the layer has biases, and the {_kind(module)} has none, so it cannot hold this layer")
    times, rest = divmod(plain.layout.kv_heads, layer.layout.kv_heads)
    if rest:
        raise ValueError(
            f"the layer has {layer.layout.kv_heads} key heads, which cannot be the {plain.layout.kv_heads} of the "
            f"{_kind(module)}"
        )
    weights = layer.weights()
    b_K, b_V = (b if b is None else b.repeat_interleave(times, 0) for b in (weights.b_K, weights.b_V))
    W_K, W_V = (W.repeat_interleave(times, 0) for W in (weights.W_K, weights.W_V))
    return weights._replace(W_K=W_K, W_V=W_V, b_K=b_K, b_V=b_V)


def write_multihead(weights: PlainWeights, module: nn.Module) -> None:
    """Copy plain weights to an `nn.MultiheadAttention` of their sizes; the inverse of `read_multihead`."""
    parts = read_multihead(module)
    copy(weights._asdict(), {name: part for name, part in parts._asdict().items() if part is not None})


# Options of a design that the plain weights show.
_IN_WEIGHTS = ("sharing", "core", "qk_dim", "kv_heads", "latent", "qkscale", "tiedstart")


def _computes(layer: CachedAttention) -> dict[str, Any]:
    """What decides the result of a layer, besides its weights."""
    layout, design = layer.layout, layer.design
    return {
        "dim": layout.dim,
        "heads": layout.heads,
        "head_dim": layout.head_dim,
        "qk_dim": layout.qk_dim,
        "context_dim": layout.context_dim,
        **{option.name: getattr(design, option.name) for option in fields(design) if option.name not in _IN_WEIGHTS},
        "causal": layer.causal,
        "window": layer.window,
        "softcap": layer.scoring.softcap,
        "alibi": layer.scoring.alibi,
        "sinks": layout.sinks,
    }


def _projections(module: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    if module._qkv_same_embed_dim:
        return module.in_proj_weight.chunk(3)
    return module.q_proj_weight, module.k_proj_weight, module.v_proj_weight


def _biases(module: nn.MultiheadAttention) -> tuple[Tensor, ...]:
    return () if module.in_proj_bias is None else module.in_proj_bias.chunk(3)


def _kind(module: nn.Module) -> str:
    return type(module).__name__
