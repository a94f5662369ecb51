"""From queries, keys and values to weighted values: one value holds every choice between them.

scores = similarity(q, k); weights = softmax(scores, masked); out = weights v
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from querykey.attention import kernels, masks, modifiers, reference, similarity
from querykey.design import Similarity


@dataclass(frozen=True)
class Scoring:
    """How queries and keys give attention weights.

    Args:
        scale: factor on the similarity.
        similarity: see `attend`.
        causal: a query sees no later key; the last query is aligned to the last key.
        window: with `causal`, a query sees this many keys at most, its own among them.
        selfmask: a query does not see its own key unless nothing else is left.
        softcap: scores stay between −softcap and softcap.
        alibi: scores fall with the distance of query and key, at a slope of each head.
    """

    scale: float
    similarity: Similarity = "dot"
    causal: bool = False
    window: int | None = None
    selfmask: bool = False
    softcap: float | None = None
    alibi: bool = False

    @property
    def unmasked(self) -> Scoring:
        """The same where `mask` has been applied already."""
        return replace(self, causal=False, window=None, selfmask=False, alibi=False)

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """(batch, heads, query, key), before masks."""
        raw = similarity.scores(q, reference.repeat_heads(k, q), self.similarity, self.scale)
        return modifiers.capped(raw, self.softcap)

    def mask(self, mask: Tensor | None, q: Tensor, keys: int, positions: Tensor | None = None) -> Tensor | None:
        """`mask` combined with causality, window, self-mask and ALiBi; None where all is allowed. See `combine`."""
        return masks.combine(
            mask,
            q.shape[-2],
            keys,
            causal=self.causal,
            selfmask=self.selfmask,
            window=self.window,
            device=q.device,
            positions=positions,
            slopes=self._slopes(q),
        )

    def _slopes(self, q: Tensor) -> Tensor | None:
        return modifiers.alibi_slopes(q.shape[1], q.device) if self.alibi else None

    def call(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        dropout: float = 0.0,
        sinks: Tensor | None = None,
    ) -> kernels.Call:
        """The kernel call that gives the weighted values; (batch, heads, length, size) each."""
        q, k, v, options = self._products(q, k, v, dropout, sinks)
        return kernels.prepare(q, k, v, mask=mask, **options)

    def packed(
        self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int], dropout: float = 0.0, sinks: Tensor | None = None
    ) -> kernels.Call | None:
        """The same within sequences of these lengths, which fill all rows in turn; None if no kernel can."""
        q, k, v, options = self._products(q, k, v, dropout, sinks)
        return kernels.packed(q, k, v, lengths, **options)

    def explicit(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None,
        dropout: float = 0.0,
        sinks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The weighted values and the weights before dropout, by the formula."""
        q, k, v = _one_dtype(q, k, v)
        mask = self.mask(mask, q, k.shape[-2])
        weights = reference.masked_softmax(self.scores(q, k), mask, sinks).to(v.dtype)
        return reference.weighted_sum(weights, v, dropout), weights

    def _products(
        self, q: Tensor, k: Tensor, v: Tensor, dropout: float, sinks: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, dict[str, Any]]:
        """Tensors whose scores are scaled dot products, and the options of a kernel."""
        q, k, v = _one_dtype(q, k, v)
        changes = modifiers.Modifiers(self.softcap, self._slopes(q), sinks)
        q, k = similarity.as_dot_product(q, k, self.similarity, exact=changes.needs_scores)
        return q, k, v, {
            "scale": self.scale, "causal": self.causal, "dropout": dropout, "selfmask": self.selfmask,
            "window": self.window, "modifiers": changes,
        }  # fmt: skip


def _one_dtype(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """In the dtype of autocast where it is enabled: norms leave float32 there, and unprojected inputs may be so."""
    if not torch.is_autocast_enabled(v.device.type) or v.dtype == torch.float64:
        return q, k, v
    dtype = torch.get_autocast_dtype(v.device.type)
    return q.to(dtype), k.to(dtype), v.to(dtype)
