"""The rows of weights behind the numbers that arrive at an attention function."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import takewhile

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from querykey.checkpoint.emission import COLUMNS, PROBES, Emission, Emitter, Mark, Unknown, first_token
from querykey.checkpoint.headmap import Bias, CheckpointError, Norm, Projection, Reason, Rows

EXACT = 1e-9  # a factor this close to 1 is 1


class UntraceableError(CheckpointError):
    """A layer that cannot be traced, with the reason."""

    def __init__(self, template: str, **values: object) -> None:
        self.reason = Reason(template, **values)
        super().__init__(self.reason)


class MixedError(UntraceableError):
    """A query, key or value that is not a row of a weight at the token that was looked at."""


class Tracer:
    """Looks up values among those that `emitter` has emitted while `model` ran."""

    def __init__(self, emitter: Emitter, model: nn.Module) -> None:
        self.emitter = emitter
        self.modules = dict(model.named_modules())
        self.kept: dict[tuple[object, ...], Tensor] = {}

    def scope(self, values: Float[Tensor, "probes heads size"], module: str) -> str:
        """The path that the first weight behind `values` shares with `module`: weights below belong to the layer."""
        found = self._find(values.reshape(PROBES, -1)[:, :1])
        weight = next(self._groups(*found), None)
        if weight is None or isinstance(weight[0].source, Unknown):
            return module
        steps = zip(module.split("."), weight[0].source.weight.split("."), strict=False)
        return ".".join(a for a, _ in takewhile(lambda step: step[0] == step[1], steps))

    def known(self, values: Tensor) -> bool:
        """Whether the first of `values` came from a weight."""
        if values.numel() % PROBES:
            return False
        with torch._C.DisableTorchFunction():
            return bool(self._find(values.reshape(PROBES, -1)[:, :1].double())[0] >= 0)

    def follow(
        self, values: Float[Tensor, "probes heads size"], role: str, scope: str
    ) -> tuple[Projection, Float[Tensor, "probes dim"]]:
        """The projection behind `values`, those of one `role` at one token, and its input at the first token."""
        _, heads, size = values.shape
        column, scale, lens = self._find(values.reshape(PROBES, -1))
        if column.min() < 0:
            head, channel = divmod(int((column < 0).nonzero()[0]), size)
            raise MixedError(
                "channel {channel} of {role} head {head} is not a multiple of one row of a weight that it uses",
                channel=channel,
                role=role,
                head=head,
            )
        parts, streams = [], []
        for emission, mark, at in self._groups(column, scale, lens):
            part, stream = self._part(emission, mark, at, column[at], scale[at], role, scope)
            parts.append(part)
            streams.append(stream)
        if not all(same(stream, streams[0]) for stream in streams):
            raise UntraceableError("the parts of its {role} act on different inputs", role=role)
        return Projection(heads, size, tuple(parts)), streams[0]

    def output(self, result: Emission, heads: int) -> Projection | None:
        """The weight that acts on `result`, the emission for the output of all heads; None if it cannot be traced."""
        for emission in self.emitter.emissions:
            source = emission.source
            if emission.number <= result.number or isinstance(source, Unknown) or not self.known(source.input[..., :1]):
                continue
            column, scale, lens = self._find(first_token(source.input))
            at = column - result.start
            if at.min() < 0 or at.max() >= result.size or len(at.unique()) < result.size:
                continue
            parts = []
            for _, mark, rows in self._groups(column, scale, lens):
                norm, gain = self._norm(mark, column[rows]) if mark else (None, None)
                name, transposed = source.weight, not source.transposed
                where = self._once(at[rows]), self._once(rows), self._once(scale[rows])
                parts.append(Rows(name, (), transposed, *where, norm, gain))
            return Projection(heads, result.size // heads, tuple(parts))
        return None

    def _part(
        self,
        emission: Emission,
        mark: Mark | None,
        at: Int[Tensor, " n"],
        column: Int[Tensor, " n"],
        scale: Float[Tensor, " n"],
        role: str,
        scope: str,
    ) -> tuple[Rows, Float[Tensor, "probes dim"]]:
        source = emission.source
        if isinstance(source, Unknown):
            raise UntraceableError(
                "its {role} comes out of {what}, which cannot be traced", role=role, what=source.what
            )
        if scope and not source.weight.startswith(f"{scope}."):
            raise UntraceableError(
                "its {role} comes from {weight}, which is not its own", role=role, weight=source.weight
            )
        stream = first_token(source.input)
        inner = None
        if self._inside(stream[:, :1], scope):
            inner, stream = self.follow(stream[:, None], role, scope)
        channels = column - emission.start
        rows = channels + source.first
        norm, gain = self._norm(mark, column) if mark else (None, None)
        biases = tuple(Bias(name, self._once(places[channels])) for name, places in source.biases)
        at, rows, scale = self._once(at), self._once(rows), self._once(scale)
        return Rows(source.weight, biases, source.transposed, at, rows, scale, norm, gain, inner), stream

    def _inside(self, value: Float[Tensor, "probes 1"], scope: str) -> bool:
        """Whether a value is the output of one of the weights in `scope`."""
        for emission, _, _ in self._groups(*self._find(value)):
            return not isinstance(emission.source, Unknown) and emission.source.weight.startswith(f"{scope}.")
        return False

    def _norm(self, mark: Mark, column: Int[Tensor, " n"]) -> tuple[Norm, Int[Tensor, " n"]]:
        size = mark.input.shape[-1]
        places = max([p.numel() for p in self.modules[mark.module].parameters()], default=size)
        inputs, _ = self.emitter.locate(mark.input.reshape(PROBES, -1).double())
        place = torch.full((COLUMNS,), -1)
        place[inputs[inputs >= 0]] = torch.arange(len(inputs))[inputs >= 0] % places
        gain = place[column]
        if gain.min() < 0:
            raise UntraceableError("the input of {module} cannot be traced", module=mark.module)
        does = mark.behaviour
        weight, bias = (f"{mark.module}.{name}" if name else None for name in (does.gain, does.bias))
        rotated = weight is not None and bool((inputs < 0).any())
        norm = Norm(weight, bias, does.offset, does.slope, does.centred, size, rotated)
        return norm, self._once(gain)

    def _once(self, numbers: Tensor) -> Tensor:
        """`numbers`, or the equal tensor of an earlier layer: most layers are alike, and there may be a hundred."""
        key = (numbers.dtype, len(numbers), float(numbers.sum()), float(numbers[0]))
        known = self.kept.setdefault(key, numbers)
        return known if torch.equal(known, numbers) else numbers

    def _find(
        self, values: Float[Tensor, "probes n"]
    ) -> tuple[Int[Tensor, " n"], Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Column (−1: not found), factor, and number of the mark of each value (−1: none)."""
        column, scale = self.emitter.locate(values)
        lens = torch.full_like(column, -1)
        for number, mark in enumerate(self.emitter.marks):
            lost = (column < 0).nonzero().flatten()
            if not len(lost):
                break
            bare = values[:, lost] / mark.factor[:, None]
            if self.emitter.locate(bare[:, :1])[0] >= 0:  # else not of this normalisation
                column[lost], scale[lost] = self.emitter.locate(bare)
                lens[lost] = number
        return column, scale.where((scale - 1).abs() > EXACT, 1.0), lens

    def _groups(
        self, column: Int[Tensor, " n"], scale: Float[Tensor, " n"], lens: Int[Tensor, " n"]
    ) -> Iterator[tuple[Emission, Mark | None, Int[Tensor, " n"]]]:
        """The places in `column` by emission and normalisation."""
        emissions = sorted(self.emitter.emissions, key=lambda emission: emission.start)
        starts = torch.tensor([emission.start for emission in emissions])
        owner = torch.searchsorted(starts, column, right=True) - 1  # −1 before the first, as for column −1
        marks = len(self.emitter.marks) + 1
        group = owner * marks + lens + 1
        for number in group[owner >= 0].unique().tolist():
            mark = number % marks - 1
            at = (group == number).nonzero().flatten()
            yield emissions[number // marks], self.emitter.marks[mark] if mark >= 0 else None, at


def same(a: Tensor, b: Tensor) -> bool:
    """Whether two inputs are the same."""
    return a.shape == b.shape and bool(torch.equal(a.nan_to_num(), b.nan_to_num()))
