"""A cache with a bound: what was used last stays, as long as everything together is no larger than the bound."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Cache(Generic[T]):
    """Keeps values up to `bound` in all, measured by `size`; a value that is larger on its own is not kept."""

    def __init__(self, bound: int, size: Callable[[T], int] = lambda value: 1) -> None:
        self.bound, self.size, self.total = bound, size, 0
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def find(self, key: Hashable) -> T | None:
        """The value that was kept under this key; None if there is none, or no longer."""
        if key in self._values:
            self._values.move_to_end(key)
        return self._values.get(key)

    def keep(self, key: Hashable, value: T) -> None:
        """Keep a value in place of those that were not used for longest."""
        if key in self._values:
            self.total -= self.size(self._values.pop(key))
        if self.size(value) <= self.bound:
            self._values[key] = value
            self.total += self.size(value)
        while self.total > self.bound:
            self.total -= self.size(self._values.popitem(last=False)[1])
