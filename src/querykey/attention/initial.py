"""Initial values of weights, also where a parameter is sharded over processes (DTensor)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from querykey.layout import Weight


@torch.no_grad()
def initialise(
    parameter: Tensor, weight: Weight, generator: torch.Generator | None = None, rows: slice | None = None
) -> None:
    """Fill a parameter, or these rows of it, with the initial values of a weight.

    Of a sharded parameter each process draws the whole, and keeps its shard of what the first process drew.
    """
    with _whole(parameter) as whole:
        tensor = whole if rows is None else whole[rows]
        match weight.init:
            case "normal":
                tensor.normal_(0.0, weight.scale, generator=generator)
            case "constant":
                tensor.fill_(weight.scale)
            case "alternating":
                tensor[..., 0::2], tensor[..., 1::2] = 1.0, -1.0


@torch.no_grad()
def copy_rows(parameter: Tensor, source: slice, target: slice) -> None:
    """Copy rows of a parameter to other rows of it."""
    with _whole(parameter) as whole:
        whole[target] = whole[source]


@contextmanager
def _whole(parameter: Tensor) -> Iterator[Tensor]:
    """The parameter, to be written to; for a sharded one a copy of the whole, which is sharded again at the end."""
    if type(parameter) in (Tensor, nn.Parameter) or not torch.distributed.is_available():
        yield parameter
        return
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not isinstance(parameter, DTensor):
        yield parameter
        return
    whole = parameter.full_tensor()
    yield whole
    parameter.copy_(distribute_tensor(whole, parameter.device_mesh, parameter.placements))
