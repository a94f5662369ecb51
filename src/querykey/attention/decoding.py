"""Attention to what a KV cache stores, also where it stores one tensor of which keys are made at each reading.

A cache of K = V keeps values, and keys are these, normalised and rotated. A cache of latents c keeps c, and k = c A_k;
for few queries A_v follows the weighted sum, out = (weights c) A_v, and else v = c A_v precedes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from querykey.attention import kernels, projections
from querykey.attention import masks as masking
from querykey.attention.buffers import Cache
from querykey.attention.projections import Projections, split_heads
from querykey.attention.scoring import Scoring
from querykey.attention.sequence import Sequence, Span
from querykey.layout import Layout

# Values of more bytes are read in parts, which are so large that the keys made of them are still in a near cache of the
# processor when they are read. benchmarks/decoding.py
MOST_BYTES = 2**24
PART_BYTES = 2**22


class Rules(NamedTuple):
    """How a layer attends, besides its design; see `SelfAttention`."""

    causal: bool
    window: int | None
    dropout: float
    softcap: float | None
    alibi: bool


class CachedAttention(Projections):
    """Projections with the attention between queries, keys and values, and attention to a cache.

    Args:
        layout: the design at sizes.
        rules: how the layer attends.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        layout: Layout,
        rules: Rules,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(layout, device=device, dtype=dtype)
        self.causal = rules.causal
        self.window = rules.window
        self.dropout = rules.dropout
        cosine = self.design.similarity == "cosine"  # of which queries and keys come normalised
        self.scoring = Scoring(
            scale=1.0 if cosine else layout.qk_dim**-0.5,
            similarity="dot" if cosine else self.design.similarity,
            causal=rules.causal,
            window=rules.window,
            selfmask=self.design.selfmask,
            softcap=rules.softcap,
            alibi=rules.alibi,
        )
        self.unmasked = self.scoring.unmasked

    @property
    def current_dropout(self) -> float:
        """The probability that applies now: 0 in evaluation."""
        return self.dropout if self.training else 0.0

    def weighted(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scoring: Scoring | None = None) -> Tensor:
        """The weighted values of each head, (batch, heads, query, size), by a kernel."""
        return kernels.run((scoring or self.scoring).call(q, k, v, mask, self.current_dropout, self.sinks))

    def weighted_together(self, q: Tensor, k: Tensor, v: Tensor, lengths: list[int]) -> Tensor | None:
        """The same within sequences of these lengths, which fill all rows in turn, by one kernel; None if none can."""
        call = self.scoring.packed(q, k, v, lengths, self.current_dropout, self.sinks)
        return None if call is None else kernels.run(call)

    def explicit(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scoring: Scoring | None = None, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The weighted values by the formula, and the weights over all keys, of which `first` are no longer stored."""
        out, weights = (scoring or self.scoring).explicit(q, k, v, mask, self.current_dropout, self.sinks)
        return out, F.pad(weights, (first, 0)) if first else weights

    def attend_to_cache(
        self, x: Tensor, mask: Tensor | None, return_weights: bool, cache: Cache, sequence: Sequence
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Extend the cache by `x`, and attend to it: weighted values, weights if asked for, the values of `x`."""
        if self.makes_keys(cache):
            return self._attend_to_shared(x, mask, return_weights, cache, sequence)
        own = cache.next_positions(x.shape[1])
        q, k, new = self.queries_keys_values(x, sequence.next(own))
        if "kv" in self.layout.cached and not self.layout.makes_keys:
            (k,) = (v,) = cache.append(self.window, kv=new)
        else:
            k, v = cache.append(self.window, k=k, v=new)
        q = self.with_temperature(q)
        mask, scoring, first = self.seen(mask, cache, own, q, v)
        if return_weights:
            return *self.explicit(q, k, v, mask, scoring, first), new
        return self.weighted(q, k, v, mask, scoring), None, new

    def seen(
        self, mask: Tensor | None, cache: Cache, own: Span | Tensor, q: Tensor, kept: Tensor
    ) -> tuple[Tensor | None, Scoring, int]:
        """Of what a cache gives to queries at `own`: the mask over it, what is left to mask, and its first position."""
        keys = kept.shape[2]
        if isinstance(own, Span):
            first = own.stop - keys
            return cache.hidden(mask, first, own.stop, kept.device), self.scoring, first
        mask = cache.hidden(mask, 0, keys, kept.device)
        return self.scoring.mask(mask, q, keys, own), self.unmasked, 0

    # A cache that keeps one tensor, of which keys are made at each reading

    def makes_keys(self, cache: Cache) -> bool:
        """Whether keys are made of what this cache stores."""
        return self.layout.makes_keys and not cache.keep_rotated

    def _attend_to_shared(
        self, x: Tensor, mask: Tensor | None, return_weights: bool, cache: Cache, sequence: Sequence
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        own, read = cache.next_positions(x.shape[1]), self.project(x, "qkv")
        (q,) = self.heads(read, "q")
        q = self.with_temperature(self.queries(q, sequence.next(own)))
        new = {"kv": split_heads(read[self.layout.reads["v"]], self.layout.cached["kv"])}
        if isinstance(sequence.given, Tensor):
            new["positions"] = sequence.given.expand(len(x), -1)[:, None, :, None]
        kept, *given = cache.append(self.window, **new)
        mask, scoring, first = self.seen(mask, cache, own, q, kept)
        positions = sequence.stored(first, kept.shape[2], *given)
        own_values = self.heads(read, "v")[0] if self.design.xsa else new["kv"]
        if return_weights:
            k, v = self._keys_and_values(kept, positions)
            return *self.explicit(q, k, v, mask, scoring, first), own_values
        if self.up_proj is not None:
            return self._attend_to_latents(q, kept, positions, mask, scoring), None, own_values

        def attend(q: Tensor, v: Tensor, mask: Tensor | None, positions: Span | Tensor) -> Tensor:
            return self.weighted(q, self.mapped(v, positions, self.k_gain), v, mask, scoring)

        if scoring.alibi or self.sinks is not None:  # which differ between heads
            return attend(q, kept, mask, positions), None, own_values
        return attend_in_parts(attend, q, kept, mask, positions), None, own_values

    def _keys_and_values(self, kept: Tensor, positions: Span | Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of what a cache stores at these positions."""
        k = v = kept
        if self.up_proj is not None:
            k, v = self.heads({self.layout.reads["v"]: kept.squeeze(1)}, "kv")
        return self.mapped(k, positions, self.k_gain), v

    def _attend_to_latents(
        self, q: Tensor, latents: Tensor, positions: Span | Tensor, mask: Tensor | None, scoring: Scoring
    ) -> Tensor:
        """Weighted values, (batch, heads, query, size)."""
        if not self.sums_latents(q):
            k, v = self._keys_and_values(latents, positions)
            return self.weighted(q, k, v, mask, scoring)
        (k,) = self.heads({self.layout.reads["k"]: latents.squeeze(1)}, "k")
        k = self.mapped(k, positions, self.k_gain)
        call = scoring.call(q, k, latents, mask, self.current_dropout, self.sinks)
        return self._up_values(kernels.run(call), call.mask)

    def sums_latents(self, q: Tensor) -> bool:
        """Whether latents are summed, rather than values made of them: less work for few queries."""
        if self.up_proj is None or not projections.is_plain(self.up_proj):
            return False
        if self.layout.bias and (self.sinks is not None or self.current_dropout):
            return False  # the weights do not sum to 1, nor then the bias of values
        groups, size = self.layout.head_shape("v")
        return q.shape[1] * q.shape[2] * (self.layout.latent - size) < self.layout.latent * groups * size

    def _up_values(self, summed: Tensor, mask: Tensor | None) -> Tensor:
        """(batch, heads, query, latent) weighted latents to weighted values, each head through its group's matrix."""
        weights = self.named_weights()
        groups, size = self.layout.head_shape("v")
        per_group = weights["v_up"].view(groups, 1, size, -1).mT
        values: Tensor = (summed.unflatten(1, (groups, -1)) @ per_group).flatten(1, 2)
        if "v_up.bias" not in weights:
            return values
        bias = weights["v_up.bias"].view(groups, 1, 1, size).expand(-1, summed.shape[1] // groups, -1, -1).flatten(0, 1)
        return values + (bias if mask is None else bias * masking.allowed(mask).any(-1, keepdim=True))


def attend_in_parts(
    attend: Callable[[Tensor, Tensor, Tensor | None, Span | Tensor], Tensor],
    q: Tensor,
    v: Tensor,
    mask: Tensor | None,
    positions: Span | Tensor,
) -> Tensor:
    """``attend(q, v, mask, positions)``, on a CPU a few heads at a time where there are many values.

    Args:
        attend: from (rows, heads per group, query, size), (rows, 1, key, size), a mask and positions to the attention.
        q: (batch, heads, query, size).
        v: (batch, groups, key, size).
        mask: broadcasts to (batch, heads, query, key), or None.
        positions: of the keys: a span, (key,) or (batch, key).

    Returns:
        (batch, heads, query, size).
    """
    if not v.is_cpu or v.numel() * v.element_size() <= MOST_BYTES:
        return attend(q, v, mask, positions)
    batch, heads, queries, _ = q.shape
    groups, keys = v.shape[1:3]
    rows = max(1, PART_BYTES // (v[0, 0].numel() * v.element_size()))
    # heads are independent, those of one group share its values: (batch × groups, heads per group, ...)
    q, v = q.unflatten(1, (groups, -1)).flatten(0, 1), v.flatten(0, 1).unsqueeze(1)
    masks: Iterable[Tensor | None] = itertools.repeat(None)
    if mask is not None:
        mask = mask.expand(batch, heads, queries, keys)
        masks = mask.unflatten(1, (groups, -1)).flatten(0, 1).split(rows)
    placed: Iterable[Span | Tensor] = itertools.repeat(positions)
    if isinstance(positions, Tensor) and positions.ndim == 2:
        placed = positions.repeat_interleave(groups, 0).split(rows)
    parts = zip(q.split(rows), v.split(rows), masks, placed, strict=False)
    return torch.cat([attend(*part) for part in parts]).view(batch, heads, queries, -1)
