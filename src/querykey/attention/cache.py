"""What step-by-step decoding keeps: keys and values, or the one tensor that is both."""

from __future__ import annotations

import torch
from torch import Tensor

_FIRST = 64  # positions that are made room for at first; then the room doubles


class KVCache:
    """The keys and values of the positions seen so far, laid out (batch, heads, length, size) as kernels want them.

    Empty at first; a layer fills it: ``layer(x, cache=cache)``. Room is made in advance and doubled when full, so that
    a step copies its own position only. Under autograd, where what was read must not be overwritten, it concatenates.

    Args:
        limit: the most positions that it may hold; None for no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < 1:
            raise ValueError(f"the limit of a cache must be positive, not {limit}")
        self.limit = limit
        self._room: dict[str, Tensor] = {}
        self._length = 0

    def __len__(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept; the room that is made in advance is not counted."""
        return sum(room[:, :, : self._length].numel() * room.element_size() for room in self._room.values())

    def append(self, **new: Tensor) -> tuple[Tensor, ...]:
        """Keep these (batch, heads, new positions, size), and give back all that is kept, in the same order.

        Raises:
            ValueError: if they differ from what is kept in more than their length, or there would be more than `limit`.
        """
        total = self._length + next(iter(new.values())).shape[2]
        if self.limit is not None and total > self.limit:
            raise ValueError(
                f"the cache holds {self._length} of at most {self.limit} positions; {total} would be too many"
            )
        if self._room and self._signature(self._room) != self._signature(new):
            raise ValueError(
                f"the cache holds {self._signature(self._room)} but was given {self._signature(new)} "
                "(batch, heads, size, dtype, device); use one cache for each layer and batch"
            )
        tracked = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (*new.values(), *self._room.values())
        )
        for name, tensor in new.items():
            self._room[name] = self._joined(name, tensor) if tracked else self._written(name, tensor, total)
        self._length = total
        return tuple(self._room[name][:, :, :total] for name in new)

    def _joined(self, name: str, tensor: Tensor) -> Tensor:
        kept = [self._room[name][:, :, : self._length]] if self._room.get(name) is not None else []
        return torch.cat([*kept, tensor], 2)

    def _written(self, name: str, tensor: Tensor, total: int) -> Tensor:
        room = self._room.get(name)
        if room is None or room.shape[2] < total:
            capacity = max(_FIRST, 2 * (room.shape[2] if room is not None else 0), total)
            batch, heads, _, size = tensor.shape
            larger = tensor.new_empty(batch, heads, min(capacity, self.limit or capacity), size)
            if room is not None:
                larger[:, :, : self._length] = room[:, :, : self._length]
            room = larger
        room[:, :, self._length : total] = tensor
        return room

    @staticmethod
    def _signature(tensors: dict[str, Tensor]) -> dict[str, tuple[object, ...]]:
        return {
            name: (tensor.shape[0], tensor.shape[1], tensor.shape[3], tensor.dtype, tensor.device)
            for name, tensor in tensors.items()
        }
