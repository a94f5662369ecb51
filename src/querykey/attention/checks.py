"""Checks of what a layer is called with: shapes, dtypes and devices must fit its weights and one another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from querykey.attention import masks

if TYPE_CHECKING:
    from querykey.attention.cache import KVCache
    from querykey.layout import Layout


def check_inputs(
    layout: Layout,
    weight: Tensor | None,
    x: Tensor,
    mask: Tensor | None,
    context: Tensor | None,
    cache: KVCache | None,
) -> None:
    """Refuse what a layer with this layout and a `weight` of this dtype and device cannot attend with.

    Dtype and device are left to PyTorch where there is no weight to compare with.

    Raises:
        ValueError: with what was expected and what came.
    """
    if (
        x.ndim != 3
        or x.shape[-1] != layout.dim
        or weight is None
        or (x.dtype, x.device) != (weight.dtype, weight.device)
    ):
        _check_source("x", x, layout, weight)  # called in doubt only: each microsecond counts for small inputs
    if context is not None:
        _check_source("context", context, layout, weight)
        if context.shape[0] != x.shape[0]:
            raise ValueError(f"x and context must have one batch size, not {x.shape[0]} and {context.shape[0]}")
        if layout.design.selfmask:
            raise ValueError(
                f"design {layout.design}: a context has other positions than x, so there is no self to mask"
            )
        if cache is not None:
            raise ValueError("a cache is for the positions of x; pass the context alone, whole at each step")
    if mask is not None:
        check_one_device(x=x, mask=mask)
        keys = x.shape[1] + (0 if cache is None else len(cache)) if context is None else context.shape[1]
        masks.check(mask, (x.shape[0], layout.heads, x.shape[1], keys))


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
