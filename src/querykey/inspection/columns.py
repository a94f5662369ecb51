"""The measures of an inspection as reports show them: digits, and what a map of them needs.

Their titles and what they say are in `words.toml`, as ``measure.NAME`` and ``about.NAME``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, NamedTuple

import pandas as pd

from querykey.inspection.forecast import REPLACEMENTS
from querykey.report.words import Words

ENGLISH = Words("inspection")


class Measure(NamedTuple):
    """A measure.

    Args:
        name: its column.
        digits: that are shown.
        rank: narrow tables leave out the highest.
        limits: of its map; None for those of the data.
        shared: what a head with W_Q = W_K has, where it has one value.
        null: what the null is: random heads, equal weights, or a random map.
        sided: whether its map has two colours about the null although no shared head has a value.
    """

    name: str
    digits: int = 2
    rank: int = 0
    limits: tuple[float, float] | None = None
    shared: float | None = None
    null: Literal["random", "equal", "map"] = "random"
    sided: bool = False


ON_WEIGHTS = (
    Measure("symmetry", limits=(-1, 1), shared=1.0),
    Measure("symmetry_rotary", rank=5, limits=(-1, 1), shared=1.0),
    Measure("tied_share", rank=2, limits=(0, 1), shared=1.0),
    Measure("tied_share_rotary", rank=1, limits=(0, 1), shared=1.0),
    Measure("signed_share", rank=3, limits=(0, 1), shared=1.0),
    Measure("effective_rank", digits=1, rank=4),
    Measure("distance", rank=6, limits=(0, 2), shared=0.0),
    Measure("directionality", rank=7, limits=(-1, 1), sided=True),
)
ON_TEXT = (
    Measure("symmetry_data", rank=8, limits=(-1, 1), shared=1.0),
    Measure("tied_share_data", limits=(0, 1), shared=1.0),
    Measure("symmetry_data_rotary", rank=9, limits=(-1, 1), shared=1.0),
    Measure("tied_share_data_rotary", rank=10, limits=(0, 1), shared=1.0),
    Measure("key_only_share", rank=3, limits=(0, 1)),
    Measure("entropy", rank=1, limits=(0, 1), null="equal"),
    Measure("first_mass", rank=4, limits=(0, 1), null="equal"),
    Measure("self_mass", rank=2, limits=(0, 1), null="equal"),
    Measure("previous_mass", rank=5, limits=(0, 1), null="equal"),
    Measure("next_mass", rank=6, limits=(0, 1), null="equal"),
    Measure("cycle_2", rank=11, limits=(0, 1), null="map"),
    Measure("cycle_longer", rank=7, limits=(0, 1), null="map"),
)
CHANGES = (
    Measure("change", digits=3),
    Measure("query_change", digits=3, rank=1),
    Measure("key_change", digits=3, rank=2),
    Measure("change_symmetry", rank=3),
    Measure("change_tied_share", rank=5),
    Measure("change_effective_rank", digits=1, rank=4),
)
"""Of what an adapter changes."""
ALONE = tuple(Measure(f"cosine_{kind}", rank=12) for kind in REPLACEMENTS)
"""The forecast with one head replaced at a time."""
BEHAVIOUR = tuple(one for one in ON_TEXT if one.rank < 8)
"""The measures of a text that tables show."""
_OTHERS = (
    "negative_share", "positive", "negative", "stable_rank", "distance_rotary", "overlap", "layer_symmetry", "norm",
    "query_bias", "key_bias", "bias_share", "cycle_1",
    "effective_rank_data", "distance_data", "signed_share_data",
)  # fmt: skip
KNOWN = {one.name: one for one in (*ON_WEIGHTS, *ON_TEXT, *CHANGES, *ALONE, *map(Measure, _OTHERS))}


def shown(heads: pd.DataFrame, measures: Sequence[Measure]) -> list[Measure]:
    """Those of the measures that the heads have."""
    return [one for one in measures if one.name in heads and heads[one.name].notna().any()]


def described(name: str, say: Words = ENGLISH) -> tuple[str, str]:
    """The title of a column and its explanation, which may be empty."""
    for kind in REPLACEMENTS:
        effect = name.removesuffix(f"_{kind}")
        if effect in ("cosine", "perplexity", "layer_cosine", "layer_perplexity"):
            return say(f"measure.{effect}", replacement=say(f"replacement.{kind}")), say(f"about.{effect}")
    if name in KNOWN:
        return say(f"measure.{name}"), say(f"about.{name}")
    return name.replace("_", " "), ""


def counted(say: Words, n: int, what: str) -> str:
    """`1 head`, `16,128 heads`."""
    return say(what if n == 1 else f"{what}s", n=f"{n:,}")
