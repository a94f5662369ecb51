"""Which rotary positions queries and keys have: counted, counted over tokens without padding, or given."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Bool, Int
from torch import Tensor

Positions = Tensor | tuple[Tensor, Tensor]
"""(length,) or (batch, length) integers; with a context a pair, of queries and of keys."""


class Span(NamedTuple):
    """Consecutive positions. A `range` would do, but torch.compile makes a graph for each."""

    start: int
    stop: int


class Sequence(NamedTuple):
    """What a call says of the positions of its tokens: nothing, which keys are padding, or the positions."""

    key_padding: Tensor | None = None
    given: Positions | None = None

    def of_context(self, length: int) -> tuple[Span | Tensor, Tensor | None]:
        """Of the queries of cross-attention, and of its keys; where positions count, they have been given."""
        if isinstance(self.given, tuple):
            return self.given
        return Span(0, length) if self.given is None else self.given, None

    def next(self, own: Span | Tensor) -> Span | Tensor:
        """Of the next tokens, which stand at `own` among the keys."""
        if isinstance(self.given, Tensor):
            return self.given
        if self.key_padding is None:
            return own
        counted = _count(self.key_padding)
        return counted[:, own.start : own.stop] if isinstance(own, Span) else counted.index_select(1, own)

    def stored(self, first: int, keys: int, given: Tensor | None = None) -> Span | Tensor:
        """Of the keys that a cache gives from position `first`; it may have stored positions, (batch, 1, keys, 1)."""
        if given is not None:
            return given.flatten(1)
        if self.key_padding is None:
            return Span(first, first + keys)
        return _count(self.key_padding)[:, first : first + keys]


def _count(key_padding: Bool[Tensor, "batch keys"]) -> Int[Tensor, "batch keys"]:
    """The position of each token, 0 for the first; padding has that of the token before it."""
    return (key_padding.cumsum(-1) - 1).clamp(min=0)
