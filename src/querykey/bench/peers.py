"""Attention layers of other libraries, each with the layer of ours that computes the same.

    mha               torch.nn.MultiheadAttention, without biases
    x-transformers    its Attention on the flash path
    hf-bert           transformers' BertSelfAttention and the output product, without the residual and the norm after it
    hf-gpt2           transformers' GPT2Attention
    hf-llama          transformers' LlamaAttention; the rotations' angles are made outside of the timing

BERT and GPT-2 have biases and Llama rotates, so they are compared with q,k,v with biases or rotary positions. Those of
transformers take `scaled_dot_product_attention`, are made causal or not as is asked, and have random weights.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from querykey.attention.layer import SelfAttention
from querykey.bench.config import Case, Shape
from querykey.bench.passes import differentiated
from querykey.bench.timing import Run

PACKAGES = {"mha": "torch", "x-transformers": "x-transformers", "hf": "transformers"}

Step = Callable[[Tensor], Tensor]


class Peer(NamedTuple):
    """A layer made as others make it.

    Args:
        name: as in the table.
        module: its weights.
        forward: from (batch, length, dim) to the same.
        bias: whether ours needs biases to compute the same.
        rotary: whether ours needs rotary positions to compute the same.
        decoding: from keys and values, (batch, heads, length, size), to a step that may be repeated and leaves the
            cache as long as it was; None where there is no cache.
        weights: our weights, by name, of its own; None where it may compute something else.
    """

    name: str
    module: nn.Module
    forward: Step
    bias: bool = False
    rotary: bool = False
    decoding: Callable[[Tensor, Tensor], Step] | None = None
    weights: Callable[[], dict[str, Tensor]] | None = None


def missing(name: str) -> str:
    """A sentence with the command that installs a peer, or "" where it is there."""
    package = PACKAGES[name]
    if find_spec(package.replace("-", "_")) is not None:
        return ""
    return f"{name} is not installed and left out: pip install {package}"


def of_peer(peer: Peer, x: Tensor, case: Case) -> Run:
    """The pass of a peer over its input, of `Case.input`."""
    peer.module.to(case.device, case.dtype).train(case.training)
    if not case.decoding:
        return differentiated(lambda: peer.forward(x), (x, *peer.module.parameters()) if case.training else ())
    assert peer.decoding is not None
    batch, _, dim, heads = case.shape
    with torch.no_grad():
        k, v = (case.numbers(batch, heads, case.cached, dim // heads) for _ in "kv")
        step = peer.decoding(k, v)
    return torch.no_grad()(lambda: step(x))


def copy_weights(peer: Peer, layer: SelfAttention) -> None:
    """Give a layer of ours the weights of a peer that computes the same."""
    assert peer.weights is not None
    theirs, ours = peer.weights(), layer.named_weights()
    if theirs.keys() != ours.keys():
        raise ValueError(f"{peer.name} has the weights {', '.join(theirs)}, and the layer {', '.join(ours)}")
    with torch.no_grad():
        for weight, tensor in ours.items():
            tensor.copy_(theirs[weight])


def _mha(shape: Shape, causal: bool) -> Peer:
    layer = nn.MultiheadAttention(shape.dim, shape.heads, bias=False, batch_first=True)
    hidden = torch.ones(shape.length, shape.length, dtype=torch.bool).triu(1) if causal else None

    def forward(x: Tensor) -> Tensor:
        nonlocal hidden
        if hidden is not None and hidden.device != x.device:
            hidden = hidden.to(x.device)
        out: Tensor = layer(x, x, x, attn_mask=hidden, is_causal=causal, need_weights=False)[0]
        return out

    def weights() -> dict[str, Tensor]:
        return _three(layer.in_proj_weight) | {"o_proj": layer.out_proj.weight}

    return Peer("mha", layer, forward, weights=weights)


def _x_transformers(shape: Shape, causal: bool) -> Peer:
    from x_transformers import Attention
    from x_transformers.attend import Intermediates

    size = shape.dim // shape.heads
    layer: Any = Attention(dim=shape.dim, heads=shape.heads, dim_head=size, causal=causal, flash=True)

    def decoding(k: Tensor, v: Tensor) -> Step:
        kept = Intermediates(cached_kv=(k, v))
        return lambda x: layer(x, cache=kept, return_intermediates=True)[0]

    def weights() -> dict[str, Tensor]:
        names = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "o_proj": "to_out"}
        return {ours: getattr(layer, theirs).weight for ours, theirs in names.items()}

    return Peer("x-transformers", layer, layer, decoding=decoding, weights=weights)


def _bert(shape: Shape, causal: bool) -> Peer:
    from transformers.models.bert.configuration_bert import BertConfig
    from transformers.models.bert.modeling_bert import BertSelfAttention

    config = _config(BertConfig, hidden_size=shape.dim, num_attention_heads=shape.heads)
    config.attention_probs_dropout_prob = 0.0
    attention, dense = BertSelfAttention(config), nn.Linear(shape.dim, shape.dim)
    attention.is_causal = causal

    def forward(x: Tensor) -> Tensor:
        out: Tensor = dense(attention(x)[0])
        return out

    def weights() -> dict[str, Tensor]:
        parts = {"q_proj": attention.query, "k_proj": attention.key, "v_proj": attention.value, "o_proj": dense}
        return _linear(parts)

    return Peer("hf-bert", nn.ModuleList([attention, dense]), forward, bias=True, weights=weights)


def _gpt2(shape: Shape, causal: bool) -> Peer:
    from transformers.models.gpt2.configuration_gpt2 import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    config = _config(GPT2Config, n_embd=shape.dim, n_head=shape.heads, attn_pdrop=0.0, resid_pdrop=0.0)
    layer = GPT2Attention(config, layer_idx=0)
    layer.is_causal = causal

    def weights() -> dict[str, Tensor]:  # its matrices lie the other way round
        found = _three(layer.c_attn.weight.T, layer.c_attn.bias)
        return found | {"o_proj": layer.c_proj.weight.T, "o_proj.bias": layer.c_proj.bias}

    return Peer("hf-gpt2", layer, lambda x: layer(x)[0], True, False, lambda k, v: _hf_step(layer, k, v), weights)


def _llama(shape: Shape, causal: bool) -> Peer:
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    config = _config(LlamaConfig, hidden_size=shape.dim, num_attention_heads=shape.heads)
    config.num_key_value_heads = shape.heads
    layer, turning = LlamaAttention(config, layer_idx=0), LlamaRotaryEmbedding(config)
    layer.is_causal = causal
    angles: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def at(x: Tensor, start: int) -> tuple[Tensor, Tensor]:
        key = start, x.shape[1]
        if key not in angles:
            angles[key] = turning.to(x.device)(x, torch.arange(start, start + x.shape[1], device=x.device)[None])
        return angles[key]

    def decoding(k: Tensor, v: Tensor) -> Step:
        start = k.shape[2]
        return _hf_step(layer, k, v, lambda x: {"position_embeddings": at(x, start)})

    def weights() -> dict[str, Tensor]:
        return {name: getattr(layer, name).weight for name in ("q_proj", "k_proj", "v_proj", "o_proj")}

    def forward(x: Tensor) -> Tensor:
        out: Tensor = layer(x, position_embeddings=at(x, 0))[0]
        return out

    return Peer("hf-llama", layer, forward, False, True, decoding, weights)


def _config(kind: Any, **sizes: Any) -> Any:
    return kind(attn_implementation="sdpa", **sizes)


def _hf_step(layer: Any, k: Tensor, v: Tensor, more: Callable[[Tensor], dict[str, Any]] = lambda x: {}) -> Step:
    """One position more, and then the cache is what it was."""
    from transformers import DynamicCache

    cache = DynamicCache()
    cache.update(k, v, 0)
    kept: Any = cache.layers[0]

    def step(x: Tensor) -> Tensor:
        out: Tensor = layer(x, past_key_values=cache, **more(x))[0]
        kept.keys, kept.values = k, v
        return out

    return step


def _three(weight: Tensor, bias: Tensor | None = None) -> dict[str, Tensor]:
    """The three projections that lie one below the other."""
    names = ("q_proj", "k_proj", "v_proj")
    found = dict(zip(names, weight.chunk(3), strict=True))
    if bias is not None:
        found |= {f"{name}.bias": part for name, part in zip(names, bias.chunk(3), strict=True)}
    return found


def _linear(parts: dict[str, nn.Linear]) -> dict[str, Tensor]:
    found = {name: part.weight for name, part in parts.items()}
    return found | {f"{name}.bias": part.bias for name, part in parts.items()}


# By name, and what one word of `--against` stands for.
PEERS: dict[str, Callable[[Shape, bool], Peer]] = {
    "mha": _mha,
    "x-transformers": _x_transformers,
    "hf-bert": _bert,
    "hf-gpt2": _gpt2,
    "hf-llama": _llama,
}
NAMES = {"mha": ("mha",), "x-transformers": ("x-transformers",), "hf": ("hf-bert", "hf-gpt2", "hf-llama")}
