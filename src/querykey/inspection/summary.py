"""What an inspection found, in plain words."""

from __future__ import annotations

import pandas as pd

from querykey.inspection.data import Data
from querykey.inspection.inspect import Inspection
from querykey.inspection.tables import number_text, perplexity_text

SURE = 3.0  # standard deviations of random heads, beyond which a head is called different from them
BEYOND = 0.05  # share of positions in cycles, from which on a head is said to use them


def sentences(inspection: Inspection) -> list[str]:
    """The most important one first; each can be read alone."""
    heads = inspection.heads
    found = [on_sharing(heads), on_symmetry(heads), on_keeping(heads), on_rank(heads), on_sums(heads)]
    return [*filter(None, found), *(on_data(heads, inspection.data) if inspection.data else ()), *on_flags(inspection)]


def measure(heads: pd.DataFrame, name: str) -> pd.DataFrame:
    """`value`, `null` and `sd` of a measure per head: the distance-aware one where there is one.

    Positions that rotate change which scores a head can make, so that there the measure of W_Q W_Kᵀ alone would be
    beside the point.
    """
    turning = f"{name}_rotary"
    columns = {"value": "", "null": "_null", "sd": "_null_sd"}
    return pd.DataFrame({to: heads[turning + end].fillna(heads[name + end]) for to, end in columns.items()})


def closer_to_shared(heads: pd.DataFrame) -> pd.Series:
    """Which heads keep more under the best W_Q = W_K than half-way between a random head's share and 1."""
    tied = measure(heads, "tied_share")
    return tied["value"] > (1 + tied["null"]) / 2


def on_sharing(heads: pd.DataFrame) -> str:
    """How many heads are closer to shared than to random."""
    close = closer_to_shared(heads)
    sentence = f"{of(close, 'is', 'are')} closer to shared (W_Q = W_K) than to random"
    if 0 < close.sum() <= 6:
        named = [f"layer {row.layer} head {row.head}" for row in heads[close].itertuples()]
        return f"{sentence}: {', '.join(named)}."
    return f"{sentence}."


def on_symmetry(heads: pd.DataFrame) -> str:
    """How many heads are more symmetric than chance allows, and how many less."""
    symmetry = measure(heads, "symmetry")
    away = (symmetry["value"] - symmetry["null"]) / symmetry["sd"]
    less = int((away < -SURE).sum())
    return (
        f"{of(away > SURE, 'is', 'are')} more symmetric than random heads ever are and {less or 'none'} less "
        f"(by more than {SURE:g} standard deviations); the median symmetry is "
        f"{number_text(symmetry['value'].median())} on a scale from −1 to 1."
    )


def on_keeping(heads: pd.DataFrame) -> str:
    """What sharing would keep of the median head."""
    tied, signed = measure(heads, "tied_share"), heads["signed_share"]
    return (
        f"The best W_Q = W_K keeps {percent(tied['value'].median())} of the median head's energy (of a random one "
        f"{percent(tied['null'].median())}), the best W_Q = W_K with a sign per dimension "
        f"{percent(signed.median())} (random {percent(heads['signed_share_null'].median())})."
    )


def on_rank(heads: pd.DataFrame) -> str:
    """How many dimensions the median head needs."""
    rank, size = heads["effective_rank"], heads["head_dim"]
    least = heads.iloc[int((rank / size).argmin())]
    return (
        f"The median head uses {number_text(rank.median(), 1)} of its {size.median():g} dimensions (effective rank), "
        f"the thriftiest, layer {least['layer']} head {least['head']}, {number_text(least['effective_rank'], 1)} of "
        f"{least['head_dim']}."
    )


def on_sums(heads: pd.DataFrame) -> str:
    """What a figure per layer, of the sum over its heads, would have said."""
    if heads.groupby("layer").size().max() == 1:
        return ""
    sums = heads.groupby("layer")["layer_symmetry"].first()
    single = heads["symmetry"]
    return (
        f"Summed over the heads of a layer, as published tables do, the symmetry reads {span(sums)}; of single heads "
        f"it is {span(single)}, in the median {number_text(single.median())}."
    )


def on_data(heads: pd.DataFrame, data: Data) -> list[str]:
    """What the text has shown: sharing in the heads' own metric, cycles, and the forecast."""
    found = []
    if "tied_share_data" in heads:
        tied = measure(heads, "tied_share_data").dropna(subset="value")
        close = tied["value"] > (1 + tied["null"]) / 2
        shared = of(close, "is", "are").lower()
        found.append(
            f"On the text, in the metric of their own queries and keys, {shared} closer to shared than to random; the "
            f"best W_Q = W_K keeps {percent(tied['value'].median())} of the median head (random "
            f"{percent(tied['null'].median())})."
        )
    if "cycle_longer" in heads:
        beyond = (heads["cycle_2"] + heads["cycle_longer"]).dropna() > BEYOND
        found.append(
            f"{of(beyond, 'does', 'do')} what no head with W_Q = W_K can: from more than {percent(BEYOND)} of the "
            "positions, following the largest weight leads into a cycle of two or more positions."
        )
    return found + on_forecast(data)


def on_forecast(data: Data) -> list[str]:
    """What replacing all heads at once would change."""
    effects = data.forecast[data.forecast["scope"] == "all"].set_index("replacement")
    if effects.empty:
        return ["What sharing would change is not forecast: the positions in queries and keys cannot be undone."]
    cosine = {kind: number_text(value) for kind, value in effects["cosine"].items()}
    found = [
        f"All heads replaced at once, untrained, the output keeps a cosine of {cosine['tied']} to what it was with the "
        f"best W_Q = W_K, {cosine['signed']} with a sign per dimension, {cosine['core']} with a small matrix for every "
        f"head, and {cosine['key_value']} with one tensor for keys and values ({cosine['copied']} with W_K := W_Q, "
        f"{cosine['uniform']} if attention did not look at all)."
    ]
    if data.perplexity:
        words = {kind: perplexity_text(value) for kind, value in effects["perplexity"].items()}
        before = perplexity_text(data.forecast["perplexity"].iloc[0])
        found.append(
            f"The perplexity goes from {before} to {words['tied']} (W_Q = W_K), {words['signed']} (with signs), "
            f"{words['core']} (with a core), {words['key_value']} (K = V)."
        )
    return found


def on_flags(inspection: Inspection) -> list[str]:
    """What limits the measures of this checkpoint."""
    heads, found = inspection.heads, []
    if heads["qk_norm"].any():
        layers = heads.loc[heads["qk_norm"], "layer"].nunique()
        found.append(
            f"In {plural(layers, 'layer')} queries or keys are normalised: the gain is folded into the weights, the "
            "division by the rms is not."
        )
    if (heads["positions"] == "other").any():
        layers = heads.loc[heads["positions"] == "other", "layer"].nunique()
        found.append(
            f"In {plural(layers, 'layer')} queries and keys depend on the position in a way that is no plain rotation; "
            "the measures are those of position 0."
        )
    if inspection.skipped:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in inspection.skipped[:3])
        more = f"; and {len(inspection.skipped) - 3} more" if len(inspection.skipped) > 3 else ""
        found.append(f"{plural(len(inspection.skipped), 'layer')} could not be followed: {reasons}{more}.")
    return found


def of(chosen: pd.Series, one: str, more: str) -> str:
    """`None of 72 heads is`, `1 of 72 heads is`, `3 of 72 heads are`."""
    count = int(chosen.sum())
    return f"{f'{count:,}' if count else 'None'} of {plural(len(chosen), 'head')} {one if count < 2 else more}"


def span(values: pd.Series) -> str:
    """`−0.21 to 0.73`."""
    return f"{number_text(values.min())} to {number_text(values.max())}"


def percent(share: float) -> str:
    """`32 %`."""
    return f"{100 * share:.0f} %"


def plural(count: int, what: str) -> str:
    """`1 head`, `16,128 heads`."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"
