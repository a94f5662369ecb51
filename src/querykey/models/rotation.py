"""Rotary positions of a traced checkpoint: rotating channel pairs of activations, and bilinear forms under rotation."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querykey.bilinear import BilinearForm, RotaryForm, Rotation
from querykey.checkpoint import Rotary


def rotate_pairs(
    x: Float[Tensor, "batch length size"], rotary: Rotary | None, sign: int
) -> Float[Tensor, "batch length size"]:
    """`x` rotated to its positions 0, 1, …, or (sign −1) back from them."""
    if rotary is None:
        return x
    angle = torch.arange(x.shape[1])[:, None] * rotary.frequency.double() * sign
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    i, j = rotary.pairs.T
    out = x.clone()
    out[..., i] = x[..., i] * cos - x[..., j] * sin
    out[..., j] = x[..., j] * cos + x[..., i] * sin
    return out


def rotary_form(form: BilinearForm, rotary: Rotary, window: int | None) -> RotaryForm:
    """The form under its rotation, with the head's dimensions in the order in which the rotation pairs them."""
    order = paired_order(rotary, form.head_dim)
    both = torch.cat([order, order + form.head_dim])
    rotation = Rotation(rotary.frequency, form.head_dim, window)
    return RotaryForm(BilinearForm(form.gram[..., both, :][..., both]), rotation)


def paired_order(rotary: Rotary, head_dim: int) -> Int[Tensor, " head_dim"]:
    """The head's dimensions in the order in which `Rotation` pairs them: first ones, second ones, those that rest."""
    still = torch.ones(head_dim, dtype=torch.bool)
    still[rotary.pairs.flatten()] = False
    return torch.cat([*rotary.pairs.T, still.nonzero().flatten()])
