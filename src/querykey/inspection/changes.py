"""What an adapter changes in a head: M' − M for M = W_Q W_Kᵀ before and M' after.

With ΔW_Q = W_Q' − W_Q and ΔW_K = W_K' − W_K

    M' − M = ΔW_Q W_Kᵀ + W_Q' ΔW_Kᵀ = [ΔW_Q W_Q'] [W_K ΔW_K]ᵀ,

a form of twice the head size, with the measures of every form. It is not 0 where only one of the two has changed, which
the product ΔW_Q ΔW_Kᵀ of the adapter's own matrices is.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.bilinear import BilinearForm
from querykey.bilinear.gram import ratio
from querykey.checkpoint import LayerWeights
from querykey.machine import one_thread

MEASURES = ("symmetry", "tied_share", "effective_rank")


@one_thread()
def changes(before: LayerWeights, after: LayerWeights) -> dict[str, Any]:
    """Columns by head: ``change`` is ‖M' − M‖/‖M‖, ``query_change`` ‖ΔW_Q‖/‖W_Q‖, and ``change_…`` are of M' − M."""
    groups = list(before.map.key_head)
    W_Q, W_K, new_Q, new_K = (W.double() for W in (before.W_Q, before.W_K[groups], after.W_Q, after.W_K[groups]))
    change = BilinearForm.from_weights(torch.cat([new_Q - W_Q, new_Q], -1), torch.cat([W_K, new_K - W_K], -1))
    columns: dict[str, Tensor] = {
        "change": ratio(change.norm, BilinearForm.from_weights(W_Q, W_K).norm),
        "query_change": _relative(W_Q, new_Q),
        "key_change": _relative(W_K, new_K),
    }
    columns |= {f"change_{name}": getattr(change, name) for name in MEASURES}
    found: dict[str, Any] = {name: values.numpy(force=True) for name, values in columns.items()}
    return found | {"change_symmetry_null": 1 / W_Q.shape[1], "change_tied_share_null": (1 + 1 / W_Q.shape[1]) / 4}


def _relative(W: Float[Tensor, "heads dim size"], new: Float[Tensor, "heads dim size"]) -> Float[Tensor, " heads"]:
    norms: tuple[Tensor, Tensor] = ((new - W).flatten(1).norm(dim=1), W.flatten(1).norm(dim=1))
    return ratio(*norms)
