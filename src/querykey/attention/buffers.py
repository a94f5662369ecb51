"""What every KV cache has: buffers by name, padding, the layer that it belongs to, and changes of its rows."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from querykey.attention import masks
from querykey.attention.sequence import Span


class Cache:
    """Named buffers, (batch, heads, capacity, size) each, of which a layer has filled the first positions.

    Args:
        padding: number of padding positions at the start of each row of the batch, (batch,), so that sequences of
            different lengths end together. Nothing attends to them, and rows are independent of one another.
        keep_rotated: where one tensor serves as keys and values, but keys are rotated, normalised or made of a latent:
            keep these keys too. That takes more bytes, and saves making them anew at each step.
    """

    def __init__(self, padding: Int[Tensor, " batch"] | None = None, keep_rotated: bool = False) -> None:
        self.padding = None if padding is None else _checked(torch.as_tensor(padding))
        self.keep_rotated = keep_rotated
        self._measure_padding()
        self._owner: weakref.ref[nn.Module] | None = None
        self._buffers: dict[str, Tensor] = {}

    def next_positions(self, new: int) -> Span | Tensor:
        """The positions of the next `new` ones: a span, or a tensor where a graph must not depend on them."""
        raise NotImplementedError

    def visible(self, new: int, window: int | None) -> int:
        """How many positions the next `new` ones are given to attend to, themselves included."""
        raise NotImplementedError

    def append(self, window: int | None = None, **new: Tensor) -> tuple[Tensor, ...]:
        """Store these (batch, heads, new positions, size), and return all that they can see, in the same order."""
        raise NotImplementedError

    def contents(self) -> dict[str, Tensor]:
        """What is stored, by name, (batch, heads, positions, size) each."""
        raise NotImplementedError

    def bind(self, layer: nn.Module) -> None:
        """Make this the cache of a layer, if it is of none yet.

        Raises:
            ValueError: if it is the cache of another layer.
        """
        if torch.compiler.is_compiling():  # a guard on each layer's identity would compile each layer anew
            return
        if self._owner is None:
            self._owner = weakref.ref(layer)
        elif self._owner() is not layer:
            raise ValueError("this cache belongs to another layer; make one for each layer, or reset() it before")

    def hidden(self, mask: Tensor | None, first: int, end: int, device: torch.device) -> Tensor | None:
        """`mask`, or None, for the positions from `first` to `end` alone, with the padding among them hidden."""
        if mask is not None and mask.shape[-1] > end - first:
            mask = mask[..., first:]
        if self.padding is None or self._most_padding <= first:
            return mask
        self.padding = self.padding.to(device)
        real = torch.arange(first, end, device=device) >= self.padding[:, None]
        return masks.restrict(mask, real[:, None, None, :])

    def select(self, rows: Int[Tensor, " rows"]) -> None:
        """Keep these rows of the batch, in this order and as often as they are named."""
        self._each(lambda tensor: tensor.index_select(0, rows.to(tensor.device)))

    def reorder(self, rows: Int[Tensor, " batch"]) -> None:
        """Continue row i from what row ``rows[i]`` has seen, as beam search does."""
        self.select(rows)

    def repeat(self, times: int) -> None:
        """Repeat each row of the batch, its copies side by side, as for several continuations of each prompt."""
        self._each(lambda tensor: tensor.repeat_interleave(times, 0))

    def detach(self) -> None:
        """Cut the graph behind what is stored: later gradients end here."""
        self._buffers = {name: buffer.detach() for name, buffer in self._buffers.items()}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_owner": None}  # a copy may be continued by a copy of the layer

    def _each(self, change: Callable[[Tensor], Tensor]) -> None:
        """Change the rows of the batch in all tensors."""
        self._buffers = {name: change(buffer) for name, buffer in self._buffers.items()}
        if self.padding is not None:
            self.padding = change(self.padding)
            self._measure_padding()

    def _measure_padding(self) -> None:
        rows = [0] if self.padding is None else self.padding.tolist()
        self.least_padding, self._most_padding = min(rows), max(rows)  # once, without asking a device at each step


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


def in_words(tensors: dict[str, Tensor]) -> str:
    """What the tensors of a cache are, for messages."""
    kinds = (
        f"{name} of {batch} rows and {heads} heads of {size}, {str(dtype).removeprefix('torch.')} on {device}"
        for name, (batch, heads, size, dtype, device) in signature(tensors).items()
    )
    return " and ".join(kinds)


def signature(tensors: dict[str, Tensor]) -> dict[str, tuple[object, ...]]:
    """All but the length of each tensor."""
    return {
        name: (tensor.shape[0], tensor.shape[1], tensor.shape[3], tensor.dtype, tensor.device)
        for name, tensor in tensors.items()
    }
