"""Self-attention of any design: one fused projection, maps on queries and keys, one fused kernel, one output.

x -> `in_proj` -> (latent -> `up_proj`) -> q, k, v -> core, norm, rotation -> kernel -> `o_proj`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from querykey.attention import checks, decoding, kernels, maps, masks, projections, reference
from querykey.attention.cache import KVCache
from querykey.attention.projections import Projections, split_heads
from querykey.attention.scoring import Scoring
from querykey.design import Design
from querykey.layout import Layout

AttentionFunction = Callable[[Tensor, Tensor, Tensor, Callable[[Tensor, Tensor], Tensor], Tensor | None], Tensor]
"""What `SelfAttention.forward_with` calls."""


class SelfAttention(Projections):
    """Multi-head attention whose projections are shared as `design` says.

        head h: softmax(s(q, k)) v,  q = x W_Q,  k = x W_K,  v = x W_V;  the heads' results, side by side, times W_O

    `Projections` says how the weights are stored, by which names, and how they are drawn.

    Args:
        dim: width of the model.
        heads: number of query heads.
        design: which projections are shared, and options; see `Design`.
        head_dim: head size of values, and of queries and keys unless the design's `qk_dim` says otherwise;
            ``dim / heads`` when not given.
        causal: a position sees itself and what came before; the last query is aligned to the last key.
        rotary: queries and keys are rotated by position (RoFormer, 2104.09864); values never are.
        window: with `causal`, a position sees itself and the window − 1 before it, no more (Mistral 7B, 2310.06825,
            section 2); a cache then keeps little more than those.
        bias: each projection has a bias.
        dropout: probability that an attention weight is dropped in training.
        device, dtype: of the parameters.

    Raises:
        DesignError: if the design is impossible at these sizes.
        ValueError: if dropout is no probability, or the window no number of positions.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        design: Design | str = "q,k,v",
        *,
        head_dim: int | None = None,
        causal: bool = False,
        rotary: bool = False,
        window: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        layout = Layout.of(design, dim, heads, head_dim=head_dim, bias=bias, rotary=rotary)
        super().__init__(layout, device=device, dtype=dtype)
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be a probability from 0 to below 1, not {dropout}")
        masks.check_window(window, causal)
        self.causal = causal
        self.window = window
        self.dropout = dropout
        cosine = self.design.similarity == "cosine"  # of which queries and keys come normalised
        self.scoring = Scoring(
            scale=1.0 if cosine else layout.qk_dim**-0.5,
            similarity="dot" if cosine else self.design.similarity,
            causal=causal,
            window=window,
            selfmask=self.design.selfmask,
        )

    def extra_repr(self) -> str:
        """What was chosen, so that ``print(model)`` says it."""
        layout = self.layout
        window = "" if self.window is None else f", window={self.window}"
        design = repr(str(self.design))
        return f"{layout.dim}, {layout.heads}, {design}, causal={self.causal}, rotary={layout.rotary}{window}"

    @overload
    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = ...,
        context: Tensor | None = ...,
        return_weights: Literal[False] = ...,
        cache: KVCache | None = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = ...,
        context: Tensor | None = ...,
        *,
        return_weights: Literal[True],
        cache: KVCache | None = ...,
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        mask: Tensor | None = None,
        context: Float[Tensor, "batch keys dim"] | None = None,
        return_weights: bool = False,
        cache: KVCache | None = None,
    ) -> Float[Tensor, "batch length dim"] | tuple[Tensor, Tensor]:
        """Attend from `x` to itself, to what `cache` holds and itself, or to `context`.

        Args:
            x: (batch, length, dim).
            mask: boolean, True = may attend, or additive; broadcasts to (batch, heads, query, key), where the keys of a
                cache are all positions that it has seen. Key padding is ``mask[:, None, None, :]``. A query with
                nothing left gives zeros before the output projection.
            context: keys and values are made from this instead (cross-attention).
            return_weights: also give the weights before dropout; this takes the explicit softmax, with memory for all
                pairs of positions.
            cache: `x` are the next positions after those of the cache, which is extended by them.

        Returns:
            (batch, length, dim), and with `return_weights` also (batch, heads, length, keys).

        Raises:
            ValueError: if shapes, dtypes or devices do not fit, or `context` meets a cache or a self-mask.
        """
        checks.check_inputs(self.layout, self.reference_weight(), x, mask, context, cache)
        if cache is not None and self.layout.makes_keys and not cache.keep_rotated:
            return self._attend_to_shared(x, mask, return_weights, cache)
        q, k, v = self._queries_keys_values(x, context, cache)
        q = self._with_temperature(q)
        first = 0
        if cache is not None:
            first = len(cache) - v.shape[2]
            mask = cache.hidden(mask, first, len(cache), x.device)
        if return_weights:
            out, weights = self.scoring.explicit(q, k, v, mask, self._dropout)
            return self.output(out), F.pad(weights, (first, 0)) if first else weights
        return self.output(kernels.run(self.scoring.call(q, k, v, mask, self._dropout)))

    def forward_with(
        self, attention: AttentionFunction, x: Float[Tensor, "batch length dim"], mask: Tensor | None = None
    ) -> Float[Tensor, "batch length dim"]:
        """Attend from `x` to itself with `attention` in place of the kernel, for traces and interventions.

        ``attention(query, key, value, scores, mask)`` returns the weighted values of each head. It gets

        - query, key, value: (batch, heads, length, size), normalised and rotated as the design says, with grouped keys
          and values repeated for each query head;
        - scores: maps queries and keys to (batch, heads, length, length), before the mask;
        - mask: `mask` combined with causality, window and self-mask; None where every pair is allowed.
        """
        checks.check_inputs(self.layout, self.reference_weight(), x, mask, None, None)
        q, k, v = self._queries_keys_values(x, None, None)
        keys, values = reference.repeat_heads(k, q), reference.repeat_heads(v, q)

        def scores(q: Tensor, k: Tensor) -> Tensor:
            return self.scoring.scores(self._with_temperature(q), k)

        return self.output(attention(q, keys, values, scores, self.scoring.mask(mask, q, k)))

    def backend(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        cache: KVCache | None = None,
    ) -> str:
        """What ``layer(x, mask, context)`` will run: "flash", "efficient", "cudnn", "blocked", "products", or "math".

        "blocked" goes by blocks of rows, on a CPU, where half of a causal mask, or most of a window's, can be saved.
        "products" is the formula for a single query of a CPU, where the cache holds fewer heads than there are
        queries, or keys and values of different sizes. "math" is the explicit, quadratic one; the CPU takes it for
        dropout, and for a mask that wants a gradient. The `cache` is read and not extended.
        """
        checks.check_inputs(self.layout, self.reference_weight(), x, mask, context, cache)
        keys, shape = x.shape[1] if context is None else context.shape[1], self.layout.head_shape
        if cache is not None:
            keys, end = cache.reach(x.shape[1], self.window), len(cache) + x.shape[1]
            mask = cache.hidden(mask, end - keys, end, x.device)
        q = self._empty(x, x.shape[1], (self.layout.heads, self.layout.qk_dim))
        k, v = self._empty(x, keys, shape("k")), self._empty(x, keys, shape("v"))
        if cache is not None and self.layout.makes_keys and not cache.keep_rotated and self._sums_latents(q):
            v = self._empty(x, keys, (1, self.layout.latent))
        return kernels.backend_of(self.scoring.call(q, k, v, mask, self._dropout))

    def _empty(self, x: Tensor, length: int, shape: tuple[int, int]) -> Tensor:
        """A tensor with the layout, dtype and gradient that a projection of `x` has, and no values."""
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        tensor = x.new_empty(x.shape[0], length, *shape, dtype=dtype).transpose(1, 2)
        tracked = x.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        return tensor.requires_grad_(torch.is_grad_enabled() and tracked)

    @property
    def _dropout(self) -> float:
        return self.dropout if self.training else 0.0

    # From x to queries, keys and values

    def _queries_keys_values(
        self, x: Tensor, context: Tensor | None, cache: KVCache | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(batch, heads, length, size) each, ready for the kernel; keys and values of all positions to attend to."""
        if context is None:
            q, k, v = self.heads(self.project(x, "qkv"), "qkv")
        else:
            (q,), (k, v) = (
                self.heads(self.project(source, roles), roles) for source, roles in ((x, "q"), (context, "kv"))
            )
        start = 0 if cache is None else len(cache)
        q = self._queries(q, start)
        k = q if self.layout.one_query_and_key and context is None else self._map(k, start, self.k_gain)
        if cache is None:
            return q, k, v
        if "kv" in self.layout.cached and not self.layout.makes_keys:
            (k,) = (v,) = cache.append(self.window, kv=v)
        else:
            k, v = cache.append(self.window, k=k, v=v)
        return q, k, v

    def _queries(self, q: Tensor, start: int) -> Tensor:
        if self.core is not None:
            q = maps.apply_core(q, self.core, self.layout)
        return self._map(q, start, self.q_gain)

    def _map(self, tensor: Tensor, start: int, gain: Tensor | None) -> Tensor:
        """Norm and rotation of queries or keys at the positions from `start`."""
        if not self.layout.maps_keys:
            return tensor
        return maps.apply(tensor, start, self.qk_gain if gain is None else gain, self.layout)

    def _with_temperature(self, q: Tensor) -> Tensor:
        return q if self.temperature is None else q * self.temperature[:, None, None]

    # A cache that keeps one tensor, of which keys are made at each reading

    def _attend_to_shared(
        self, x: Tensor, mask: Tensor | None, return_weights: bool, cache: KVCache
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Extend the cache by `x` and attend to it, with keys made of the tensor that it keeps."""
        read = self.project(x, "qkv")
        (q,) = self.heads(read, "q")
        q = self._with_temperature(self._queries(q, len(cache)))
        ((_, shape),) = self.layout.cached.items()
        (kept,) = cache.append(self.window, kv=split_heads(read[self.layout.reads["v"]], shape))
        first = len(cache) - kept.shape[2]
        mask = cache.hidden(mask, first, len(cache), x.device)
        if return_weights:
            k, v = self._keys_and_values(kept, first)
            out, weights = self.scoring.explicit(q, k, v, mask, self._dropout)
            return self.output(out), F.pad(weights, (first, 0)) if first else weights

        if self.up_proj is not None:
            return self.output(self._attend_to_latents(q, kept, first, mask))

        def attend(q: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return kernels.run(self.scoring.call(q, self._map(v, first, self.k_gain), v, mask, self._dropout))

        return self.output(decoding.attend_in_parts(attend, q, kept, mask))

    def _keys_and_values(self, kept: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Keys and values of a cache's positions from `first`, of the one tensor that it keeps."""
        k = v = kept
        if self.up_proj is not None:
            k, v = self.heads({self.layout.reads["v"]: kept.squeeze(1)}, "kv")
        return self._map(k, first, self.k_gain), v

    def _attend_to_latents(self, q: Tensor, latents: Tensor, first: int, mask: Tensor | None) -> Tensor:
        """Weighted values, (batch, heads, query, size), with the values' matrix after the sum for few queries."""
        if not self._sums_latents(q):
            return kernels.run(self.scoring.call(q, *self._keys_and_values(latents, first), mask, self._dropout))
        read = {self.layout.reads["k"]: latents.squeeze(1)}
        (k,) = self.heads(read, "k")
        call = self.scoring.call(q, self._map(k, first, self.k_gain), latents, mask, self._dropout)
        return self._up_values(kernels.run(call), call.mask)

    def _sums_latents(self, q: Tensor) -> bool:
        """Whether latents are summed, rather than values made of them: less work for few queries."""
        if self.up_proj is None or not projections.is_plain(self.up_proj):
            return False
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
        return values + (bias if mask is None else bias * masks.allowed(mask).any(-1, keepdim=True))
