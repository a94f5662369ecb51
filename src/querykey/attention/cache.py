"""KV caches: the keys and values of the positions that decoding has seen, or the one tensor that both are made of."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor

from querykey.attention.buffers import Cache, in_words, signature
from querykey.attention.sequence import Span
from querykey.attention.static import StaticCache

_FIRST = 64  # positions of the first buffer; then its capacity doubles


class KVCache(Cache):
    """The keys and values of the positions seen so far, laid out (batch, heads, length, size) as kernels want them.

    Empty at first; a layer fills it: ``layer(x, cache=cache)``. The buffer is preallocated and doubles when it is full,
    so that a step copies its own position only. Positions that a sliding window no longer sees are dropped when the
    buffer is full: its capacity stays below twice the window, or at its first 64 positions. Under autograd, where what
    was read must not be overwritten, new positions are concatenated. A shallow copy shares the buffer: continue from
    one of the two only. ``KVCache.static(batch, length, layout)`` is a `StaticCache`, which compiles to one graph.

    Args:
        limit: the most positions that are kept from one call to the next; None for no limit. With a window these are
            one less than the window.
        padding: number of padding positions at the start of each row of the batch, (batch,), so that sequences of
            different lengths end together. Nothing attends to them, and rows are independent of one another.
        keep_rotated: where one tensor serves as keys and values, but keys are rotated, normalised or made of a latent:
            keep these keys too. That takes more bytes, and saves making them anew at each step.
    """

    static = StaticCache

    def __init__(
        self,
        limit: int | None = None,
        *,
        padding: Int[Tensor, " batch"] | None = None,
        keep_rotated: bool = False,
    ) -> None:
        if limit is not None and (not isinstance(limit, int) or limit < 1):
            raise ValueError(f"the limit of a cache must be positive, a whole number of positions, not {limit!r}")
        super().__init__(padding, keep_rotated)
        self.limit = limit
        self._first = 0  # the position that lies first in the buffers
        self._length = 0

    def __len__(self) -> int:
        """Number of positions seen, padding and those that a window has dropped among them."""
        return self._length

    @property
    def stored(self) -> int:
        """Number of positions that are kept: those seen, less those that a window has dropped."""
        return self._length - self._first

    @property
    def nbytes(self) -> int:
        """Bytes of the positions that are stored; free capacity is not counted."""
        return sum(tensor.numel() * tensor.element_size() for tensor in self.contents().values())

    def contents(self) -> dict[str, Tensor]:
        """What is stored, by name: views of the buffers, (batch, heads, positions, size) each."""
        return {name: buffer[:, :, : self.stored] for name, buffer in self._buffers.items()}

    def next_positions(self, new: int) -> Span | Tensor:
        """The positions of the next `new` ones: a span, or a tensor where a graph must not depend on them."""
        return Span(self._length, self._length + new)

    def visible(self, new: int, window: int | None) -> int:
        """How many positions the next `new` ones can see, themselves included."""
        total = self._length + new
        return total if window is None else min(total, window - 1 + new)

    def append(self, window: int | None = None, **new: Tensor) -> tuple[Tensor, ...]:
        """Store these (batch, heads, new positions, size), and return all that they can see, in the same order.

        Raises:
            ValueError: if they differ from what is stored in more than their length, or there would be more than
                `limit`.
        """
        count = next(iter(new.values())).shape[2]
        seen = self.visible(count, window)
        stays = seen
        if window is not None and (count >= window or (self.limit is not None and seen > self.limit)):
            stays = min(seen, window - 1)  # what is over is not kept, and never was in the buffer
        if not self._length and signature(self._buffers) != signature(new):
            self._buffers = {}  # after a reset
        self._check(new, stays, seen - count)
        tracked = torch.is_grad_enabled() and any(
            tensor.requires_grad for tensor in (*new.values(), *self._buffers.values())
        )
        if tracked or stays < seen:
            return self._join(new, seen - count, stays, tracked)
        return self._write(new, seen - count, count)

    def crop(self, length: int) -> None:
        """Forget all but the first `length` positions; a negative number forgets that many of the last.

        Raises:
            ValueError: if there are fewer positions, or a window has dropped some of those that would be left.
        """
        kept = length if length >= 0 else self._length + length
        if not 0 <= kept <= self._length:
            raise ValueError(f"the cache has seen {self._length} positions, so it cannot be cropped to {length}")
        if self._first and kept < self._length:
            raise ValueError(
                f"the cache has dropped positions before {self._first}, which those before {kept} may see; "
                "make a new cache"
            )
        self._length = kept

    def reset(self) -> None:
        """Forget all positions, and the layer that the cache belongs to. The buffers stay, padding too."""
        self._first = self._length = 0
        self._owner = None
        self.detach()

    def _join(self, new: dict[str, Tensor], kept: int, keep: int, tracked: bool) -> tuple[Tensor, ...]:
        """By concatenation, of which the last `keep` stay: under autograd, and for more at once than a window sees."""
        begin = self._length - kept - self._first
        joined = {
            name: torch.cat([self._buffers[name][:, :, begin : begin + kept], tensor], 2) if kept else tensor
            for name, tensor in new.items()
        }
        self._length += next(iter(new.values())).shape[2]
        self._first = self._length - keep
        for name, tensor in joined.items():
            last = tensor[:, :, tensor.shape[2] - keep :]
            self._buffers[name] = last if tracked else last.clone()
        return tuple(joined.values())

    def _write(self, new: dict[str, Tensor], kept: int, count: int) -> tuple[Tensor, ...]:
        """Into the buffers, or into larger ones when they are full, to which those `kept` positions move."""
        begin = self._length - kept - self._first
        if begin + kept + count > self._capacity:
            capacity = max(_FIRST, 2 * kept, kept + count)
            capacity = min(capacity, self.limit or capacity)
            for name, tensor in new.items():
                batch, heads, _, size = tensor.shape
                with torch.inference_mode(False):  # or the buffer could not be written to when that is over
                    larger = tensor.new_empty(batch, heads, capacity, size)
                if kept:
                    larger[:, :, :kept] = self._buffers[name][:, :, begin : begin + kept]
                self._buffers[name] = larger
            self._first, begin = self._length - kept, 0
        self._length += count
        for name, tensor in new.items():
            self._buffers[name][:, :, begin + kept : begin + kept + count] = tensor
        return tuple(self._buffers[name][:, :, begin : begin + kept + count] for name in new)

    @property
    def _capacity(self) -> int:
        return next(iter(self._buffers.values())).shape[2] if self._buffers else 0

    def _check(self, new: dict[str, Tensor], stays: int, kept: int) -> None:
        if self.limit is not None and stays > self.limit:
            raise ValueError(f"the cache holds {kept} of at most {self.limit} positions; {stays} would be too many")
        if self._length and signature(self._buffers) != signature(new):
            raise ValueError(
                f"the cache holds {in_words(self._buffers)}, but was given {in_words(new)}; "
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
