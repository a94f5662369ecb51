"""The attention of models that compute it themselves instead of calling transformers' function."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from querykey.checkpoint.emission import PROBES, TOKENS


class OwnAttention(TorchFunctionMode):
    """Sees the attention of models that do not call transformers' function: PyTorch's, or q kᵀ, softmax, times v."""

    def __init__(self, model: nn.Module, known: Callable[[Tensor], bool], attend: Callable[..., Any]) -> None:
        super().__init__()
        self.known, self.attend = known, attend
        self.running: list[nn.Module] = []
        self.scores: Scores | None = None
        for module in model.modules():
            module.register_forward_pre_hook(lambda module, _: self.running.append(module))
            module.register_forward_hook(lambda *_: self.running.pop() and None)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        if func in SOFTMAX and self.scores:
            self.scores.softmax(*args, **kwargs)
        if func in PRODUCTS:
            left, right = (*args, *kwargs.values())[PRODUCTS[func] :][:2]
            if self.scores and self.scores.weigh(left):
                return self._attend(self.scores, func(*args, **kwargs), right)
            if is_score(left, right) and self.known(left) and self.known(right.mT):
                self.scores = Scores(left, right)
        return func(*args, **kwargs)

    def _fused(
        self, query: Tensor, key: Tensor, value: Tensor, *_: Any, scale: float | None = None, **__: Any
    ) -> Tensor:
        """PyTorch's function, by its arguments."""
        scaling = query.shape[-1] ** -0.5 if scale is None else scale
        out: Tensor = self.attend(self.running[-1], query, key, value, scaling=scaling)[0]
        return out.transpose(1, 2)

    def _attend(self, scores: Scores, result: Tensor, value: Tensor) -> Tensor:
        query, key, value = (x.reshape(PROBES, -1, *x.shape[-2:]) for x in (scores.query, scores.key, value))
        self.scores = None
        out: Tensor = self.attend(self.running[-1], query, key, value, scaling=scores.scaling)[0]
        return out.transpose(1, 2).reshape(result.shape)


PRODUCTS = {  # and where the two factors are among the arguments
    torch.matmul: 0,
    torch.bmm: 0,
    Tensor.matmul: 0,
    Tensor.__matmul__: 0,
    Tensor.bmm: 0,
    torch.baddbmm: 1,
    Tensor.baddbmm: 1,
}
SOFTMAX = (torch.softmax, Tensor.softmax, nn.functional.softmax)


class Scores:
    """A product that may turn out to be the scores of an attention, if a softmax and a product with values follow."""

    def __init__(self, left: Tensor, right: Tensor) -> None:
        self.query, self.key = left, right.mT
        self.first = (left @ right).reshape(PROBES, -1, TOKENS, TOKENS)[:, :, 0, 0]  # of the first token with itself
        self.numel = self.first.numel() * TOKENS**2
        self.scaling: float | None = None
        self.done = False

    def softmax(self, scores: Tensor, dim: int, *_: Any, **__: Any) -> None:
        """Takes note of a softmax over keys of `scores`, if they are these, and of their scale, whatever was added."""
        if scores.numel() == self.numel and scores.shape[-1] == TOKENS and dim in (-1, scores.dim() - 1):
            self.done = True
            first = scores.reshape(PROBES, -1, TOKENS, TOKENS)[:, :, 0, 0]
            ratio = first.diff(dim=0) / self.first.diff(dim=0)
            mean = float(ratio.mean())
            self.scaling = mean if torch.allclose(ratio, torch.full_like(ratio, mean), rtol=1e-3) else None

    def weigh(self, left: Tensor) -> bool:
        """Whether `left`, the first factor of a product, has the form of these scores after their softmax."""
        return self.done and left.numel() == self.numel and left.shape[-2:] == (TOKENS, TOKENS)


def is_score(left: Any, right: Any) -> bool:
    """Whether two factors have the form of queries (…, tokens, size) and transposed keys (…, size, tokens)."""
    if not all(
        isinstance(x, Tensor) and not x.is_meta and x.is_floating_point() and x.dim() > 2 for x in (left, right)
    ):
        return False
    if not left.shape[-2] == right.shape[-1] == TOKENS or left.shape[-1] != right.shape[-2]:
        return False
    one, many = int(right.numel()), int(left.numel())
    return one > 0 and many % one == 0 and one % (PROBES * TOKENS) == 0
