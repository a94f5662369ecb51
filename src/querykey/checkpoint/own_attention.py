"""The attention of models that compute it themselves instead of calling transformers' attention function.

Three forms are recognised: PyTorch's `scaled_dot_product_attention`, its `multi_head_attention_forward` (the function
of nn.MultiheadAttention), and a product q kᵀ, a softmax of it over the keys, and a product with values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from querykey.checkpoint.emission import PROBES

PRODUCTS = {  # and where the two factors are among the arguments
    torch.matmul: 0,
    torch.bmm: 0,
    torch.einsum: 1,
    Tensor.matmul: 0,
    Tensor.__matmul__: 0,
    Tensor.bmm: 0,
    torch.baddbmm: 1,
    Tensor.baddbmm: 1,
}
SOFTMAX = (torch.softmax, Tensor.softmax, F.softmax)
PENDING = 3  # products before the last that a softmax may still be of


class OwnAttention(TorchFunctionMode):
    """Calls `attend(module, query, key, value, scaling=…)` in place of each attention that `model` computes itself.

    `known` tells whether the first of some values came from a weight. `running` holds the modules that run, innermost
    last; `calls` counts the calls of each, and `finished` those without an error. `unfollowed` are those with a softmax
    of products of what `known` does not know.
    """

    def __init__(self, model: nn.Module, known: Callable[[Tensor], bool], attend: Callable[..., Any]) -> None:
        super().__init__()
        self.known, self.attend = known, attend
        self.running: list[nn.Module] = []
        self.calls: Counter[nn.Module] = Counter()
        self.finished: Counter[nn.Module] = Counter()
        self.pending: list[Scores] = []
        self.unfollowed: set[nn.Module] = set()
        for module in model.modules():
            module.register_forward_pre_hook(self._enter)
            module.register_forward_hook(lambda module, *_: self.finished.update([module]))
            module.register_forward_hook(self._leave, always_call=True)

    def _enter(self, module: nn.Module, _: Any) -> None:
        self.running.append(module)
        self.calls[module] += 1

    def _leave(self, *_: Any) -> None:
        self.running.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._fused(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            return self._multi_head(*args, **kwargs)
        if func in SOFTMAX:
            self._softmax(*args, **kwargs)
        if func in PRODUCTS:
            left, right, order = factors(func, args, kwargs)
            scores = next((one for one in self.pending if one.weigh(left)), None)
            if scores and isinstance(right, Tensor):
                return self._attend(scores, (left @ right).shape, right, order)
            if is_score(left, right):
                known = self.known(left) and self.known(right.mT)
                self.pending = [*self.pending[-PENDING:], Scores(left, right, known)]
        return func(*args, **kwargs)

    def _softmax(self, scores: Tensor, *args: Any, **kwargs: Any) -> None:
        """Note which product the softmax is of: the first that fits, since products with positions come later."""
        fits = [one for one in self.pending if one.fits(scores, *args, **kwargs)]
        known = next((one for one in fits if one.known), None)
        if known:
            known.softmax(scores)
        elif fits:
            self.unfollowed.add(self.running[-1])

    def _fused(
        self, query: Tensor, key: Tensor, value: Tensor, *_: Any, scale: float | None = None, **__: Any
    ) -> Tensor:
        """PyTorch's function, from its arguments."""
        scaling = query.shape[-1] ** -0.5 if scale is None else scale
        heads = [four_axes(x) for x in (query, key, value)]
        out: Tensor = self.attend(self.running[-1], *heads, scaling=scaling)[0]
        return out.transpose(1, 2).reshape(*query.shape[:-1], value.shape[-1])

    def _multi_head(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        _: int,
        heads: int,
        weight: Tensor | None,
        bias: Tensor | None,
        *args: Any,
        use_separate_proj_weight: bool = False,
        need_weights: bool = True,
        **kwargs: Any,
    ) -> tuple[Tensor, Tensor | None]:
        """The function of nn.MultiheadAttention, whose activations are (length, batch, dim)."""
        if use_separate_proj_weight or weight is None:
            weights = [kwargs[f"{role}_proj_weight"] for role in "qkv"]
        else:
            weights = list(weight.chunk(3))
        biases = [None] * 3 if bias is None else list(bias.chunk(3))
        inputs = [x.transpose(0, 1) if x.dim() == 3 else x[None] for x in (query, key, value)]
        q, k, v = (
            F.linear(x, W, b).unflatten(-1, (heads, -1)).transpose(1, 2)
            for x, W, b in zip(inputs, weights, biases, strict=True)
        )
        out = self._fused(q, k, v).transpose(1, 2).flatten(2)
        out_weight, out_bias = args[4:6]
        out = F.linear(out, out_weight, out_bias).transpose(0, 1)
        shape = (*q.shape[:1], q.shape[2], k.shape[2])
        return out if query.dim() == 3 else out[:, 0], torch.zeros(shape) if need_weights else None

    def _attend(self, scores: Scores, shape: torch.Size, value: Tensor, order: list[int] | None) -> Tensor:
        self.pending = []
        heads = [four_axes(x) for x in (scores.query, scores.key, value)]
        out: Tensor = self.attend(self.running[-1], *heads, scaling=scores.scaling)[0]
        out = out.transpose(1, 2).reshape(shape)
        return out if order is None else out.permute(order)


class Scores:
    """A product that is the scores of an attention if a softmax and a product with values follow.

    `known` says whether both factors came from weights.
    """

    def __init__(self, left: Tensor, right: Tensor, known: bool) -> None:
        self.query, self.key, self.known = left, right.mT, known
        self.first = (left[..., 0, :] * right[..., :, 0]).sum(-1).reshape(PROBES, -1)  # of the first token with itself
        self.shape = (left.shape[-2], right.shape[-1])
        self.numel = self.first.numel() * self.shape[0] * self.shape[1]
        self.scaling: float | None = None
        self.done = False

    def fits(self, scores: Tensor, dim: int = -1, *_: Any, **__: Any) -> bool:
        """Whether a softmax over keys of `scores` may be of these, whatever was done to them."""
        return scores.numel() == self.numel and scores.shape[-1] == self.shape[1] and dim in (-1, scores.dim() - 1)

    def softmax(self, scores: Tensor) -> None:
        """Record that a softmax of `scores` is of these, and their scale."""
        self.done = True
        first = scores.reshape(PROBES, -1, *self.shape)[:, :, 0, 0]
        ratio = first.diff(dim=0) / self.first.diff(dim=0)
        mean = float(ratio.mean())
        self.scaling = mean if torch.allclose(ratio, torch.full_like(ratio, mean), rtol=1e-3) else None

    def weigh(self, left: Any) -> bool:
        """Whether `left`, the first factor of a product, has the form of these scores after their softmax."""
        fits = isinstance(left, Tensor) and left.numel() == self.numel and left.shape[-2:] == self.shape
        return self.done and fits


def four_axes(x: Tensor) -> Tensor:
    """Queries, keys or values as (batch, heads, length, size), the first axis running over probes, then other things.

    With three axes, batch and heads are one axis; with more than four, the first ones are all the batch.
    """
    if x.dim() == 3:
        return x.reshape(PROBES, -1, *x.shape[-2:]) if not x.shape[0] % PROBES else x[None]
    return x.reshape(-1, *x.shape[-3:])


def factors(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any, list[int] | None]:
    """The factors of a product as (…, rows, size) and (…, size, columns), and how an einsum permutes their product.

    (None, None, None) for an einsum of another form.
    """
    given = (*args, *kwargs.values())
    if func is not torch.einsum:
        left, right = given[PRODUCTS[func] :][:2]
        return left, right, None
    if len(given) == 2 and isinstance(given[1], list | tuple):
        given = (given[0], *given[1])
    terms, _, out = str(given[0]).replace(" ", "").partition("->")
    first, _, second = terms.partition(",")
    rows, columns = ([c for c in one if c not in other] for one, other in ((first, second), (second, first)))
    summed = [c for c in first if c in second and c not in out]
    batch = [c for c in out if c in first and c in second]
    parts = [*batch, *rows, *columns]
    if len(given) != 3 or not len(summed) == len(rows) == len(columns) == 1 or sorted(parts) != sorted(out):
        return None, None, None
    left = given[1].permute(*map(first.index, (*batch, *rows, *summed)))
    right = given[2].permute(*map(second.index, (*batch, *summed, *columns)))
    return left, right, [parts.index(c) for c in out]


def is_score(left: Any, right: Any) -> bool:
    """Whether two factors have the form of queries (…, length, size) and transposed keys (…, size, length)."""
    if not all(
        isinstance(x, Tensor) and not x.is_meta and x.is_floating_point() and x.dim() > 2 for x in (left, right)
    ):
        return False
    if left.shape[-1] != right.shape[-2]:
        return False
    one, many = int(right.numel() // max(right.shape[-1], 1)), int(left.numel() // max(left.shape[-2], 1))
    return one > 0 and many % one == 0 and one % PROBES == 0
