"""A preallocated KV cache whose length is a tensor, so that one compiled graph serves every decoding step."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils._pytree import MappingKey, register_pytree_node

from querykey.attention.buffers import Cache, in_words, signature
from querykey.layout import Layout


class StaticCache(Cache):
    """Keys and values of at most `length` positions. Each step attends to the whole buffers, under a mask.

    Steps of one size run one graph under `torch.compile`, and the cache may be an input of `torch.export`. Gradients do
    not flow through it.

    Args:
        batch: rows of the batch.
        length: capacity in positions.
        layout: of the layer, for the shapes.
        padding, keep_rotated: see `Cache`.
        device, dtype: of the buffers.

    Raises:
        ValueError: if batch or length are not positive, or the padding is not of this batch.
    """

    def __init__(
        self,
        batch: int,
        length: int,
        layout: Layout,
        *,
        padding: Int[Tensor, " batch"] | None = None,
        keep_rotated: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(padding, keep_rotated)
        if batch < 1 or length < 1:
            raise ValueError(f"a static cache needs a batch and a length from 1, not {batch} and {length}")
        if padding is not None and len(padding) != batch:
            raise ValueError(f"padding must have one number for each of the {batch} rows, not {len(padding)}")
        shapes = layout.cached
        if keep_rotated and layout.makes_keys:
            shapes = {"k": layout.head_shape("k"), "v": layout.head_shape("v")}
        self._buffers = {
            name: torch.zeros(batch, heads, length, size, device=device, dtype=dtype)
            for name, (heads, size) in shapes.items()
        }
        self._end = torch.zeros((), dtype=torch.long, device=device)

    @property
    def capacity(self) -> int:
        """The most positions that it can hold."""
        return next(iter(self._buffers.values())).shape[2]

    def __len__(self) -> int:
        """Number of positions seen; asks the device."""
        return int(self._end)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffers, filled or not."""
        return sum(buffer.numel() * buffer.element_size() for buffer in self._buffers.values())

    def next_positions(self, new: int) -> Int[Tensor, " new"]:
        """The positions of the next `new` ones."""
        return self._end + torch.arange(new, device=self._end.device)

    def visible(self, new: int, window: int | None) -> int:
        """The whole capacity: what is not written yet is masked."""
        return self.capacity

    def contents(self) -> dict[str, Tensor]:
        """The whole buffers, by name."""
        return self._buffers

    def append(self, window: int | None = None, **new: Tensor) -> tuple[Tensor, ...]:
        """Store these (batch, heads, new positions, size), and return the whole buffers, in the same order.

        Raises:
            ValueError: if they differ from the buffers in more than their length, or are too many.
        """
        count = next(iter(new.values())).shape[2]
        if signature(self._buffers) != signature(new):
            raise ValueError(f"the cache holds {in_words(self._buffers)}, but was given {in_words(new)}")
        if not torch.compiler.is_compiling() and not self._end.is_cuda and len(self) + count > self.capacity:
            raise ValueError(f"the cache holds {len(self)} of at most {self.capacity} positions; {count} do not fit")
        positions = self.next_positions(count)
        for name, tensor in new.items():
            self._buffers[name].index_copy_(2, positions, tensor.detach())
        self._end += count
        return tuple(self._buffers[name] for name in new)

    def crop(self, length: int) -> None:
        """Forget all but the first `length` positions; a negative number forgets that many of the last."""
        if length < 0:
            self._end.add_(length).clamp_(min=0)
        else:
            self._end.clamp_(max=length)

    def reset(self) -> None:
        """Forget all positions, and the layer that the cache belongs to."""
        self._end.zero_()
        self._owner = None


# For torch.export: the tensors of a cache are inputs of the graph, and the rest is part of it.

_PLAIN = ("keep_rotated", "least_padding", "_most_padding")


def _flatten(cache: StaticCache) -> tuple[list[Any], str]:
    plain = {name: getattr(cache, name) for name in _PLAIN}
    return [*cache._buffers.values(), cache._end, cache.padding], json.dumps([list(cache._buffers), plain])


def _flatten_with_keys(cache: StaticCache) -> tuple[list[Any], str]:
    values, context = _flatten(cache)
    names = [*cache._buffers, "end", "padding"]
    return [(MappingKey(name), value) for name, value in zip(names, values, strict=True)], context


def _unflatten(values: Iterable[Any], context: Any) -> StaticCache:
    names, plain = json.loads(context)
    *buffers, end, padding = values
    cache = StaticCache.__new__(StaticCache)
    vars(cache).update(plain, _buffers=dict(zip(names, buffers, strict=True)), _end=end, padding=padding, _owner=None)
    return cache


register_pytree_node(
    StaticCache,
    _flatten,
    _unflatten,
    serialized_type_name="querykey.StaticCache",
    flatten_with_keys_fn=_flatten_with_keys,
)
