"""The measures of an inspection as reports show them: title, explanation, digits, and what a map of them needs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pandas as pd

RANDOM = "random"
BLIND, MAP = "equal weights", "random map"


class Measure(NamedTuple):
    """A measure.

    Args:
        name: its column.
        title: what it is called.
        about: what it says, in a line.
        digits: that are shown.
        rank: narrow tables leave out the highest.
        limits: of its map; None for those of the data.
        shared: what a head with W_Q = W_K has, where it has one value.
        null: what the null is called.
        sided: whether its map has two colours about the null although no shared head has a value.
    """

    name: str
    title: str
    about: str
    digits: int = 2
    rank: int = 0
    limits: tuple[float, float] | None = None
    shared: float | None = None
    null: str = RANDOM
    sided: bool = False


ON_WEIGHTS = (
    Measure(
        "symmetry", "symmetry", "of M = W_Q W_Kᵀ: 1 if i scores j as j scores i, −1 if the opposite, 0 random",
        limits=(-1, 1), shared=1.0,
    ),
    Measure(
        "symmetry_rotary", "symmetry, rotary", "the same under rotary positions, averaged over distances",
        rank=5, limits=(-1, 1), shared=1.0,
    ),
    Measure(
        "tied_share", "tied share", "part of ‖M‖² that the best head with W_Q = W_K keeps; ¼ for random heads",
        rank=2, limits=(0, 1), shared=1.0,
    ),
    Measure(
        "tied_share_rotary", "tied share, rotary", "the same under rotary positions, averaged over distances",
        rank=1, limits=(0, 1), shared=1.0,
    ),
    Measure(
        "signed_share", "signed share", "part of ‖M‖² that W_Q = W_K with a sign per dimension keeps",
        rank=3, limits=(0, 1), shared=1.0,
    ),
    Measure(
        "effective_rank", "effective rank", "dimensions that the head uses: exp of the entropy of its singular values",
        digits=1, rank=4,
    ),
    Measure(
        "distance", "distance W_Q to W_K", "in the bases where they are most alike: 0 equal, 1 random, 2 opposite",
        rank=6, limits=(0, 2), shared=0.0,
    ),
    Measure(
        "directionality", "directionality", "whether a few keys (negative) or a few queries (positive) stand out in M",
        rank=7, limits=(-1, 1), sided=True,
    ),
)  # fmt: skip
ON_TEXT = (
    Measure(
        "symmetry_data", "symmetry on data", "in the metric of the head's own queries and keys",
        rank=8, limits=(-1, 1), shared=1.0,
    ),
    Measure(
        "tied_share_data", "tied share on data", "part of the scores' variance that the best W_Q = W_K keeps",
        limits=(0, 1), shared=1.0,
    ),
    Measure(
        "symmetry_data_rotary", "symmetry on data, rotary", "the same, averaged over distances",
        rank=9, limits=(-1, 1), shared=1.0,
    ),
    Measure(
        "tied_share_data_rotary", "tied share on data, rotary", "the same, averaged over distances",
        rank=10, limits=(0, 1), shared=1.0,
    ),
    Measure(
        "key_only_share", "keys alone", "part of the scores' variance that is the same for every query",
        rank=3, limits=(0, 1),
    ),
    Measure(
        "entropy", "entropy", "of the attention weights: 0 one position, 1 all alike",
        rank=1, limits=(0, 1), null=BLIND,
    ),
    Measure("first_mass", "on the first", "mean weight on the first position", rank=4, limits=(0, 1), null=BLIND),
    Measure("self_mass", "on itself", "mean weight on the own position", rank=2, limits=(0, 1), null=BLIND),
    Measure("previous_mass", "on the one before", "mean weight on the one before", rank=5, limits=(0, 1), null=BLIND),
    Measure("next_mass", "on the one after", "mean weight on the one after", rank=6, limits=(0, 1), null=BLIND),
    Measure(
        "cycle_2", "cycles of 2", "share of positions from which the highest weight leads into one; tied: none",
        rank=11, limits=(0, 1), null=MAP,
    ),
    Measure(
        "cycle_longer", "cycles of 3 or more", "the same for longer cycles; symmetric scores have none",
        rank=7, limits=(0, 1), null=MAP,
    ),
)  # fmt: skip
CHANGES = (
    Measure("change", "change", "‖M' − M‖/‖M‖, M' with the adapter and M without", digits=3),
    Measure("query_change", "of W_Q", "‖ΔW_Q‖/‖W_Q‖", digits=3, rank=1),
    Measure("key_change", "of W_K", "‖ΔW_K‖/‖W_K‖", digits=3, rank=2),
    Measure("change_symmetry", "its symmetry", "of M' − M, what the adapter adds to the scores", rank=3),
    Measure("change_tied_share", "its tied share", "part of ‖M' − M‖² that W_Q = W_K could add", rank=5),
    Measure("change_effective_rank", "its rank", "effective rank of M' − M", digits=1, rank=4),
)
"""Of what an adapter changes."""
FORECAST = {"tied": "W_Q = W_K", "signed": "with signs", "core": "with a core", "key_value": "K = V"}
"""Replacements and what they are called in tables."""
REPLACED = {
    "tied": "W_Q = W_K",
    "signed": "W_Q = W_K, a sign per dimension",
    "core": "W_Q = W_K C, a small matrix per head",
    "key_value": "K = V",
}
ALONE = tuple(
    Measure(f"cosine_{kind}", f"forecast, {words}", "cosine of the output if this head alone is replaced", rank=12)
    for kind, words in FORECAST.items()
)
BEHAVIOUR = tuple(one for one in ON_TEXT if one.rank < 8)
"""The measures of a text that tables show."""
_OTHERS = (
    Measure("negative_share", "negative share", "part of ‖M‖² that is symmetric but out of reach of W_Q = W_K"),
    Measure("positive", "positive", "eigenvalues of the symmetric part above 0"),
    Measure("negative", "negative", "eigenvalues of the symmetric part below 0; a tied head has none"),
    Measure("stable_rank", "stable rank", "how many dimensions the head uses, ruled by the largest"),
    Measure("distance_rotary", "distance, rotary", "the same under rotary positions"),
    Measure("overlap", "overlap", "how far queries and keys read the same dimensions of the input; 1 for the same"),
    Measure("layer_symmetry", "symmetry of the sum", "of the sum of M over the layer's heads, as in published tables"),
    Measure("norm", "norm", "‖M‖, with the scaling of the scores"),
    Measure("query_bias", "query bias", "norm of the bias of the queries"),
    Measure("key_bias", "key bias", "norm of the bias of the keys"),
    Measure("bias_share", "bias share", "part of the scores that comes from the bias of the queries"),
    Measure("cycle_1", "cycles of 1", "share of positions from which the highest weight leads to a self-loop"),
)
KNOWN = {one.name: one for one in (*ON_WEIGHTS, *ON_TEXT, *CHANGES, *ALONE, *_OTHERS)}


def shown(heads: pd.DataFrame, measures: Sequence[Measure]) -> list[Measure]:
    """Those of the measures that the heads have."""
    return [one for one in measures if one.name in heads and heads[one.name].notna().any()]


def described(name: str) -> tuple[str, str]:
    """The title of a column and its explanation, which may be empty."""
    one = KNOWN.get(name)
    return (one.title, one.about) if one else (name.replace("_", " "), "")
