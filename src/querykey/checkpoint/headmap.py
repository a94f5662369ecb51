"""What is known of a model's attention: which rows of which stored weight feed which head. Data only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

Positions = Literal["none", "rotary", "other"]


class CheckpointError(ValueError):
    """A checkpoint, or its configuration, that cannot be read; the message says what to do."""


class Reason(str):
    """Why attention is not traced: a sentence, with its `template` and the `values` in it for other languages."""

    template: str
    values: dict[str, object]

    def __new__(cls, template: str, **values: object) -> Reason:
        """The sentence of a template whose places are filled in."""
        reason = super().__new__(cls, template.format(**values) if values else template)
        reason.template, reason.values = template, values
        return reason


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation after a projection: y = (offset + slope · weight) · u / rms(u) + bias with u = x (− its mean).

    The mean and the rms run over `size` channels. The gain and the centring do not depend on the token and can be
    folded into the projection; the rms cannot, and is left out. If `rotated`, the gain acts after the rotary embedding,
    and folding it is exact at position 0 only.
    """

    weight: str | None
    bias: str | None
    offset: float
    slope: float
    centred: bool
    size: int
    rotated: bool = False


class Bias(NamedTuple):
    """What is added to the channels of a projection: to channel i the number `places[i]` of the parameter `name`."""

    name: str
    places: Int[Tensor, " n"]


@dataclass(frozen=True, eq=False)
class Rows:
    """Some channels of a projection, each a multiple of one row of a stored weight.

    Channel `at[i]` (head · size + channel) is `scale[i]` times row `rows[i]` of `weight`, or its column if the weight
    is stored `transposed`, as (in, out), plus its number of each of `biases`. With a `norm`, `gain[i]` is the place of
    its gain. `inner` is the projection before this one in a projection of two steps (MLA).
    """

    weight: str
    biases: tuple[Bias, ...]
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
        names = (
            self.weight,
            *(bias.name for bias in self.biases),
            self.norm and self.norm.weight,
            self.norm and self.norm.bias,
        )
        return tuple(name for name in names if name)


@dataclass(frozen=True, eq=False)
class Projection:
    """One role of a layer: `heads` heads of `size` channels, made of `parts`."""

    heads: int
    size: int
    parts: tuple[Rows, ...]

    def every_part(self) -> Iterator[Rows]:
        """The parts, and the parts of the projections before them."""
        for part in self.parts:
            yield part
            if part.inner:
                yield from part.inner.every_part()

    @property
    def norms(self) -> tuple[Norm, ...]:
        """The normalisations of all parts."""
        return tuple(part.norm for part in self.every_part() if part.norm)

    @property
    def factor(self) -> float:
        """The factor that all channels have in common, such as a scaling that a model applies to its queries."""
        scales = torch.cat([part.scale for part in self.parts])
        first = float(scales[0])
        return first if bool((scales - first).abs().max() <= 1e-6 * abs(first)) else 1.0


@dataclass(frozen=True, eq=False)
class Rotary:
    """Channels (i, j) of `pairs` rotate to (i cos − j sin, j cos + i sin), by `frequency` radians per position."""

    pairs: Int[Tensor, "pairs 2"]
    frequency: Float[Tensor, " pairs"]


@dataclass(frozen=True, eq=False)
class HeadMap:
    """One attention layer. Query head h reads key (and value) head `key_head[h]`; scores are `scaling` · q · k.

    `positions` is "none" if queries and keys are the same at every position, "rotary" if they rotate as in `rotary`,
    and "other" if they depend on the position in another way. `window` is that of a layer with sliding attention: a
    query attends to keys at distances below it. `uses` counts the layers that share these weights. `value` and
    `output` are None if they cannot be traced.
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
    window: int | None = None

    @property
    def number(self) -> int:
        """The model's own number of the layer: the first number in `name`, or −1 if it has none."""
        return next((int(part) for part in self.name.split(".") if part.isdecimal()), -1)

    def distances(self, limit: int | None) -> int | None:
        """The bound of distances between queries and keys: the window, or the `limit` of the model if it is lower."""
        bounds = [bound for bound in (self.window, limit) if bound is not None]
        return min(bounds, default=None)


@dataclass(frozen=True, eq=False)
class ModelMap:
    """The attention of a model in the order in which it runs.

    `layers` are those whose queries and keys come from the same input, `cross` those with keys from another input.
    `skipped` names all other attention modules, each with the reason.
    """

    layers: tuple[HeadMap, ...]
    skipped: tuple[tuple[str, Reason], ...]
    cross: tuple[HeadMap, ...] = ()

    def merged(self, other: ModelMap | None) -> ModelMap:
        """This map with what only the other one has."""
        if other is None:
            return self
        known = {layer.name for layer in (*self.layers, *self.cross)}
        layers, cross = (
            (*mine, *(layer for layer in theirs if layer.name not in known))
            for mine, theirs in ((self.layers, other.layers), (self.cross, other.cross))
        )
        known |= {layer.name for layer in (*layers, *cross)}
        return ModelMap(layers, tuple(pair for pair in self.skipped if pair[0] not in known), cross)
