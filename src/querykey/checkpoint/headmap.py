"""What is known of a model's attention: which rows of which stored weight feed which head. Values only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from jaxtyping import Float, Int
from torch import Tensor

Positions = Literal["none", "rotary", "other"]


class CheckpointError(ValueError):
    """A checkpoint, or its configuration, that cannot be read; the message says what to do."""


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation behind a projection: y = (offset + slope · weight) · u / rms(u) + bias with u = x (− its mean).

    The mean and the rms run over `size` channels. What does not depend on the token (the gain, the centring) can be
    folded into the projection; the rms cannot, and is left out. `rotated` says that the gain acts after the rotation by
    positions, so that folding it is exact at position 0 only.
    """

    weight: str | None
    bias: str | None
    offset: float
    slope: float
    centred: bool
    size: int
    rotated: bool = False


@dataclass(frozen=True, eq=False)
class Rows:
    """Some channels of a projection, each a multiple of one row of a stored weight.

    Channel `at[i]` (head · size + channel) is `scale[i]` times row `rows[i]` of `weight`, or its column where the
    weight is stored `transposed`, as (in, out); with a `norm`, `gain[i]` is the place of its gain. `inner`, for a
    projection in two steps (MLA), is the projection that makes what the weight acts on.
    """

    weight: str
    bias: str | None
    transposed: bool
    at: Int[Tensor, " n"]
    rows: Int[Tensor, " n"]
    scale: Float[Tensor, " n"]
    norm: Norm | None = None
    gain: Int[Tensor, " n"] | None = None
    inner: Projection | None = None

    @property
    def parameters(self) -> tuple[str, ...]:
        """The parameters of this step, without those of `inner`."""
        names = (self.weight, self.bias, self.norm and self.norm.weight, self.norm and self.norm.bias)
        return tuple(name for name in names if name)


@dataclass(frozen=True, eq=False)
class Projection:
    """One role of a layer: `heads` heads of `size` channels, put together from `parts`."""

    heads: int
    size: int
    parts: tuple[Rows, ...]

    def every_part(self) -> Iterator[Rows]:
        """The parts, and those of the projections inside them."""
        for part in self.parts:
            yield part
            if part.inner:
                yield from part.inner.every_part()

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The normalisations on the way."""
        return tuple(part.norm for part in self.every_part() if part.norm)


@dataclass(frozen=True, eq=False)
class Rotary:
    """Channels (i, j) of `pairs` turn by `frequency` radians per position: (i, j) → (i cos − j sin, j cos + i sin)."""

    pairs: Int[Tensor, "pairs 2"]
    frequency: Float[Tensor, " pairs"]


@dataclass(frozen=True, eq=False)
class HeadMap:
    """One attention layer. Query head h reads key (and value) head `key_head[h]`; scores are `scaling` · q · k.

    `positions` is "none" where queries and keys are the same at every position, "rotary" where `rotary` says how they
    turn, and "other" where they depend on the position in a way that is not a rotation. `uses` counts the layers that
    share these weights. `value` and `output` are None where they cannot be followed.
    """

    name: str
    query: Projection
    key: Projection
    value: Projection | None
    output: Projection | None
    key_head: tuple[int, ...]
    scaling: float | None
    positions: Positions
    rotary: Rotary | None
    uses: int = 1


@dataclass(frozen=True, eq=False)
class ModelMap:
    """The attention layers of a model in the order in which they run; `skipped` names the others, with the reason."""

    layers: tuple[HeadMap, ...]
    skipped: tuple[tuple[str, str], ...]
