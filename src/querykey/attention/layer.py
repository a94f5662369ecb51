"""Self-attention of any design: one fused projection, maps on queries and keys, one fused kernel, one output.

x -> rows of `in_proj` -> q, k, v -> core, norm, rotation -> kernel -> `o_proj`
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, overload

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from querykey.attention import checks, decoding, kernels, maps, masks, reference, similarity
from querykey.attention.cache import KVCache
from querykey.design import Design, Similarity
from querykey.layout import Layout, PlainWeights, Weight

AttentionFunction = Callable[[Tensor, Tensor, Tensor, Callable[[Tensor, Tensor], Tensor], Tensor | None], Tensor]
"""What `SelfAttention.forward_with` calls."""


class SelfAttention(nn.Module):
    """Multi-head attention whose projections are shared as `design` says.

        head h: softmax(s(q, k)) v,  q = x W_Q,  k = x W_K,  v = x W_V;  the heads' results, side by side, times W_O

    All projections are rows of one parameter, `in_proj`, so that they are one matrix product; a shared projection is
    there once. `named_weights` gives each by its name in the design's `Layout`.

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

    Raises:
        DesignError: if the design cannot be at these sizes.
        ValueError: if dropout is no probability, or the window no number of positions.
    """

    core: Tensor | None
    temperature: Tensor | None
    q_gain: Tensor | None
    k_gain: Tensor | None
    qk_gain: Tensor | None

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
    ) -> None:
        super().__init__()
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"dropout must be a probability from 0 to below 1, not {dropout}")
        masks.check_window(window, causal)
        self.design = Design.parse(design)
        self.layout = Layout.of(self.design, dim, heads, head_dim=head_dim, bias=bias, rotary=rotary)
        self.causal = causal
        self.window = window
        self.dropout = dropout
        # Worked out once: asking the layout at each call would cost small shapes several per cent.
        self._rows = _rows(self.layout)
        self._reads = self.layout.reads
        self._head_shapes = {role: self.layout.head_shape(role) for role in ("q", "k", "v")}
        self._one_cached = self.design.shares("k", "v")
        self._places = rotary or self.design.qknorm or self.design.similarity == "cosine"
        self._one_placed = self.design.shares("q", "k") and self.design.core is None
        total = sum(heads * size for heads, size in self.layout.projections.values())
        self.in_proj = nn.Parameter(torch.empty(total, dim))
        self.in_proj_bias = nn.Parameter(torch.empty(total)) if bias else None
        self.o_proj = nn.Parameter(torch.empty(dim, self.layout.heads * self.layout.head_dim))
        self.o_proj_bias = nn.Parameter(torch.empty(dim)) if bias else None
        shapes = {weight.name: weight.shape for weight in self.layout.weights}
        for name in ("core", "temperature", "q_gain", "k_gain", "qk_gain"):
            parameter = nn.Parameter(torch.empty(shapes[name])) if name in shapes else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def extra_repr(self) -> str:
        """What was chosen, so that ``print(model)`` says it."""
        layout = self.layout
        window = "" if self.window is None else f", window={self.window}"
        design = repr(str(self.design))
        return f"{layout.dim}, {layout.heads}, {design}, causal={self.causal}, rotary={layout.rotary}{window}"

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight anew, as the layout's table says, in the order of that table."""
        tensors = self.named_weights()
        for weight in self.layout.weights:
            initialise(tensors[weight.name], weight, generator)

    def named_weights(self) -> dict[str, Tensor]:
        """Each weight of the layout by its name: parameters, or views of the rows of `in_proj`."""
        named: dict[str, Tensor] = {}
        for name, rows in self._rows.items():
            named[name] = self.in_proj[rows]
            if self.in_proj_bias is not None:
                named[f"{name}.bias"] = self.in_proj_bias[rows]
        others = {"o_proj": self.o_proj, "o_proj.bias": self.o_proj_bias, "core": self.core}
        others |= {
            "temperature": self.temperature,
            "q_gain": self.q_gain,
            "k_gain": self.k_gain,
            "qk_gain": self.qk_gain,
        }
        return named | {name: tensor for name, tensor in others.items() if tensor is not None}

    def weights(self) -> PlainWeights:
        """The plain W_Q, W_K, W_V and W_O per head that this layer amounts to; see `PlainWeights`."""
        return self.layout.expand(self.named_weights())

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
        checks.check_inputs(self.layout, self.in_proj, x, mask, context, cache)
        q, k, v = self._queries_keys_values(x, context, cache)
        q = self._with_temperature(q)
        first = 0
        if cache is not None:
            first = len(cache) - v.shape[2]
            mask = cache.hidden(mask, first, len(cache), x.device)
        if return_weights:
            k = self._place(v, first, self.k_gain) if k is None else k
            out, weights = self._explicit(q, k, v, mask)
            return self._output(out), F.pad(weights, (first, 0)) if first else weights
        if k is not None:
            return self._output(kernels.run(self._call(q, k, v, mask)))

        def attend(q: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
            return kernels.run(self._call(q, self._place(v, first, self.k_gain), v, mask))

        return self._output(decoding.attend_in_parts(attend, q, v, mask))

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
        checks.check_inputs(self.layout, self.in_proj, x, mask, None, None)
        q, k, v = self._queries_keys_values(x, None, None)
        assert k is not None  # only a cache leaves keys to be made later
        keys, values = reference.repeat_heads(k, q), reference.repeat_heads(v, q)

        def scores(q: Tensor, k: Tensor) -> Tensor:
            return self._scores(self._with_temperature(q), k)

        return self._output(attention(q, keys, values, scores, self._full_mask(mask, q, k)))

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
        checks.check_inputs(self.layout, self.in_proj, x, mask, context, cache)
        q, k, v = self._queries_keys_values(x, context, None)
        assert k is not None
        if cache is not None:
            seen, end = cache.reach(x.shape[1], self.window), len(cache) + x.shape[1]
            mask = cache.hidden(mask, end - seen, end, x.device)
            k, v = (tensor[:, :, :1].expand(-1, -1, seen, -1) for tensor in (k, v))  # only their shapes matter
        return kernels.backend_of(self._call(q, k, v, mask))

    # From x to queries, keys and values

    def _queries_keys_values(
        self, x: Tensor, context: Tensor | None, cache: KVCache | None
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """(batch, heads, length, size) each, ready for the kernel; keys and values of all positions to attend to.

        Keys are None where they are yet to be placed: a cache keeps them as the values, which are one tensor with them.
        """
        reads = self._reads
        if context is None:
            read = self._project(x, *reads.values())
            source = read[reads["q"]]
        else:
            source = self._project(x, reads["q"])[reads["q"]]
            read = self._project(context, reads["k"], reads["v"])
        q, k, v = (
            self._split(source, "q"),
            self._split(read[reads["k"]], "k"),
            self._split(read[reads["v"]], "v"),
        )
        start = 0 if cache is None else len(cache)
        if self.core is not None:
            q = maps.apply_core(q, self.core, self.layout)
        q = placed = self._place(q, start, self.q_gain)
        if cache is not None and self._one_cached and not (self._places and cache.keep_rotated):
            (v,) = cache.append(self.window, kv=v)
            return q, None if self._places else v, v
        k = placed if self._one_placed and context is None else self._place(k, start, self.k_gain)
        if cache is not None:
            k, v = cache.append(self.window, k=k, v=v)
        return q, k, v

    def _project(self, source: Tensor, *names: str) -> dict[str, Tensor]:
        """The named projections of `source` as one product; ``"x"`` is `source` itself.

        The rows of what is asked for lie side by side: queries come first in `in_proj`, keys and values last.
        """
        wanted = [name for name in self._rows if name in names]
        if not wanted:
            return {"x": source}
        rows = slice(self._rows[wanted[0]].start, self._rows[wanted[-1]].stop)
        whole = rows == slice(0, len(self.in_proj))  # a slice of all would still cost its gradient a copy
        weight = self.in_proj if whole else self.in_proj[rows]
        bias = self.in_proj_bias if whole or self.in_proj_bias is None else self.in_proj_bias[rows]
        sizes = [self._rows[name].stop - self._rows[name].start for name in wanted]
        parts = F.linear(source, weight, bias).split(sizes, -1)
        return {"x": source} | dict(zip(wanted, parts, strict=True))

    def _split(self, tensor: Tensor, role: str) -> Tensor:
        """(batch, length, heads × size) to (batch, heads, length, size), as a view."""
        return tensor.view(*tensor.shape[:2], *self._head_shapes[role]).transpose(1, 2)

    def _place(self, tensor: Tensor, start: int, gain: Tensor | None) -> Tensor:
        return (
            maps.place(tensor, start, self.qk_gain if gain is None else gain, self.layout) if self._places else tensor
        )

    # From queries, keys and values to the output

    @property
    def _similarity_and_scale(self) -> tuple[Similarity, float]:
        """What is left to the kernel: the cosine has been normalised and scaled by its temperature."""
        if self.design.similarity == "cosine":
            return "dot", 1.0
        return self.design.similarity, self.layout.qk_dim**-0.5

    def _call(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> kernels.Call:
        kind, scale = self._similarity_and_scale
        q, k = similarity.as_dot_product(q, k, kind)
        dropout = self.dropout if self.training else 0.0
        return kernels.prepare(
            q,
            k,
            v,
            scale=scale,
            causal=self.causal,
            mask=mask,
            dropout=dropout,
            selfmask=self.design.selfmask,
            window=self.window,
        )

    def _explicit(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """The weighted values and the weights, by the formula."""
        weights = reference.masked_softmax(self._scores(q, k), self._full_mask(mask, q, k))
        return reference.weighted_sum(weights, v, self.dropout if self.training else 0.0), weights

    def _scores(self, q: Tensor, k: Tensor) -> Tensor:
        kind, scale = self._similarity_and_scale
        return similarity.scores(q, reference.repeat_heads(k, q), kind, scale)

    def _with_temperature(self, q: Tensor) -> Tensor:
        return q if self.temperature is None else q * self.temperature[:, None, None]

    def _full_mask(self, mask: Tensor | None, q: Tensor, k: Tensor) -> Tensor | None:
        return masks.combine(
            mask,
            q.shape[-2],
            k.shape[-2],
            causal=self.causal,
            selfmask=self.design.selfmask,
            window=self.window,
            device=q.device,
        )

    def _output(self, out: Tensor) -> Tensor:
        return F.linear(out.transpose(1, 2).flatten(2), self.o_proj, self.o_proj_bias)


def initialise(tensor: Tensor, weight: Weight, generator: torch.Generator | None = None) -> None:
    """Fill a tensor with the initial values of its weight."""
    match weight.init:
        case "normal":
            tensor.normal_(0.0, weight.scale, generator=generator)
        case "constant":
            tensor.fill_(weight.scale)
        case "alternating":
            tensor[..., 0::2], tensor[..., 1::2] = 1.0, -1.0


def _rows(layout: Layout) -> dict[str, slice]:
    """The rows of the fused projection that belong to each named one."""
    rows, start = {}, 0
    for name, (heads, size) in layout.projections.items():
        rows[name] = slice(start, start + heads * size)
        start += heads * size
    return rows
