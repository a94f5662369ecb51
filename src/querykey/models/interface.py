"""Attention functions of querykey for models of transformers, by name.

| name                | scores and mask                                                                       |
|---------------------|---------------------------------------------------------------------------------------|
| `querykey`          | scaling · q·k, as `sdpa`                                                              |
| `querykey-selfmask` | the same; a position may not attend to itself, unless nothing else is left            |
| `querykey-cosine`   | √d_k · cos(q, k)                                                                      |
| `querykey-l2`       | −scaling · ‖q − k‖²/2                                                                 |

Models that compute attention themselves, and not through the attention interface of transformers, are not affected.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from querykey.attention.functional import attend
from querykey.design import Similarity
from querykey.extras import load

NAMES: dict[str, Similarity] = {
    "querykey": "dot",
    "querykey-selfmask": "dot",
    "querykey-cosine": "cosine",
    "querykey-l2": "l2",
}


def register() -> tuple[str, ...]:
    """Make the names of this module available as `attn_implementation` in transformers; returns them.

    Raises:
        MissingExtra: if transformers is not installed.
    """
    attentions = load("transformers", "inspect").AttentionInterface
    masks = load("transformers.masking_utils", "inspect")
    for name, similarity in NAMES.items():
        attentions.register(name, _attention(similarity))
        mask = _without_self(masks.sdpa_mask) if name == "querykey-selfmask" else masks.sdpa_mask
        masks.AttentionMaskInterface.register(name, mask)
    return tuple(NAMES)


@contextmanager
def attention_function(name: str, function: Callable[..., Any]) -> Iterator[None]:
    """Within, `function` is the attention of transformers with this name; it gets masks for an explicit softmax."""
    functions = load("transformers.modeling_utils", "inspect").ALL_ATTENTION_FUNCTIONS
    masks = load("transformers.masking_utils", "inspect").ALL_MASK_ATTENTION_FUNCTIONS
    masks.register(name, masks["eager"])
    before = functions.get(name)
    functions[name] = function
    try:
        yield
    finally:
        if before is None:
            del functions[name]
        else:
            functions[name] = before


def _attention(similarity: Similarity) -> Callable[..., tuple[Tensor, None]]:
    """An attention function of transformers: (batch, heads, length, size) to (batch, length, heads, size)."""

    def attention(
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        is_causal: bool | None = None,
        position_bias: Tensor | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        **others: Any,
    ) -> tuple[Tensor, None]:
        causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
        queries = query.shape[-2]
        causal = causal and attention_mask is None and queries > 1
        if causal:  # a preallocated cache is longer than what it holds
            key, value = key[..., :queries, :], value[..., :queries, :]
        if position_bias is not None:
            attention_mask, causal = _with_bias(attention_mask, position_bias, causal, query, key), False
        scale = None if similarity == "cosine" else scaling
        out = attend(
            query,
            key,
            value,
            similarity=similarity,
            causal=causal,
            mask=attention_mask,
            scale=scale,
            dropout=dropout,
            softcap=softcap,
            sinks=s_aux,
        )
        return out.transpose(1, 2).contiguous(), None

    return attention


def _with_bias(mask: Tensor | None, bias: Tensor, causal: bool, query: Tensor, key: Tensor) -> Tensor:
    """One additive mask from a bias of the scores and a boolean or additive mask."""
    if causal:
        mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    bias = bias[..., : key.shape[-2]]
    if mask is None:
        return bias
    return bias.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else bias + mask


def _without_self(sdpa_mask: Callable[..., Tensor | None]) -> Callable[..., Tensor]:
    """A mask function of transformers that also hides each position from itself, by absolute position."""

    def mask(*, mask_function: Callable[..., Tensor], **arguments: Any) -> Tensor:
        arguments |= {"allow_is_causal_skip": False, "allow_is_bidirectional_skip": False}

        def others(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            return mask_function(batch, head, query, key) & (query != key)

        allowed, without = (sdpa_mask(mask_function=function, **arguments) for function in (mask_function, others))
        assert allowed is not None  # both skips are off
        assert without is not None
        return torch.where(without.any(-1, keepdim=True), without, allowed)

    return mask
