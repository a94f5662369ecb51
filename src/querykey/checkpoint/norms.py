"""Recognising a normalisation by its effect: scaling its input does not change its output."""

from __future__ import annotations

import math
from collections import OrderedDict
from copy import copy, deepcopy
from typing import NamedTuple

import torch
from torch import Tensor, nn

BIASES = {"bias", "beta"}  # names of a parameter that is added; any other parameter is a gain


class Behaviour(NamedTuple):
    """The formula of a normalisation: y = (offset + slope · gain) · u / rms(u) + bias, u = x (− its mean)."""

    gain: str | None
    bias: str | None
    offset: float
    slope: float
    centred: bool


def behaviour(module: nn.Module, shape: torch.Size) -> Behaviour | None:
    """The formula of `module` if it normalises tensors of this shape over the last axis, else None."""
    parameters = dict(module.named_parameters())
    if len(parameters.keys() & BIASES) > 1 or len(parameters.keys() - BIASES) > 1:
        return None
    if any(p.shape != shape[len(shape) - p.dim() :] for p in parameters.values()):
        return None
    twin = copy(module)  # without what leads back to the model that runs
    twin.__dict__ = {name: value for name, value in vars(module).items() if name != "forward"}
    twin._forward_hooks, twin._forward_pre_hooks = OrderedDict(), OrderedDict()
    try:
        with torch.no_grad(), torch._C.DisableTorchFunction():
            return _behaviour(deepcopy(twin).to_empty(device="cpu").double(), shape)
    except (TypeError, ValueError, RuntimeError, IndexError, AttributeError):
        return None  # it does not take a single tensor of this shape


def _behaviour(twin: nn.Module, shape: torch.Size) -> Behaviour | None:
    parameters = dict(twin.named_parameters())
    x = torch.randn(2, *shape[1:], generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e4 + 3e3

    def factor(gain: float, u: Tensor) -> Tensor:
        """The factor of u / rms(u) if the gain has this value everywhere."""
        for name, parameter in parameters.items():
            parameter.fill_(0.0 if name in BIASES else gain)
        y = twin(x)
        if not isinstance(y, Tensor) or y.shape != x.shape or not torch.allclose(twin(4 * x), y, rtol=1e-5):
            raise ValueError("not a normalisation")
        return y / (u / u.square().mean(-1, keepdim=True).sqrt())

    for centred in (False, True):
        u = x - x.mean(-1, keepdim=True) if centred else x
        factors = torch.stack([factor(gain, u).flatten() for gain in (0.0, 1.0, 2.0)])
        offset, once, twice = factors[:, 0].tolist()
        even = torch.allclose(factors, factors[:, :1].expand_as(factors), atol=1e-5)
        if even and once and math.isclose(twice - once, once - offset, abs_tol=1e-5):
            gain, bias = (next(iter(names), None) for names in (parameters.keys() - BIASES, parameters.keys() & BIASES))
            return Behaviour(gain, bias, _rounded(offset), _rounded(once - offset), centred)
    return None


def _rounded(value: float) -> float:
    return float(round(value)) if abs(value - round(value)) < 1e-5 else value
