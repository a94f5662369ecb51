"""Running a model without its weights, so that the numbers at any place tell which weights they came from.

The parameters stay on the meta device; everything else is real and small: a batch of a few probes of some tokens.
An operation of a parameter on an activation is not carried out. A matrix product *emits* instead: each of its output
channels gets its own column of random numbers, one number per probe, whatever the input. The numbers that arrive later
at a query or a key are looked up: a column, times a factor, names the row of the weight.

A normalisation cannot be followed in this way, since it mixes its channels in a statistic. It is recognised by its
effect (scaling the input changes nothing) and passes its input on, multiplied by a *mark*: one random number per probe,
which distinguishes values behind the normalisation from others.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from querykey.checkpoint.norms import Behaviour, behaviour

PROBES, TOKENS = 4, 2  # the batch, and the length of a text
COLUMNS = 1 << 19  # channels that can be distinguished at one time; the widest layers known emit 2e5
HUGE = 1 << 24  # numbers in an activation that is never computed; the queries of an image have up to 4e6
LARGE = 1 << 20  # numbers in an unknown result, as of a convolution, from which on it is blank
TOLERANCE = 1e-5  # relative; some models rotate in float32

CASTS = (Tensor.to, Tensor.float, Tensor.type, Tensor.type_as, Tensor.half, Tensor.bfloat16)
MATMULS = (torch.matmul, torch.mm, Tensor.matmul, Tensor.mm, Tensor.__matmul__)
SUMS = (torch.add, Tensor.add, Tensor.__add__)


class Product(NamedTuple):
    """Where emitted channels come from: channel c is row (column, if `transposed`) `first + c` of `weight`.

    The number `places[c]` of the parameter `name` is added to it for each bias (name, places).
    """

    weight: str
    biases: tuple[tuple[str, Int[Tensor, " channels"]], ...]
    transposed: bool
    first: int
    input: Tensor


class Unknown(NamedTuple):
    """Channels of an operation that cannot be followed; `what` names it."""

    what: str


class Emission(NamedTuple):
    """The columns `start … start + size` of the table are the channels of `source`; `number` counts emissions."""

    start: int
    size: int
    source: Product | Unknown
    number: int


class Mark(NamedTuple):
    """One use of a normalisation: it multiplied its `input` by `factor`, per probe."""

    module: str
    behaviour: Behaviour
    factor: Float[Tensor, " probes"]
    input: Tensor


class Emitter(TorchFunctionMode):
    """Stands in for the parameters of `model` while it runs. The model is modified and must not be used otherwise."""

    def __init__(self, model: nn.Module, generator: torch.Generator) -> None:
        super().__init__()
        self.names = {_storage(p): (name, p) for name, p in reversed(list(model.named_parameters()))}
        self.buffers = {_storage(buffer) for buffer in model.buffers()}
        self.generator = generator
        self.table = torch.rand(PROBES, COLUMNS, generator=generator, dtype=torch.float64) + 0.5
        self.table[1] = self.table[0] * (1 + torch.arange(COLUMNS) / COLUMNS)  # their ratio gives the column
        self.next = self.count = 0
        self.emissions: list[Emission] = []
        self.marks: list[Mark] = []
        self.behaviours: dict[tuple[object, ...], Behaviour | None] = {}
        self.learned: dict[int, tuple[Tensor, Tensor]] = {}
        for name, module in model.named_modules():
            if not list(module.children()):
                module.forward = partial(self._leaf, name, module, module.forward)

    def emit(self, shape: Iterable[int], source: Product | Unknown) -> Tensor:
        """New columns, one per channel of the last axis; the first axis runs over probes, then over other things."""
        *leading, size = shape
        if size > COLUMNS:
            raise ValueError(f"a layer has {size} channels; at most {COLUMNS} can be distinguished")
        start = self.next if self.next + size <= COLUMNS else 0
        self.next = start + size
        self._free(start, self.next)
        self.count += 1
        self.emissions.append(Emission(start, size, source, self.count))
        total = math.prod(leading)
        each = max(total // PROBES, 1)
        probe = (torch.arange(total) // each).clamp(max=PROBES - 1)
        return self.table[:, start : self.next][probe].reshape(*leading, size)

    def _free(self, start: int, stop: int) -> None:
        """Remove the emissions that have columns there, and change their numbers, so that old values match nothing."""
        kept = []
        for emission in self.emissions:
            if emission.start >= stop or emission.start + emission.size <= start:
                kept.append(emission)
            else:
                stale = self.table[2:, emission.start : emission.start + emission.size]
                stale.uniform_(0.5, 1.5, generator=self.generator)
        self.emissions = kept

    def locate(self, values: Float[Tensor, "probes n"]) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"]]:
        """The column of the table that each of `values` is a multiple of (−1: none), and the factor."""
        first, second = values[0], values[1]
        column = ((second / first - 1) * COLUMNS).nan_to_num(-1, -1, -1).round().clamp(-1, COLUMNS).long()
        known = self.table[:, column.clamp(0, COLUMNS - 1)]
        factor = first / known[0]
        error = (known * factor - values).abs().amax(0) / values.abs().amax(0)
        found = (error < TOLERANCE) & (column >= 0) & (column < COLUMNS)
        return column.where(found, -1), factor.where(found, 0.0)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        meta = [t.is_meta for t in _tensors((*args, *kwargs.values()))]
        if func == Tensor.device.__get__:
            return torch.device("cpu")  # models create masks and positions on the device of their parameters
        if not any(meta):
            if any(self._blank(t) for t in _tensors((*args, *kwargs.values()))):
                return _skip(func, args, kwargs)
            return func(*args, **kwargs) if func not in CASTS else _cast(func, *args, **kwargs)
        if all(meta):
            if func is not nn.functional.linear or args[0].dim() < 3 or args[0].shape[0] % PROBES:
                return func(*_to_meta(args), **_to_meta(kwargs))
            args = (self._learned(args[0]), *args[1:])
        return self._replace(func, args, kwargs)

    def _learned(self, x: Tensor) -> Tensor:
        """Numbers for learned queries: a parameter, one for each example, that a projection has as its input."""
        if _storage(x) not in self.learned:
            self.learned[_storage(x)] = x, torch.rand(x.shape, generator=self.generator, dtype=torch.float64)
        return self.learned[_storage(x)][1]

    def _blank(self, t: Tensor) -> bool:
        """Whether `t` is not worth an operation: zeros of `_zeros` without memory, or huge."""
        size = t.numel()
        return size > LARGE and (not any(t.stride()) or (size > HUGE and _storage(t) not in self.buffers))

    def _replace(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The result of an operation of a parameter on an activation: the right shape, and new columns."""
        if func in SUMS and len(args) == 2 and not kwargs:
            x, bias = args if isinstance(args[1], Tensor) and args[1].is_meta else args[::-1]
            if (sum_ := self._biased(x, bias)) is not None:
                return sum_
        shapes = func(*_to_meta(args), **_to_meta(kwargs))
        source = self._product(func, args, kwargs) or Unknown(self._describe(func, args, kwargs))

        def stand_in(t: Any) -> Any:
            if not isinstance(t, Tensor):
                return t
            if not t.is_floating_point() or (isinstance(source, Unknown) and t.numel() > LARGE):
                return _zeros(t)
            return self.emit(t.shape or (1,), source).reshape(t.shape).to(t.dtype)

        result = tree_map(stand_in, shapes)
        name = getattr(func, "__name__", "")
        if name.endswith("_") and not name.endswith("__") and isinstance(args[0], Tensor) and not args[0].is_meta:
            return args[0].copy_(result)
        return result

    def _product(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Product | None:
        """`x @ W + b` in the forms that models use; None for everything else."""
        if func is nn.functional.linear:
            x, matrix, bias = _linear(*args, **kwargs)
        elif func is torch.addmm and len(args) == 3 and not kwargs:
            bias, x, matrix = args
        elif func in MATMULS and len(args) == 2 and not kwargs:
            x, matrix, bias = *args, None
        else:
            return None
        name, parameter = self.names.get(_storage(matrix), ("", None))
        if x.is_meta or parameter is None or parameter.dim() != 2 or matrix.dim() != 2:
            return None
        height, width = parameter.shape
        first, column = divmod(int(matrix.storage_offset()), width)
        if matrix.stride() == (1, width) and matrix.shape[0] == width and not column:
            transposed = False
        elif matrix.stride() == (width, 1) and matrix.shape[0] == height and not first:
            transposed, first = True, column
        else:
            return None  # a part of its inputs, or rows with steps
        if bias is None:
            return Product(name, (), transposed, first, x)
        bias_name, whole = self.names.get(_storage(bias), ("", None))
        if whole is None or whole.dim() != 1 or bias.storage_offset() != first or bias.shape != matrix.shape[1:]:
            return None
        return Product(name, ((bias_name, torch.arange(first, first + matrix.shape[1])),), transposed, first, x)

    def _biased(self, x: Any, bias: Any) -> Tensor | None:
        """`x + bias` as new columns of the same product; None unless each channel gets its own number of a parameter.

        The bias may have axes of heads: Transformer-XL adds one to its queries (1901.02860, section 3.3).
        """
        name, parameter = self.names.get(_storage(bias), ("", None)) if isinstance(bias, Tensor) else ("", None)
        if parameter is None or not isinstance(x, Tensor) or x.is_meta or x.numel() % PROBES or x.numel() > LARGE:
            return None
        if bias.dim() > x.dim() or any(
            b not in (1, n) for b, n in zip(bias.shape, x.shape[-bias.dim() :], strict=True)
        ):
            return None
        with torch._C.DisableTorchFunction():
            column, factor = self.locate(x.reshape(PROBES, -1).double())
            places = torch.arange(parameter.numel()).as_strided(bias.shape, bias.stride(), bias.storage_offset())
            place = places.expand(x.shape).reshape(PROBES, -1)[0]
            for start, size, source, _ in self.emissions:
                if isinstance(source, Product) and start <= column[0] < start + size:
                    at, places = (column - start).clamp(0, size - 1), torch.zeros(size, dtype=torch.long)
                    places[at] = place
                    whole = torch.equal(at, column - start) and bool(((factor - 1).abs() < TOLERANCE).all())
                    if not whole or not torch.equal(places[at], place):
                        return None
                    new = self.emit((PROBES, size), source._replace(biases=(*source.biases, (name, places))))
                    return new[:, at].reshape(x.shape).to(x.dtype)
        return None

    def _describe(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        tensors = [t for t in _tensors((*args, *kwargs.values())) if t.is_meta]
        names = [self.names.get(_storage(t), ("a parameter", None))[0] for t in tensors]
        return f"{getattr(func, '__name__', func)} with {', '.join(names)}"

    def _leaf(self, name: str, module: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """The forward of every module without children: a normalisation passes its input on, with a mark."""
        x = args[0] if len(args) == 1 and not kwargs else None
        if not isinstance(x, Tensor) or x.is_meta or not x.is_floating_point() or x.numel() % PROBES:
            return forward(*args, **kwargs)
        rows = x.reshape(PROBES, -1)
        if self.locate(rows[:, :2].double())[0].min() < 0:
            return forward(x)
        if (name, x.shape) not in self.behaviours:
            self.behaviours[name, x.shape] = behaviour(module, x.shape)
        known = self.behaviours[name, x.shape]
        if known is None:
            return forward(x)
        factor = torch.rand(PROBES, generator=self.generator, dtype=torch.float64) + 0.5
        self.marks = [Mark(name, known, factor, x), *self.marks]
        return (rows * factor[:, None]).reshape(x.shape)


def first_token(x: Tensor) -> Float[Tensor, "probes dim"]:
    """The numbers of the first token, where the first axis of `x` runs over probes, then over tokens."""
    return x.reshape(PROBES, -1, x.shape[-1])[:, 0].double()


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor | None]:
    """The two factors and the bias among the arguments of torch.nn.functional.linear."""
    return input, weight.t(), bias


def _cast(func: Callable[..., Any], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """A cast of `x`, but never to lower precision: the table finds numbers by their digits."""
    y: Tensor = func(x, *args, **kwargs)
    return x if y.is_floating_point() and x.dtype == torch.float64 else y


def _skip(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The result of an operation as zeros of the right shape."""
    try:
        shapes = func(*_to_meta(args), **_to_meta(kwargs))
    except (RuntimeError, NotImplementedError, TypeError):  # an operation that needs the numbers
        return func(*args, **kwargs)
    return tree_map(lambda t: _zeros(t) if isinstance(t, Tensor) else t, shapes)


def _zeros(shape: Tensor) -> Tensor:
    """Zeros of that shape and type, without memory if they are many."""
    if shape.numel() > LARGE:
        return torch.zeros((), dtype=shape.dtype).expand(shape.shape)
    return torch.zeros(shape.shape, dtype=shape.dtype)


def _storage(t: Tensor) -> int:
    return int(t.untyped_storage()._cdata)


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among arguments, and in lists among them."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _to_meta(tree: Any) -> Any:
    """The same arguments for an operation on shapes alone."""

    def convert(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.to("meta")
        return (
            torch.device("meta")
            if isinstance(leaf, torch.device) or (isinstance(leaf, str) and leaf == "cpu")
            else leaf
        )

    return tree_map(convert, tree)
