"""One shape and one pass of a benchmark: the unit that is timed in one interleaving."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.bench.config import Config, Shape


class Case(NamedTuple):
    """One shape and one pass, with what they need of the config."""

    shape: Shape
    what: str
    cached: int
    causal: bool
    device: torch.device
    dtype: torch.dtype
    window: int | None = None

    @classmethod
    def of(cls, config: Config, shape: Shape, what: str) -> Case:
        """The case of a config; a decoding step is always causal.

        Raises:
            ValueError: if the device is unknown, is not there, or cannot be timed.
        """
        _check_device(config.device)
        return cls(
            shape=shape,
            what=what,
            cached=config.cached,
            causal=config.causal or what == "decoding",
            device=torch.device(config.device),
            dtype=getattr(torch, config.dtype),
            window=config.window,
        )

    @property
    def decoding(self) -> bool:
        """True for a step after `cached` positions."""
        return self.what == "decoding"

    @property
    def training(self) -> bool:
        """True where gradients are taken."""
        return self.what == "training"

    @property
    def seen(self) -> int:
        """Number of positions that a decoding step attends to, its own included."""
        return self.cached + 1 if self.window is None else min(self.cached + 1, self.window)

    def numbers(self, *sizes: int) -> Tensor:
        """Random numbers, which require a gradient in training."""
        return torch.randn(sizes, device=self.device, dtype=self.dtype, requires_grad=self.training)

    def input(self) -> Float[Tensor, "batch length dim"]:
        """The input of a layer: all positions, or the new one of a decoding step."""
        return self.numbers(self.shape.batch, 1 if self.decoding else self.shape.length, self.shape.dim)


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device {device!r} cannot be used; expected cpu, cuda or cuda:N") from None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} cannot be timed; expected cpu, cuda or cuda:N")
    if kind == "cuda":
        index = torch.device(device).index or 0
        there = torch.cuda.device_count()
        if not torch.cuda.is_available() or index >= there:
            raise ValueError(f"device {device!r} is not there: torch {torch.__version__} sees {there} CUDA devices")
