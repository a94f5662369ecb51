"""When what is written by hand for speed must stand back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad


def wants_plain(x: Tensor) -> bool:
    """True under `torch.compile`, functorch transforms, fake tensors and forward-mode AD; they need plain code."""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    return type(x) not in (Tensor, nn.Parameter) or forward_ad._current_level >= 0
