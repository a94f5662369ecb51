"""Checks of what a layer is called with: shapes, dtypes and devices must fit its weights and one another."""

from __future__ import annotations

import torch
from torch import Tensor

from querykey.attention import masks
from querykey.attention.buffers import Cache
from querykey.attention.sequence import Positions
from querykey.attention.static import StaticCache
from querykey.layout import Layout


def check_inputs(
    layout: Layout,
    weight: Tensor | None,
    x: Tensor,
    mask: Tensor | None,
    context: Tensor | None,
    cache: Cache | None,
    causal: bool = False,
    key_padding: Tensor | None = None,
    positions: Positions | None = None,
) -> None:
    """Refuse what a layer with this layout and a `weight` of this dtype and device cannot attend with.

    Dtype and device are left to PyTorch where there is no weight to compare with.

    Raises:
        ValueError: with what was expected and what came.
    """
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
        _check_source("x", x, layout, weight)  # called in doubt only: each microsecond counts for small inputs
    if context is not None:
        _check_context(layout, weight, x, context, cache, causal, positions)
    if mask is None and key_padding is None and positions is None:
        return
    check_one_device(x=x, mask=mask, key_padding=key_padding)
    source = x if context is None else context
    keys = source.shape[1] if cache is None else cache.visible(x.shape[1], None)
    if mask is not None:
        masks.check(mask, (x.shape[0], layout.heads, x.shape[1], keys))
    if key_padding is not None and (key_padding.dtype != torch.bool or key_padding.shape != (x.shape[0], keys)):
        raise ValueError(
            f"key_padding must be boolean, True for tokens, of shape (batch, key) = {(x.shape[0], keys)}, not "
            f"{key_padding.dtype} of shape {tuple(key_padding.shape)}"
        )
    if positions is not None:
        _check_positions(layout, x, context, cache, positions)


def _check_context(
    layout: Layout,
    weight: Tensor | None,
    x: Tensor,
    context: Tensor,
    cache: Cache | None,
    causal: bool,
    positions: Positions | None,
) -> None:
    _check_source("context", context, layout, weight)
    if context.shape[0] != x.shape[0]:
        raise ValueError(f"x and context must have one batch size, not {x.shape[0]} and {context.shape[0]}")
    if layout.design.selfmask:
        raise ValueError(f"design {layout.design}: a context has other positions than x, so there is no self to mask")
    if causal:
        raise ValueError(
            "a causal layer cannot tell which positions of a context come before those of x; make the layer with "
            "causal=False, and give a mask where one is needed"
        )
    if cache is not None:
        raise ValueError("a cache is for the positions of x; pass the context alone, whole at each step")
    if layout.frequencies is not None and not isinstance(positions, tuple):
        raise ValueError(
            "rotary positions of x and of a context count from different starts; give both: "
            "positions=(of_x, of_context)"
        )


def _check_positions(
    layout: Layout, x: Tensor, context: Tensor | None, cache: Cache | None, positions: Positions
) -> None:
    if layout.frequencies is None:
        raise ValueError("positions= is for rotary positions, which this layer does not have; make it with rotary=True")
    if isinstance(cache, StaticCache) and layout.makes_keys and not cache.keep_rotated:
        raise ValueError(
            "a static cache of one tensor rotates its keys at each reading and does not store positions; "
            "give key_padding=, or make the cache with keep_rotated=True"
        )
    if isinstance(positions, tuple) != (context is not None):
        raise ValueError("positions must be one tensor, and with a context a pair: of x and of the context")
    both = positions if isinstance(positions, tuple) else (positions,)
    for given, source in zip(both, (x, context), strict=False):
        if source is None or given.is_floating_point() or given.dtype == torch.bool or given.ndim not in (1, 2):
            shape = tuple(given.shape)
            raise ValueError(f"positions must be integers, (length,) or (batch, length), not {given.dtype} {shape}")
        batch, length = source.shape[:2]
        if given.shape not in ((length,), (1, length), (batch, length)):
            raise ValueError(f"positions must be of shape {(length,)} or {(batch, length)}, not {tuple(given.shape)}")


def check_one_device(**tensors: Tensor | None) -> None:
    """Refuse tensors that lie on different devices.

    Raises:
        ValueError: naming the device of each.
    """
    devices = {name: tensor.device for name, tensor in tensors.items() if tensor is not None}
    if len(set(devices.values())) > 1:
        lie = ", ".join(f"{name} on {device}" for name, device in devices.items())
        raise ValueError(f"all must lie on one device, not {lie}")


def _check_source(name: str, source: Tensor, layout: Layout, weight: Tensor | None) -> None:
    if source.ndim != 3 or source.shape[-1] != layout.dim:
        raise ValueError(f"{name} must be (batch, length, dim) with dim {layout.dim}, not {tuple(source.shape)}")
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
