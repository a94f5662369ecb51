"""How queries and keys rotate with the position, from the first positions."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from querykey.checkpoint.emission import TOLERANCE
from querykey.checkpoint.headmap import Rotary


def rotation(values: Float[Tensor, "probes heads tokens size"]) -> Rotary | None:
    """The rotation of pairs of channels, the same for all heads, from position 0 on; None if they change otherwise.

    The first head gives the pairs: channel j becomes a · j + b · i, for the one i that fits at all probes.
    """
    before, after = values[:, :, 0], values[:, :, 1]
    changed = ((after - before)[:, 0].norm(dim=0) > 0).nonzero().flatten()
    if not len(changed):
        return None
    j, i, a, b = _partners(before[:, 0], after[:, 0], changed)
    pairs = torch.stack([j, i], 1)[b < 0]  # of (i cos − j sin, j cos + i sin) the first
    frequency = torch.atan2(-b, a)[b < 0]
    rotary = Rotary(pairs, frequency)
    return rotary if rotates(values, rotary) else None


def rotates(values: Float[Tensor, "probes heads tokens size"], rotary: Rotary) -> bool:
    """Whether all heads rotate like `rotary` from position 0 to each of the others."""
    positions = torch.arange(values.shape[2])
    expected = rotate(values[:, :, :1].expand_as(values), rotary, positions)
    return torch.allclose(expected, values, rtol=TOLERANCE, atol=TOLERANCE)


def rotate(
    x: Float[Tensor, "*leading size"], rotary: Rotary, positions: float | Shaped[Tensor, " length"]
) -> Float[Tensor, "*leading size"]:
    """`x` at one position, or (..., length, size) at `positions`; `rotary.frequency` is in radians per position."""
    i, j = rotary.pairs.T
    angle = torch.as_tensor(positions)[..., None] * rotary.frequency.double()
    cos, sin = angle.cos().to(x), angle.sin().to(x)
    out = x.clone()
    out[..., i] = x[..., i] * cos - x[..., j] * sin
    out[..., j] = x[..., j] * cos + x[..., i] * sin
    return out


def _partners(
    before: Float[Tensor, "probes size"], after: Float[Tensor, "probes size"], changed: Int[Tensor, " n"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each channel j of `changed`: the channel i and numbers a, b with after_j = a · before_j + b · before_i."""
    own, goal = before[:, changed], after[:, changed]
    share = (own * goal).sum(0) / own.square().sum(0)
    rest = goal - share * own  # what the channel itself does not explain
    others = before[:, None] - own[:, :, None] * (torch.einsum("pn,pi->ni", own, before) / own.square().sum(0)[:, None])
    gain = torch.einsum("pn,pni->ni", rest, others) / others.square().sum(0).clamp_min(1e-12)
    error = (rest[:, :, None] - gain * others).square().sum(0)
    error[torch.arange(len(changed)), changed] = torch.inf
    i = error.argmin(1)
    b = gain[torch.arange(len(changed)), i]
    a = share - b * (own * before[:, i]).sum(0) / own.square().sum(0)
    return changed, i, a, b
