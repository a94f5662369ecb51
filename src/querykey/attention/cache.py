"""What step-by-step decoding keeps: keys and values, or the one tensor that is both."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from querykey.attention import masks

_FIRST = 64  # positions that are made room for at first; then the room doubles


class KVCache:
    """The keys and values of the positions seen so far, laid out (batch, heads, length, size) as kernels want them.

    Empty at first; a layer fills it: ``layer(x, cache=cache)``. Room is made in advance and doubled when full, so that
    a step copies its own position only. What a sliding window has left behind is dropped when the room is full, which
    then need not grow: it stays below twice the window, or at its first 64 positions. Under autograd, where what was
    read must not be overwritten, it concatenates. A shallow copy shares the room: go on from one of the two only.

    Args:
        limit: the most positions that it may hold from one call to the next; None for no limit. With a window these
            are one less than the window.
        padding: how many positions each row of the batch begins with that are none, (batch,), so that sequences of
            different lengths end together. Nothing attends to them, and what a row gives is what it would give alone.
        keep_rotated: where keys and values are one tensor, but keys are rotated or normalised: keep these keys too.
            That takes twice the bytes, and saves working them out anew at each step.
    """

    def __init__(
        self,
        limit: int | None = None,
        *,
        padding: Int[Tensor, " batch"] | None = None,
        keep_rotated: bool = False,
    ) -> None:
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"the limit of a cache must be positive, a whole number of positions, not {limit!r}")
        self.limit = limit
        self.padding = padding = None if padding is None else _checked(torch.as_tensor(padding))
        self.keep_rotated = keep_rotated
        rows = [0] if padding is None else padding.tolist()
        self.least_padding, self._most_padding = min(rows), max(rows)  # known once, without asking a device each step
        self._room: dict[str, Tensor] = {}
        self._first = 0  # the position that lies first in the room
        self._length = 0

    def __len__(self) -> int:
        """Number of positions seen, padding and what a window has dropped among them."""
        return self._length

    @property
    def held(self) -> int:
        """Number of positions that are kept: those seen, less what a window has dropped."""
        return self._length - self._first

    @property
    def nbytes(self) -> int:
        """Bytes of the positions that are held; the room that is made in advance for later ones is not counted."""
        return sum(room[:, :, : self.held].numel() * room.element_size() for room in self._room.values())

    def reach(self, new: int, window: int | None) -> int:
        """How many positions the next `new` ones can see, themselves included."""
        total = self._length + new
        return total if window is None else min(total, window - 1 + new)

    def append(self, window: int | None = None, **new: Tensor) -> tuple[Tensor, ...]:
        """Keep these (batch, heads, new positions, size), and give back all that they can see, in the same order.

        Raises:
            ValueError: if they differ from what is kept in more than their length, or there would be more than `limit`.
        """
        count = next(iter(new.values())).shape[2]
        seen = self.reach(count, window)
        stays = seen
        if window is not None and (count >= window or (self.limit is not None and seen > self.limit)):
            stays = min(seen, window - 1)  # what is over is not kept, and never was in the room
        self._check(new, stays, seen - count)
        tracked = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (*new.values(), *self._room.values())
        )
        if tracked or stays < seen:
            return self._join(new, seen - count, stays, tracked)
        return self._write(new, seen - count, count)

    def hidden(self, mask: Tensor | None, first: int, end: int, device: torch.device) -> Tensor | None:
        """`mask`, or None, for the positions from `first` to `end` alone, with the padding among them hidden."""
        if mask is not None and mask.shape[-1] > end - first:
            mask = mask[..., first:]
        if self.padding is None or self._most_padding <= first:
            return mask
        self.padding = self.padding.to(device)
        real = torch.arange(first, end, device=device) >= self.padding[:, None]
        return masks.restrict(mask, real[:, None, None, :])

    def _join(self, new: dict[str, Tensor], kept: int, keep: int, tracked: bool) -> tuple[Tensor, ...]:
        """By concatenation, of which the last `keep` stay: under autograd, and for more at once than a window holds."""
        begin = self._length - kept - self._first
        joined = {
            name: torch.cat([self._room[name][:, :, begin : begin + kept], tensor], 2) if kept else tensor
            for name, tensor in new.items()
        }
        self._length += next(iter(new.values())).shape[2]
        self._first = self._length - keep
        for name, tensor in joined.items():
            last = tensor[:, :, tensor.shape[2] - keep :]
            self._room[name] = last if tracked else last.clone()
        return tuple(joined.values())

    def _write(self, new: dict[str, Tensor], kept: int, count: int) -> tuple[Tensor, ...]:
        """Into the room, or into a new one when it is full, to which those `kept` positions move."""
        begin = self._length - kept - self._first
        if begin + kept + count > self._capacity:
            capacity = max(_FIRST, 2 * kept, kept + count)
            capacity = min(capacity, self.limit or capacity)
            for name, tensor in new.items():
                batch, heads, _, size = tensor.shape
                with torch.inference_mode(False):  # or the room could not be written to when that is over
                    larger = tensor.new_empty(batch, heads, capacity, size)
                if kept:
                    larger[:, :, :kept] = self._room[name][:, :, begin : begin + kept]
                self._room[name] = larger
            self._first, begin = self._length - kept, 0
        self._length += count
        for name, tensor in new.items():
            self._room[name][:, :, begin + kept : begin + kept + count] = tensor
        return tuple(self._room[name][:, :, begin : begin + kept + count] for name in new)

    @property
    def _capacity(self) -> int:
        return next(iter(self._room.values())).shape[2] if self._room else 0

    def _check(self, new: dict[str, Tensor], stays: int, kept: int) -> None:
        if self.limit is not None and stays > self.limit:
            raise ValueError(f"the cache holds {kept} of at most {self.limit} positions; {stays} would be too many")
        if self._room and _signature(self._room) != _signature(new):
            raise ValueError(
                f"the cache holds {_in_words(self._room)}, but was given {_in_words(new)}; "
                "use one cache for each layer, batch and dtype"
            )
        batch = next(iter(new.values())).shape[0]
        if self.padding is not None and len(self.padding) != batch:
            raise ValueError(f"the cache knows the padding of {len(self.padding)} rows, but the batch has {batch}")
        if self._length - kept < self._first:
            raise ValueError(
                f"the cache has dropped positions before {self._first}, but those from {self._length - kept} can be "
                "seen; use one cache for each layer"
            )


def _checked(padding: Tensor) -> Tensor:
    if (
        padding.ndim != 1
        or not len(padding)
        or padding.is_floating_point()
        or padding.dtype == torch.bool
        or bool((padding < 0).any())
    ):
        raise ValueError(
            "padding must be one number of positions, from 0, for each row of the batch, "
            f"not {padding.tolist()} ({padding.dtype})"
        )
    return padding


def _in_words(tensors: dict[str, Tensor]) -> str:
    kinds = (
        f"{name} of {batch} rows and {heads} heads of {size}, {str(dtype).removeprefix('torch.')} on {device}"
        for name, (batch, heads, size, dtype, device) in _signature(tensors).items()
    )
    return " and ".join(kinds)


def _signature(tensors: dict[str, Tensor]) -> dict[str, tuple[object, ...]]:
    return {
        name: (tensor.shape[0], tensor.shape[1], tensor.shape[3], tensor.dtype, tensor.device)
        for name, tensor in tensors.items()
    }
