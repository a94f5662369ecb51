"""Self-attention of any design: one fused projection, maps on queries and keys, one fused kernel, one output.

x -> `in_proj` -> (latent -> `up_proj`) -> q, k, v -> core, norm, rotation -> kernel -> `o_proj`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from querykey.attention import checks, kernels, masks, modifiers, modules, packed, reference
from querykey.attention.buffers import Cache
from querykey.attention.cache import KVCache
from querykey.attention.checks import Inputs
from querykey.attention.decoding import CachedAttention, Rules
from querykey.attention.sequence import Positions, Sequence, Span
from querykey.design import Design
from querykey.layout import Layout
from querykey.positions import Rotary

AttentionFunction = Callable[[Tensor, Tensor, Tensor, Callable[[Tensor, Tensor], Tensor], Tensor | None], Tensor]
"""What `SelfAttention.forward_with` calls."""


class SelfAttention(CachedAttention):
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
        rotary: queries and keys are rotated by position; True for `Rotary()`, or a `Rotary`. Values never are.
        window: with `causal`, a position sees itself and the window − 1 before it, no more (Mistral 7B, 2310.06825,
            section 2); a cache then keeps little more than those.
        bias: each projection has a bias.
        dropout: probability that an attention weight is dropped in training.
        context_dim: the layer always attends to a context, which has this width.
        softcap: scores are softcap · tanh(scores / softcap) (Gemma 2, 2408.00118).
        sinks: each head has a learned score that takes part in its softmax and reads no value (gpt-oss, 2508.10925).
        alibi: scores fall with the distance of query and key in the sequence, at a slope of each head (2108.12409).
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
        rotary: Rotary | bool | None = False,
        window: int | None = None,
        bias: bool = False,
        dropout: float = 0.0,
        context_dim: int | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        alibi: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be a probability from 0 to below 1, not {dropout}")
        masks.check_window(window, causal)
        modifiers.check(softcap, None, heads)
        layout = Layout.of(
            design, dim, heads, head_dim=head_dim, bias=bias, rotary=rotary, context_dim=context_dim, sinks=sinks
        )
        rules = Rules(causal, window, dropout, softcap, alibi)
        super().__init__(layout, rules, device=device, dtype=dtype)

    @classmethod
    def from_module(cls, module: nn.Module, *, causal: bool = False, window: int | None = None) -> SelfAttention:
        """A layer with the weights, dropout and mode of an `nn.MultiheadAttention`; see also `querykey.hf.from_module`.

        Args:
            module: with the same width for keys and values.
            causal, window: of the layer; the module takes masks when it is called.

        Raises:
            ValueError: if the module has a part that no layer has, with its name.
        """
        layer = cls(**modules.multihead_options(module), causal=causal, window=window).train(module.training)
        modules.copy(modules.named(modules.read_multihead(module)), layer.named_weights())
        return layer

    def write_to(self, module: nn.MultiheadAttention) -> None:
        """Write the plain weights of this layer to a module with the same sizes, which then gives its results.

        Cores and latents are multiplied in, and grouped keys repeated. The module's caller gives causal masks.

        Raises:
            ValueError: if the layer computes what the module cannot, with what that is.
        """
        plain = type(self).from_module(module, causal=self.causal, window=self.window)
        modules.write_multihead(modules.plain_weights(self, plain, module), module)

    def extra_repr(self) -> str:
        """What was chosen, so that ``print(model)`` says it."""
        layout = self.layout
        window = "" if self.window is None else f", window={self.window}"
        design = repr(str(self.design))
        rotary = True if layout.rotary == Rotary() else layout.rotary or False
        return f"{layout.dim}, {layout.heads}, {design}, causal={self.causal}, rotary={rotary}{window}"

    @overload
    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = ...,
        context: Tensor | Cache | None = ...,
        return_weights: Literal[False] = ...,
        cache: Cache | None = ...,
        key_padding: Tensor | None = ...,
        positions: Positions | None = ...,
        document: Tensor | None = ...,
        values: Tensor | None = ...,
    ) -> Tensor: ...
    @overload
    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = ...,
        context: Tensor | Cache | None = ...,
        *,
        return_weights: Literal[True],
        cache: Cache | None = ...,
        key_padding: Tensor | None = ...,
        positions: Positions | None = ...,
        document: Tensor | None = ...,
        values: Tensor | None = ...,
    ) -> tuple[Tensor, Tensor]: ...

    def forward(
        self,
        x: Float[Tensor, "batch length dim"],
        mask: Tensor | None = None,
        context: Float[Tensor, "batch keys context_dim"] | Cache | None = None,
        return_weights: bool = False,
        cache: Cache | None = None,
        key_padding: Bool[Tensor, "batch key"] | None = None,
        positions: Positions | None = None,
        document: Int[Tensor, "#batch length"] | None = None,
        values: Float[Tensor, "batch keys context_dim"] | None = None,
    ) -> Float[Tensor, "batch length dim"] | tuple[Tensor, Tensor]:
        """Attend from `x` to itself, to what `cache` holds and itself, or to `context`.

        Args:
            x: (batch, length, dim); nested (jagged) tensors give nested results.
            mask: boolean, True = may attend, or additive; broadcasts to (batch, heads, query, key), where the keys of a
                cache are all positions that it has seen, or the capacity of a static one. A query with nothing left
                gives zeros before the output projection.
            context: keys and values are made from this instead (cross-attention); or what `read_context` gave.
            return_weights: also give the weights before dropout; this takes the explicit softmax, with memory for all
                pairs of positions.
            cache: `x` are the next positions after those of the cache, which is extended by them.
            key_padding: True where a key is a token and not padding. Padding gives zeros before the output projection.
                Rotary positions count tokens only, so that padding may stand anywhere.
            positions: rotary positions of `x`, (length,) or (batch, length); with `context`, a pair: of x, of context.
                Counted from 0, or from the end of the cache, when not given.
            document: packed sequences: the document of each token. Tokens attend within their document, whose tokens
                are neighbours. No mask of all pairs is made, except in a compiled graph.
            values: with a `context` of keys, values are made from this.

        Returns:
            (batch, length, dim), and with `return_weights` also (batch, heads, length, keys).

        Raises:
            ValueError: if shapes, dtypes or devices do not fit, or arguments exclude each other.
        """
        if x.is_nested:
            return self._forward_nested(x, document is None and cache is None and context is None and mask is None)
        call = Inputs(x, mask, context, cache, key_padding, positions, document, values)
        checks.check_inputs(self.layout, self.reference_weight(), self.causal, call)
        sequence = Sequence(key_padding if self.layout.frequencies else None, positions)
        if document is not None or (key_padding is not None and context is None and cache is None):
            pieces = packed.pieces(call, return_weights)
            if pieces is not None:
                return self._attend_in_pieces(x, pieces, sequence)
            mask = packed.restricted(mask, document)
        if key_padding is not None:
            mask = masks.restrict(mask, key_padding[:, None, None, :])
        if cache is not None:
            cache.bind(self)
            out, weights, own = self.attend_to_cache(x, mask, return_weights, cache, sequence)
        else:
            q, k, v = self._queries_keys_values(x, context, values, sequence)
            q, own = self.with_temperature(q), v
            out, weights = self.explicit(q, k, v, mask) if return_weights else (self.weighted(q, k, v, mask), None)
        if key_padding is not None and context is None:
            out = out.masked_fill(~packed.own_tokens(key_padding, cache, x.shape[1])[:, None, :, None], 0.0)
        out = self.output(out, own)
        return out if weights is None else (out, weights)

    def read_context(
        self,
        context: Float[Tensor, "batch keys context_dim"],
        values: Float[Tensor, "batch keys context_dim"] | None = None,
        positions: Tensor | None = None,
    ) -> KVCache:
        """Keys and values of a context, made once for many steps: ``layer(x, context=layer.read_context(context))``.

        Args:
            context: what keys, and values unless `values` is given, are made of.
            values: what values are made of.
            positions: rotary positions of the context; steps then give those of x as ``positions=``.
        """
        checks.check_source("context", context, self.layout, self.reference_weight(), of_context=True)
        own = Span(0, context.shape[1]) if positions is None else positions
        k, v = self.keys_values_of(context, values, own)
        cache = KVCache()
        cache.bind(self)
        cache.append(k=k, v=v)
        return cache

    def _queries_keys_values(
        self, x: Tensor, context: Tensor | Cache | None, values: Tensor | None, sequence: Sequence
    ) -> tuple[Tensor, Tensor, Tensor]:
        if context is None:
            return self.queries_keys_values(x, sequence.next(Span(0, x.shape[1])))
        of_x, of_keys = sequence.of_context(x.shape[1])
        q = self.queries_of(x, of_x)
        if isinstance(context, Cache):
            context.bind(self)
            k, v = context.contents().values()
        else:
            k, v = self.keys_values_of(context, values, Span(0, context.shape[1]) if of_keys is None else of_keys)
        return q, k, v

    def _attend_in_pieces(self, x: Tensor, pieces: packed.Pieces, sequence: Sequence) -> Tensor:
        """Self-attention within documents, or among the tokens of rows with padding."""
        q, k, v = self.queries_keys_values(x, sequence.next(Span(0, x.shape[1])))
        q = self.with_temperature(q)
        out = packed.attend(lambda q, k, v: self.weighted(q, k, v, None), self.weighted_together, q, k, v, pieces)
        return self.output(out, v)

    def _forward_nested(self, x: Tensor, alone: bool) -> Tensor:
        """A jagged tensor holds its rows side by side, as packed documents are."""
        if not alone:
            raise ValueError("a nested tensor holds its own lengths; give it without mask, context, cache and document")
        offsets: Tensor = x.offsets()  # type: ignore[attr-defined]
        document = torch.repeat_interleave(torch.arange(len(offsets) - 1, device=x.device), offsets.diff())
        out = self.forward(x.values().unsqueeze(0), document=document.unsqueeze(0))
        return torch.nested.nested_tensor_from_jagged(out.squeeze(0), offsets)

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
        checks.check_inputs(self.layout, self.reference_weight(), self.causal, Inputs(x, mask))
        if self.sinks is not None:
            raise ValueError("forward_with gives scores and no sinks, which this layer has; call the layer itself")
        q, k, v = self.queries_keys_values(x, Span(0, x.shape[1]))
        keys, values = reference.repeat_heads(k, q), reference.repeat_heads(v, q)

        def scores(q: Tensor, k: Tensor) -> Tensor:
            return self.scoring.scores(self.with_temperature(q), k)

        return self.output(attention(q, keys, values, scores, self.scoring.mask(mask, q, k.shape[-2])), v)

    def backend(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        context: Tensor | None = None,
        cache: Cache | None = None,
    ) -> str:
        """What ``layer(x, mask, context)`` will run: "flash", "efficient", "cudnn", "blocked", "products", or "math".

        "blocked" goes by blocks of rows, on a CPU, where half of a causal mask, or most of a window's, can be saved.
        "products" is the formula: for a single query of a CPU, where the cache holds fewer heads than there are
        queries, or keys and values of different sizes, and where latents are summed. "math" is the explicit, quadratic
        kernel of PyTorch; the CPU takes it for dropout, and for a mask that requires a gradient. The `cache` is read
        and not extended.
        """
        checks.check_inputs(self.layout, self.reference_weight(), self.causal, Inputs(x, mask, context, cache))
        scoring, keys = self.scoring, x.shape[1] if context is None else context.shape[1]
        if cache is not None:
            keys = cache.visible(x.shape[1], self.window)
        q = self._empty(x, x.shape[1], (self.layout.heads, self.layout.qk_dim))
        k, v = (self._empty(x, keys, self.layout.head_shape(role)) for role in "kv")
        if cache is not None:
            mask, scoring, _ = self.seen(mask, cache, cache.next_positions(x.shape[1]), q, k)
            if self.makes_keys(cache) and self.sums_latents(q):
                v = self._empty(x, keys, (1, self.layout.latent))
        return kernels.backend_of(scoring.call(q, k, v, mask, self.current_dropout, self.sinks))

    def _empty(self, x: Tensor, length: int, shape: tuple[int, int]) -> Tensor:
        """A tensor with the layout, dtype and gradient that a projection of `x` has, and no values."""
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        tensor = x.new_empty(x.shape[0], length, *shape, dtype=dtype).transpose(1, 2)
        tracked = x.requires_grad or any(parameter.requires_grad for parameter in self.parameters())
        return tensor.requires_grad_(torch.is_grad_enabled() and tracked)
