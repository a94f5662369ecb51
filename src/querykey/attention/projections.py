"""The weights of an attention layer, and its projections: one matrix product for all that read the same input.

x -> `in_proj` -> (latent -> `up_proj`) -> the tensors of q, k and v, (batch, heads, length, size) each
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, TypeGuard

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from querykey.attention import maps
from querykey.attention.expansion import PlainWeights, expand
from querykey.attention.initial import copy_rows, initialise
from querykey.attention.sequence import Span
from querykey.layout import Layout

VECTORS = ("core", "temperature", "q_gain", "k_gain", "qk_gain", "sinks")  # parameters that are no projection


class Projections(nn.Module):
    """The parameters of a layout, and what they make of the input.

    All projections of the input are rows of one `nn.Linear`, `in_proj`, so that they are one matrix product; a shared
    projection is there once. With a latent, `up_proj` holds the matrices through which roles read it; where a context
    has a width of its own, `context_proj` holds its projections. `o_proj` projects the output. A product that the
    design does not have is None. `named_weights` gives each weight by its name in the layout.

    Args:
        layout: the design at sizes.
        device, dtype: of the parameters.
    """

    in_proj: nn.Linear | None
    context_proj: nn.Linear | None
    up_proj: nn.Linear | None
    o_proj: nn.Linear
    core: Tensor | None
    temperature: Tensor | None
    q_gain: Tensor | None
    k_gain: Tensor | None
    qk_gain: Tensor | None
    sinks: Tensor | None

    def __init__(
        self, layout: Layout, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.layout = layout
        self.design = layout.design
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        # Worked out once: asking the layout at each call would cost small shapes several per cent.
        for name in ("cached", "frequencies", "makes_keys", "maps_keys", "one_query_and_key"):
            getattr(layout, name)  # torch.compile does not trace the first reading of a cached property
        self._made = {role: (layout.matrices[role], layout.head_shape(role)) for role in "qkv"}
        self._latent = next((layout.reads[role] for role in self.design.latent_roles), "")
        self._spans = {
            (product, roles): _Span.of(layout.products.get(product, {}), {names[role] for role in roles})
            for product, names in (
                ("in_proj", layout.reads),
                ("context_proj", layout.reads),
                ("up_proj", layout.matrices),
            )
            for roles in ("qkv", "q", "k", "v", "kv")
        }
        self.in_proj = self.context_proj = self.up_proj = None
        for product, rows in layout.products.items():
            setattr(self, product, _linear(layout, rows, **factory))
        shapes = {weight.name: weight.shape for weight in layout.weights}
        for name in VECTORS:
            parameter = nn.Parameter(torch.empty(shapes[name], **factory)) if name in shapes else None
            self.register_parameter(name, parameter)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw every weight anew, as the layout's table says, in the order of that table."""
        stored = self.stored_weights()
        for weight in self.layout.weights:
            parameter, rows = stored[weight.name]
            initialise(parameter, weight, generator, rows)
            if weight.like:
                copy_rows(parameter, stored[weight.like][1], rows)

    def stored_weights(self) -> dict[str, tuple[Tensor, slice]]:
        """Each weight of the layout by its name: the parameter that stores it, and its rows there."""
        stored = {}
        for product, parts in self.layout.products.items():
            linear = getattr(self, product)
            for name, rows in parts.items():
                stored[name] = linear.weight, rows
                if linear.bias is not None:
                    stored[f"{name}.bias"] = linear.bias, rows
        vectors = {name: getattr(self, name) for name in VECTORS}
        return stored | {name: (tensor, slice(None)) for name, tensor in vectors.items() if tensor is not None}

    def named_weights(self) -> dict[str, Tensor]:
        """Each weight of the layout by its name: parameters, or views of their rows."""
        stored = self.stored_weights().items()
        return {
            name: parameter if rows in (slice(None), slice(0, len(parameter))) else parameter[rows]
            for name, (parameter, rows) in stored
        }

    def weights(self) -> PlainWeights:
        """The plain W_Q, W_K, W_V and W_O per head that this layer amounts to; see `PlainWeights`."""
        return expand(self.layout, self.named_weights())

    def reference_weight(self) -> Tensor | None:
        """A weight that shows dtype and device; None where an adapter or quantisation hides it."""
        weight = getattr(self.o_proj, "weight", None)
        return weight if isinstance(weight, Tensor) else None

    def project(self, source: Tensor, roles: str) -> dict[str, Tensor]:
        """What these roles read of `source`, (batch, length, heads × size) each, by name; ``"x"`` is `source`."""
        product = "in_proj" if self.layout.context_dim is None or roles == "q" else "context_proj"
        read = self._spans[product, roles].read(getattr(self, product), source)
        read["x"] = source
        return read

    def heads(self, read: dict[str, Tensor], roles: str) -> list[Tensor]:
        """The tensors of these roles, (batch, heads, length, size) each, before core, norm and rotation."""
        if self.up_proj is not None and (span := self._spans["up_proj", roles]).names:
            read = read | span.read(self.up_proj, read[self._latent])
        return [split_heads(read[matrix], shape) for matrix, shape in map(self._made.__getitem__, roles)]

    def queries_keys_values(self, x: Tensor, positions: Span | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of self-attention, (batch, heads, length, size) each, after core, norm and rotation to their positions."""
        q, k, v = self.heads(self.project(x, "qkv"), "qkv")
        q = self.queries(q, positions)
        return q, q if self.layout.one_query_and_key else self.mapped(k, positions, self.k_gain), v

    def queries_of(self, x: Tensor, positions: Span | Tensor) -> Tensor:
        """Of cross-attention: the queries of x."""
        (q,) = self.heads(self.project(x, "q"), "q")
        return self.queries(q, positions)

    def keys_values_of(self, context: Tensor, values: Tensor | None, positions: Span | Tensor) -> tuple[Tensor, Tensor]:
        """Of cross-attention: the keys of a context, and its values or those of another tensor."""
        if values is None:
            k, v = self.heads(self.project(context, "kv"), "kv")
        else:
            (k,), (v,) = (
                self.heads(self.project(source, role), role) for source, role in ((context, "k"), (values, "v"))
            )
        return self.mapped(k, positions, self.k_gain), v

    def queries(self, q: Tensor, positions: Span | Tensor) -> Tensor:
        """Queries after core, norm and rotation."""
        if self.core is not None:
            q = maps.apply_core(q, self.core, self.layout)
        return self.mapped(q, positions, self.q_gain)

    def mapped(self, tensor: Tensor, positions: Span | Tensor, gain: Tensor | None) -> Tensor:
        """Norm and rotation of queries or keys at their positions."""
        if not self.layout.maps_keys:
            return tensor
        return maps.apply(tensor, positions, self.qk_gain if gain is None else gain, self.layout)

    def with_temperature(self, q: Tensor) -> Tensor:
        """Queries times τ of the cosine similarity, if they have one."""
        return q if self.temperature is None else q * self.temperature[:, None, None]

    def output(self, out: Tensor, own: Tensor | None = None) -> Tensor:
        """The output, of the weighted values of each head; `own` are the values of the queries' own positions."""
        if self.design.xsa and own is not None:
            out = maps.exclusive(out, own)
        projected: Tensor = self.o_proj(out.transpose(1, 2).flatten(2))
        return projected

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Also take the names of state dicts from before the projections were `nn.Linear` modules."""
        for product in ("in_proj", "o_proj"):
            for old, new in ((product, f"{product}.weight"), (f"{product}_bias", f"{product}.bias")):
                if prefix + old in state_dict:
                    tensor = state_dict.pop(prefix + old)
                    if tensor.numel():
                        state_dict[prefix + new] = tensor
        super()._load_from_state_dict(state_dict, prefix, *args)


def split_heads(tensor: Tensor, shape: tuple[int, int]) -> Tensor:
    """(batch, length, heads × size) to (batch, heads, length, size), as a view."""
    return tensor.view(*tensor.shape[:2], *shape).transpose(1, 2)


class _Span(NamedTuple):
    """Some of the projections that one `nn.Linear` holds: neighbouring rows, which are one product."""

    names: tuple[str, ...]
    sizes: tuple[int, ...]
    rows: slice
    whole: bool

    @classmethod
    def of(cls, rows: Mapping[str, slice], wanted: Collection[str]) -> _Span:
        names = tuple(name for name in rows if name in wanted)
        if not names:
            return cls((), (), slice(0, 0), False)
        start, stop = rows[names[0]].start, rows[names[-1]].stop
        sizes = tuple(rows[name].stop - rows[name].start for name in names)
        return cls(names, sizes, slice(start, stop), stop - start == [*rows.values()][-1].stop)

    def read(self, linear: nn.Module | None, source: Float[Tensor, "*batch width"]) -> dict[str, Tensor]:
        """The projections of `source`, by name."""
        if linear is None or not self.names:
            return {}
        if self.whole:
            out = linear(source)  # a slice of all rows would still cost its gradient a copy
        elif is_plain(linear):
            bias = linear.bias
            out = F.linear(source, linear.weight[self.rows], bias if bias is None else bias[self.rows])
        else:
            out = linear(source)[..., self.rows]
        return dict(zip(self.names, out.split(self.sizes, -1), strict=True))


def is_plain(linear: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether a module computes what its weight says, so that some rows may be taken of it without calling it.

    False for adapters (LoRA), quantised and sharded weights, hooks, and modules whose `forward` was replaced.
    """
    hooked = linear._forward_hooks or linear._forward_pre_hooks or "forward" in linear.__dict__
    return type(linear) is nn.Linear and type(linear.weight) in (Tensor, nn.Parameter) and not hooked


def _linear(layout: Layout, rows: Mapping[str, slice], **factory: Any) -> nn.Linear:
    """An `nn.Linear` with the weights of these names, one below the other."""
    shapes = {weight.name: weight.shape for weight in layout.weights}
    (width,), total = {shapes[name][1] for name in rows}, [*rows.values()][-1].stop
    linear = nn.Linear(width, total, bias=layout.bias, device="meta")  # which draws nothing
    linear.weight = nn.Parameter(torch.empty(total, width, **factory))
    if layout.bias:
        linear.bias = nn.Parameter(torch.empty(total, **factory))
    return linear
