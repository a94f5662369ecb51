"""Who may attend to whom. As in `scaled_dot_product_attention`, a boolean mask is True where attention is allowed and
an additive one is −∞ where it is not; either broadcasts to (batch, heads, query, key).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querykey.attention import modifiers


def combine(
    mask: Tensor | None,
    queries: int,
    keys: int,
    *,
    causal: bool = False,
    selfmask: bool = False,
    window: int | None = None,
    device: torch.device | None = None,
    positions: Int[Tensor, " queries"] | None = None,
    slopes: Float[Tensor, " heads"] | None = None,
) -> Tensor | None:
    """One mask of all, or None where everything is allowed.

    Without `positions` the last query stands at the position of the last key: query i may causally see the keys up to
    i + keys − queries, itself, and of them the last `window`. With `positions`, each query stands at its position among
    the keys, and none sees keys after the last query: a static cache has not written these yet. The query's own key is
    what `selfmask` hides, unless nothing else is left to it. With `slopes` the mask is additive, with ALiBi in it.
    """
    causal = causal and (queries > 1 or window is not None or positions is not None)
    if not (causal or selfmask or positions is not None or slopes is not None):
        return mask
    own = positions if positions is not None else torch.arange(keys - queries, keys, device=device)
    own, key = own.unsqueeze(-1), torch.arange(keys, device=device)
    if causal:
        seen = key <= own
        mask = restrict(mask, seen if window is None else seen & (key > own - window))
    elif positions is not None:
        mask = restrict(mask, key <= own[-1:])
    if selfmask:
        others = key != own
        reachable = others if mask is None else others & allowed(mask)
        left = reachable.any(-1, keepdim=True)
        mask = restrict(mask, others | ~left)
    if slopes is not None:
        bias = modifiers.alibi(slopes, own.squeeze(-1), key)
        if mask is None or mask.dtype != torch.bool:
            return bias if mask is None else mask + bias
        return torch.where(mask, bias, float("-inf"))
    return mask


def allowed(mask: Tensor) -> Tensor:
    """Where a mask of either kind lets attention through, as booleans."""
    return mask if mask.dtype == torch.bool else mask > float("-inf")


def restrict(mask: Tensor | None, allow: Tensor) -> Tensor:
    """A mask of either kind, or none, that allows no more than `allow` does."""
    if mask is None:
        return allow
    return mask & allow if mask.dtype == torch.bool else mask.masked_fill(~allow, float("-inf"))


def check(mask: Tensor, shape: tuple[int, ...]) -> None:
    """Raise unless a mask is of either kind and broadcasts to `shape`, (..., query, key), in one way only.

    Raises:
        ValueError: with both shapes, and how the mask that may be meant is written.
    """
    if mask.dtype != torch.bool and not mask.is_floating_point():
        raise ValueError(
            f"a mask must be boolean (True = may attend) or floating point (added to the scores), not {mask.dtype}"
        )
    fits = mask.ndim <= len(shape) and all(
        have in (1, want) for have, want in zip(reversed(mask.shape), reversed(shape), strict=False)
    )
    if not fits:
        raise ValueError(
            f"a mask must broadcast to ({', '.join(_names(len(shape)))}) = {tuple(shape)}, but has shape "
            f"{tuple(mask.shape)}; key padding of shape (batch, key) is given as mask[:, None, None, :]"
        )
    missing = len(shape) - mask.ndim
    if mask.ndim > 1 and missing and mask.shape[0] == shape[0] == shape[missing] > 1:
        axis = _names(len(shape))[missing]
        raise ValueError(
            f"the first axis of a mask of shape {tuple(mask.shape)} may be {axis} or batch, both are {shape[0]}; write "
            f"mask[{', '.join(['None'] * missing)}] if it is {axis}, and if it is batch add the axes that are missing "
            "after it, such as mask[:, None], or give key padding as key_padding="
        )


def check_window(window: int | None, causal: bool) -> None:
    """Raise unless a sliding window is a positive integer and attention is causal.

    Raises:
        ValueError: if it is not a number of positions from 1, or attention is not causal.
    """
    if window is None:
        return
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise ValueError(f"window must be a number of positions from 1, which is the query's own, not {window!r}")
    if not causal:
        raise ValueError("a window counts the positions before each query, so it needs causal=True")


def _names(ndim: int) -> tuple[str, ...]:
    """Of the axes of a mask for queries with as many dimensions."""
    return ("query", "key") if ndim == 2 else ("batch", *("heads",) * (ndim - 3), "query", "key")
