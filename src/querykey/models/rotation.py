"""Rotary positions of traced layers: activations before and after their rotation, and bilinear forms under rotation."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querykey.bilinear import BilinearForm, RotaryForm, Rotation
from querykey.checkpoint import Rotary, rotate


def rotated(
    x: Float[Tensor, "*leading length size"], rotary: Rotary | None, sign: int = 1
) -> Float[Tensor, "*leading length size"]:
    """`x` rotated to its positions 0, 1, …, or with sign −1 back from them; unchanged without `rotary`."""
    return x if rotary is None else rotate(x, rotary, sign * torch.arange(x.shape[-2]))


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
