"""The size of a cell's model, and how it is trained."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # the command line reads the fields before it loads torch
    from querykey.design import Design
    from querykey.layout import Layout
    from querykey.tasks import Positions

Match = Literal["width", "parameters", "flops", "cache"]


class PlanError(ValueError):
    """A plan that cannot be read or run."""


@dataclass(frozen=True)
class Config:
    """The size of a cell's model, and how it is trained.

    Args:
        layers: number of Transformer layers.
        dim: model width.
        heads: number of query heads.
        head_dim: size of a head (default: dim / heads).
        mlp: width of the MLP in units of dim; 0 for no MLP.
        positions: none, learned or rotary (default: what the task needs).
        dropout: of the attention weights.
        steps: optimiser steps.
        batch: examples in a step.
        lr: peak learning rate of AdamW; it rises during the warmup and falls linearly to 0.
        weight_decay: of AdamW.
        warmup: share of the steps during which the learning rate rises.
        evaluations: points of the validation curve.
        bf16: bfloat16 autocast of the forward pass, in training and scoring.
        compile: torch.compile of the training step's forward pass.
    """

    layers: int = 2
    dim: int = 64
    heads: int = 4
    head_dim: int | None = None
    mlp: float = 4.0
    positions: Positions | None = None
    dropout: float = 0.0
    steps: int = 300
    batch: int = 32
    lr: float = 1e-2
    weight_decay: float = 0.0
    warmup: float = 0.1
    evaluations: int = 10
    bf16: bool = False
    compile: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "dim", "heads", "steps", "batch", "evaluations"):
            check(name, getattr(self, name) >= 1, "at least 1", getattr(self, name))
        check("head_dim", self.head_dim is None or self.head_dim >= 1, "at least 1", self.head_dim)
        check("lr", self.lr > 0, "above 0", self.lr)
        for name in ("mlp", "weight_decay"):
            check(name, getattr(self, name) >= 0, "0 or more", getattr(self, name))
        for name in ("dropout", "warmup"):
            check(name, 0 <= getattr(self, name) < 1, "from 0 to below 1", getattr(self, name))
        for name in ("mlp", "dropout", "lr", "weight_decay", "warmup"):
            object.__setattr__(self, name, float(getattr(self, name)))  # 0 and 0.0 are one config, with one key
        known = (None, "none", "learned", "rotary")
        check("positions", self.positions in known, "one of none, learned, rotary", self.positions)

    @property
    def hidden(self) -> int:
        """Hidden width of the MLP; 0 for none."""
        return round(self.mlp * self.dim)

    def layout(self, design: Design) -> Layout:
        """The attention of one layer with this design.

        Raises:
            DesignError: if it cannot be at these sizes.
        """
        from querykey.layout import Layout

        return Layout.of(design, self.dim, self.heads, head_dim=self.head_dim, rotary=self.positions == "rotary")


def check(name: str, good: bool, expected: str, given: object) -> None:
    """Raise PlanError unless the value is good."""
    if not good:
        raise PlanError(f"{name} must be {expected}, not {given}")
