"""Checks of what a layer is called with: shapes, dtypes and devices must fit its weights and one another."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from querykey.attention import masks
from querykey.attention.buffers import Cache
from querykey.attention.sequence import Positions
from querykey.attention.static import StaticCache
from querykey.layout import Layout


class Inputs(NamedTuple):
    """What a layer is called with; see `SelfAttention.forward`."""

    x: Tensor
    mask: Tensor | None = None
    context: Tensor | Cache | None = None
    cache: Cache | None = None
    key_padding: Tensor | None = None
    positions: Positions | None = None
    document: Tensor | None = None
    values: Tensor | None = None

    @property
    def keys(self) -> int:
        """How many keys there are."""
        if isinstance(self.context, Cache):
            return self.context.visible(0, None)
        if self.context is not None:
            return self.context.shape[1]
        return self.x.shape[1] if self.cache is None else self.cache.visible(self.x.shape[1], None)


def check_inputs(layout: Layout, weight: Tensor | None, causal: bool, call: Inputs) -> None:
    """Raise for what a layer with this layout, and a `weight` of this dtype and device, cannot attend with.

    Dtype and device are left to PyTorch where there is no weight to compare with.

    Raises:
        ValueError: with what was expected and what came.
    """
    x = call.x
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        raise RuntimeError(
            "torch.jit.trace and the old ONNX exporter fix what depends on lengths; "
            "use torch.export, or torch.onnx.export(..., dynamo=True)"
        )
    if (
        x.ndim != 3
        or x.shape[-1] != layout.dim
        or weight is None
        or (x.dtype, x.device) != (weight.dtype, weight.device)
    ):
        check_source("x", x, layout, weight)  # called in doubt only: each microsecond counts for small inputs
    if call.context is not None or layout.context_dim is not None or call.values is not None:
        _check_context(layout, weight, causal, call)
    if call.mask is None and call.key_padding is None and call.document is None and call.positions is None:
        return
    check_one_device(x=x, mask=call.mask, key_padding=call.key_padding, document=call.document)
    if call.mask is not None:
        masks.check(call.mask, (x.shape[0], layout.heads, x.shape[1], call.keys))
    if call.key_padding is not None:
        _check_shape("key_padding", call.key_padding, torch.bool, ((x.shape[0], call.keys),))
    if call.document is not None:
        _check_document(call)
    if call.positions is not None:
        _check_positions(layout, call)


def check_source(name: str, source: Tensor, layout: Layout, weight: Tensor | None, of_context: bool = False) -> None:
    """Raise unless `source` can be projected: by its shape, and by its dtype and device as those of a weight."""
    dim = layout.context_dim if of_context and layout.context_dim is not None else layout.dim
    if source.ndim != 3 or source.shape[-1] != dim:
        raise ValueError(f"{name} must be (batch, length, dim) with dim {dim}, not {tuple(source.shape)}")
    if weight is None:
        return
    if source.device != weight.device and not weight.is_meta:  # offloaded weights are on meta between calls
        raise ValueError(
            f"{name} is on {source.device} and the layer's weights on {weight.device}; move one with .to(device)"
        )
    if source.dtype != weight.dtype and not (
        source.is_floating_point() and torch.is_autocast_enabled(source.device.type)
    ):
        raise ValueError(
            f"{name} is {source.dtype} and the layer's weights are {weight.dtype}; convert one with .to(dtype), "
            "or run under torch.autocast"
        )


def check_one_device(**tensors: Tensor | None) -> None:
    """Raise unless all tensors are on one device.

    Raises:
        ValueError: naming the device of each.
    """
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        lie = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"all must lie on one device, not {lie}")


def _check_context(layout: Layout, weight: Tensor | None, causal: bool, call: Inputs) -> None:
    context, values, batch = call.context, call.values, call.x.shape[0]
    if context is None:
        needs = "values= goes with a context" if call.values is not None else "a layer with context_dim needs a context"
        raise ValueError(f"{needs}, of which keys are made; give context=")
    if layout.design.selfmask or layout.design.xsa:
        raise ValueError(
            f"design {layout.design}: a context has other positions than x, so there is no self to exclude"
        )
    if causal:
        raise ValueError(
            "a causal layer cannot tell which positions of a context come before those of x; make the layer with "
            "causal=False, and give a mask where one is needed"
        )
    if call.cache is not None:
        raise ValueError("a cache is for the positions of x; pass the context alone, or layer.read_context(context)")
    if isinstance(context, Cache):
        if values is not None:
            raise ValueError("a context that was read has values; give values= to read_context")
        rows = next(iter(context.contents().values())).shape[0]
    else:
        check_source("context", context, layout, weight, of_context=True)
        rows = context.shape[0]
        if layout.frequencies is not None and not isinstance(call.positions, tuple):
            raise ValueError(
                "rotary positions of x and of a context count from different starts; give both: "
                "positions=(of_x, of_context)"
            )
    if rows != batch:
        raise ValueError(f"x and context must have one batch size, not {batch} and {rows}")
    if values is not None:
        check_source("values", values, layout, weight, of_context=True)
        if values.shape[:2] != (rows, call.keys):
            raise ValueError(f"each key needs one value: {call.keys} positions of context, {values.shape[1]} of values")
        if layout.reads["k"] == layout.reads["v"]:
            raise ValueError(f"design {layout.design}: keys and values are made of one input; leave values out")


def _check_document(call: Inputs) -> None:
    batch, length = call.x.shape[:2]
    if call.cache is not None or call.context is not None:
        raise ValueError("document= packs the tokens of x; it goes with neither a cache nor a context")
    assert call.document is not None
    if call.document.is_floating_point() or call.document.dtype == torch.bool:
        raise ValueError(f"document must be integers, one for each token, not {call.document.dtype}")
    _check_shape("document", call.document, call.document.dtype, ((batch, length), (1, length)))


def _check_positions(layout: Layout, call: Inputs) -> None:
    given, context = call.positions, call.context
    if layout.frequencies is None:
        raise ValueError("positions= is for rotary positions, which this layer does not have; make it with rotary=True")
    if isinstance(call.cache, StaticCache) and layout.makes_keys and not call.cache.keep_rotated:
        raise ValueError(
            "a static cache of one tensor rotates its keys at each reading and does not store positions; "
            "give key_padding=, or make the cache with keep_rotated=True"
        )
    if isinstance(given, tuple) != isinstance(context, Tensor):
        raise ValueError("positions must be one tensor, and with a context a pair: of x and of the context")
    both = given if isinstance(given, tuple) else (given,)
    for positions, source in zip(both, (call.x, context), strict=False):
        if not isinstance(positions, Tensor) or not isinstance(source, Tensor):
            continue
        if positions.is_floating_point() or positions.dtype == torch.bool:
            raise ValueError(f"positions must be integers, (length,) or (batch, length), not {positions.dtype}")
        batch, length = source.shape[:2]
        _check_shape("positions", positions, positions.dtype, ((length,), (batch, length), (1, length)))


def _check_shape(name: str, tensor: Tensor, dtype: torch.dtype, shapes: tuple[tuple[int, ...], ...]) -> None:
    if tensor.dtype != dtype or tensor.shape not in shapes:
        known = " or ".join(map(str, shapes))
        raise ValueError(f"{name} must be {dtype} of shape {known}, not {tensor.dtype} of shape {tuple(tensor.shape)}")
