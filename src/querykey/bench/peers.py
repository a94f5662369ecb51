"""Attention layers of other libraries, each with the querykey layer that computes the same.

    mha               torch.nn.MultiheadAttention, without biases
    x-transformers    its Attention on the flash path
    hf-bert           transformers' BertSelfAttention and the output product, without the residual and the norm after it
    hf-gpt2           transformers' GPT2Attention
    hf-llama          transformers' LlamaAttention; the angles of the rotation are computed outside of the timing

BERT and GPT-2 have biases and Llama rotates, so they are compared with q,k,v with biases or rotary positions. Those of
transformers call `scaled_dot_product_attention`, causal or not, and have random weights.

A decoding step of transformers is timed with each of its caches: a DynamicCache, which copies all cached positions at
every step ("hf-llama"), a StaticCache of exactly the needed length, so that it needs no mask ("hf-llama static"), and
the step with a StaticCache under torch.compile ("hf-llama compiled").
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from querykey.bench.case import Case
from querykey.bench.config import Shape
from querykey.bench.passes import differentiated
from querykey.bench.timing import Run
from querykey.extras import cache_argument

PACKAGES = {"mha": "torch", "x-transformers": "x-transformers", "hf": "transformers", "hf-compiled": "transformers"}

Step = Callable[[Tensor], Tensor]
MakeStep = Callable[[Tensor, Tensor], Step]


class Peer(NamedTuple):
    """A layer of another library.

    Args:
        name: as in the table.
        module: its weights.
        forward: from (batch, length, dim) to the same.
        bias: whether the equal querykey layer has biases.
        rotary: whether the equal querykey layer has rotary positions.
        decoding: by kind of cache ("" for the default), from keys and values, (batch, heads, length, size), to a step
            that may be repeated and leaves the cache as long as it was. Empty if the layer has no cache.
    """

    name: str
    module: nn.Module
    forward: Step
    bias: bool = False
    rotary: bool = False
    decoding: Mapping[str, MakeStep] = {}


def missing(name: str) -> str:
    """A note with the command that installs a peer, or "" if it is installed."""
    package = PACKAGES[name]
    if find_spec(package.replace("-", "_")) is not None:
        return ""
    return f"{name} is not installed and left out: pip install {package}"


def runs_of(peer: Peer, x: Tensor, case: Case, compiled: bool = False) -> dict[str, Run]:
    """The passes of a peer over `x`, the input of the case, by name: one, or one for each kind of cache.

    `compiled` adds the decoding step under torch.compile.
    """
    peer.module.to(case.device, case.dtype).train(case.training)
    if not case.decoding:
        leaves = (x, *peer.module.parameters()) if case.training else ()
        return {peer.name: differentiated(lambda: peer.forward(x), leaves)}
    batch, _, dim, heads = case.shape
    with torch.no_grad():
        k, v = (case.numbers(batch, heads, case.cached, dim // heads) for _ in "kv")
        steps = {kind: make(k, v) for kind, make in peer.decoding.items() if compiled or kind != "compiled"}
    return {f"{peer.name} {kind}".strip(): torch.no_grad()(lambda step=step: step(x)) for kind, step in steps.items()}


def _mha(shape: Shape, causal: bool) -> Peer:
    layer = nn.MultiheadAttention(shape.dim, shape.heads, bias=False, batch_first=True)
    hidden = torch.ones(shape.length, shape.length, dtype=torch.bool).triu(1) if causal else None

    def forward(x: Tensor) -> Tensor:
        nonlocal hidden
        if hidden is not None and hidden.device != x.device:
            hidden = hidden.to(x.device)
        out: Tensor = layer(x, x, x, attn_mask=hidden, is_causal=causal, need_weights=False)[0]
        return out

    return Peer("mha", layer, forward)


def _x_transformers(shape: Shape, causal: bool) -> Peer:
    from x_transformers import Attention
    from x_transformers.attend import Intermediates

    size = shape.dim // shape.heads
    layer: Any = Attention(dim=shape.dim, heads=shape.heads, dim_head=size, causal=causal, flash=True)

    def decoding(k: Tensor, v: Tensor) -> Step:
        cache = Intermediates(cached_kv=(k, v))
        return lambda x: layer(x, cache=cache, return_intermediates=True)[0]

    return Peer("x-transformers", layer, layer, decoding={"": decoding})


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

    return Peer("hf-bert", nn.ModuleList([attention, dense]), forward, bias=True)


def _gpt2(shape: Shape, causal: bool) -> Peer:
    from transformers.models.gpt2.configuration_gpt2 import GPT2Config
    from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

    config = _config(GPT2Config, n_embd=shape.dim, n_head=shape.heads, attn_pdrop=0.0, resid_pdrop=0.0, n_layer=1)
    layer = GPT2Attention(config, layer_idx=0)
    layer.is_causal = causal
    return Peer("hf-gpt2", layer, lambda x: layer(x)[0], bias=True, decoding=_hf_steps(layer, lambda x, start: {}))


def _llama(shape: Shape, causal: bool) -> Peer:
    from transformers.models.llama.configuration_llama import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaAttention, LlamaRotaryEmbedding

    config = _config(LlamaConfig, hidden_size=shape.dim, num_attention_heads=shape.heads, num_hidden_layers=1)
    config.num_key_value_heads = shape.heads
    layer, rotation = LlamaAttention(config, layer_idx=0), LlamaRotaryEmbedding(config)
    layer.is_causal = causal
    angles: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}

    def at(x: Tensor, start: int) -> dict[str, Any]:
        key = start, x.shape[1]
        if key not in angles:
            positions = torch.arange(start, start + x.shape[1], device=x.device)[None]
            angles[key] = rotation.to(x.device)(x, positions)
        return {"position_embeddings": angles[key]}

    def forward(x: Tensor) -> Tensor:
        out: Tensor = layer(x, **at(x, 0))[0]
        return out

    return Peer("hf-llama", layer, forward, rotary=True, decoding=_hf_steps(layer, at))


def _config(kind: Any, **sizes: Any) -> Any:
    return kind(attn_implementation="sdpa", **sizes)


def _hf_steps(layer: Any, at: Callable[[Tensor, int], dict[str, Any]]) -> dict[str, MakeStep]:
    """Decoding steps with transformers' caches; `at` gives what the layer needs to know of a position."""
    argument = cache_argument(layer.forward)

    def growing(k: Tensor, v: Tensor) -> Step:
        from transformers import DynamicCache

        cache = DynamicCache()
        cache.update(k, v, 0)
        kept: Any = cache.layers[0]

        def step(x: Tensor) -> Tensor:
            out: Tensor = layer(x, **{argument: cache}, **at(x, k.shape[2]))[0]
            kept.keys, kept.values = k, v
            return out

        return step

    def static(k: Tensor, v: Tensor, forward: Callable[..., Any] = layer) -> Step:
        from transformers import StaticCache

        cache = StaticCache(layer.config, max_cache_len=k.shape[2] + 1)
        cache.update(k, v, 0)
        layers: Any = cache.layers
        length = layers[0].cumulative_length

        def step(x: Tensor) -> Tensor:
            out: Tensor = forward(x, **{argument: cache}, **at(x, k.shape[2]))[0]
            length.fill_(k.shape[2])
            return out

        return step

    def compiled(k: Tensor, v: Tensor) -> Step:
        return static(k, v, torch.compile(layer, fullgraph=True))

    return {"": growing, "static": static, "compiled": compiled}


# By name, and the names that one word of `--against` stands for.
PEERS: dict[str, Callable[[Shape, bool], Peer]] = {
    "mha": _mha,
    "x-transformers": _x_transformers,
    "hf-bert": _bert,
    "hf-gpt2": _gpt2,
    "hf-llama": _llama,
}
_HF = ("hf-bert", "hf-gpt2", "hf-llama")
NAMES = {"mha": ("mha",), "x-transformers": ("x-transformers",), "hf": _HF, "hf-compiled": _HF}
