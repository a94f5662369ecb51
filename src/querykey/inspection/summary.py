"""What an inspection found, in sentences."""

from __future__ import annotations

import pandas as pd

from querykey.inspection.columns import FORECAST
from querykey.inspection.data import Data
from querykey.inspection.inspect import Inspection
from querykey.inspection.names import layer_names
from querykey.report.numbers import number, percent, perplexity, plural

SURE = 3.0  # standard deviations of random heads by which a head must differ from them
BEYOND = 0.05  # share of positions in cycles above which a head is counted
FEWEST = 10  # tokens to fit to per dimension, below which a forecast is not to be relied on


def sentences(inspection: Inspection) -> list[str]:
    """The most important one first; each is understood alone."""
    heads = inspection.heads[inspection.heads["attention"] == "self"]
    if not len(heads):
        return [on_cross(inspection.heads), *on_flags(inspection)]
    found = [on_sharing(heads), on_symmetry(heads), on_keeping(heads), on_rank(heads), on_sums(heads)]
    found += on_data(heads, inspection.data) if inspection.data else ()
    found += [on_changes(heads), on_cross(inspection.heads)]
    return [*filter(None, found), *on_flags(inspection)]


def measure(heads: pd.DataFrame, name: str) -> pd.DataFrame:
    """`value`, `null` and `sd` of a measure per head: the rotary one where positions rotate, else the plain one."""
    rotary = f"{name}_rotary"
    columns = {"value": "", "null": "_null", "sd": "_null_sd"}
    return pd.DataFrame({to: heads[rotary + end].fillna(heads[name + end]) for to, end in columns.items()})


def closer_to_shared(heads: pd.DataFrame) -> pd.Series:
    """Heads of which the best W_Q = W_K keeps more than the midpoint between a random head's share and 1."""
    tied = measure(heads, "tied_share")
    return tied["value"] > (1 + tied["null"]) / 2


def on_sharing(heads: pd.DataFrame) -> str:
    """How many heads are closer to shared than to random."""
    close = closer_to_shared(heads)
    sentence = f"{of(close, 'is', 'are')} closer to shared (W_Q = W_K) than to random"
    if 0 < close.sum() <= 6:
        names = layer_names(heads)
        named = [f"layer {names[str(row.module)]} head {row.head}" for row in heads[close].itertuples()]
        return f"{sentence}: {', '.join(named)}."
    return f"{sentence}."


def on_symmetry(heads: pd.DataFrame) -> str:
    """How many heads are more symmetric than random ones, and how many less."""
    symmetry = measure(heads, "symmetry")
    away = (symmetry["value"] - symmetry["null"]) / symmetry["sd"]
    less = int((away < -SURE).sum())
    return (
        f"{of(away > SURE, 'is', 'are')} more symmetric than random heads and {less or 'none'} less, by more than "
        f"{SURE:g} standard deviations. The median symmetry is {number(symmetry['value'].median())} on a scale "
        "from −1 to 1."
    )


def on_keeping(heads: pd.DataFrame) -> str:
    """What the best shared weights keep of the median head."""
    tied, signed = measure(heads, "tied_share"), heads["signed_share"]
    return (
        f"The best W_Q = W_K keeps {percent(tied['value'].median())} of the median head's energy (random heads: "
        f"{percent(tied['null'].median())}). With a sign per dimension it keeps {percent(signed.median())} (random "
        f"heads: {percent(heads['signed_share_null'].median())})."
    )


def on_rank(heads: pd.DataFrame) -> str:
    """The effective rank of the median head and of the lowest."""
    rank, size = heads["effective_rank"], heads["head_dim"]
    least = heads.iloc[int((rank / size).argmin())]
    return (
        f"The median head has an effective rank of {number(rank.median(), 1)} in {size.median():g} dimensions; "
        f"the lowest is {number(least['effective_rank'], 1)} of {least['head_dim']}, in layer "
        f"{layer_names(heads)[least['module']]} head {least['head']}."
    )


def on_sums(heads: pd.DataFrame) -> str:
    """The symmetry of the sum over a layer's heads, which published tables give, beside that of single heads."""
    if heads.groupby("module").size().max() == 1:
        return ""
    sums = heads.groupby("module")["layer_symmetry"].first()
    single = heads["symmetry"]
    return (
        f"The symmetry of the sum over a layer's heads, which published tables give, is {span(sums)}. That of single "
        f"heads is {span(single)}, with a median of {number(single.median())}."
    )


def on_cross(heads: pd.DataFrame) -> str:
    """The effective rank of cross-attention, which is all that can be compared with random heads there."""
    heads = heads[heads["attention"] == "cross"]
    if not len(heads):
        return ""
    rank, null = heads["effective_rank"].median(), heads["effective_rank_null"].median()
    return (
        f"{plural(len(heads), 'head')} of cross-attention have queries and keys of different inputs, so W_Q and W_K "
        f"are not compared. Their median effective rank is {number(rank, 1)} (random heads: {number(null, 1)})."
    )


def on_changes(heads: pd.DataFrame) -> str:
    """What an adapter changes in W_Q W_Kᵀ."""
    if "change" not in heads:
        return ""
    changed = heads[heads["change"] > 0]
    if not len(changed):
        return "The adapter changes neither W_Q nor W_K."
    return (
        f"The adapter changes {plural(len(changed), 'head')}: W_Q W_Kᵀ by {percent(changed['change'].median())} of its "
        f"norm in the median, and by {percent(changed['change'].max())} at most. The symmetry of the median change is "
        f"{number(changed['change_symmetry'].median())} (random: {number(changed['change_symmetry_null'].median())})."
    )


def on_data(heads: pd.DataFrame, data: Data) -> list[str]:
    """What was measured on the text or images: sharing in the heads' own metric, cycles, and the forecast."""
    found = [on_reading(data), on_unread(heads, data)]
    if "tied_share_data" in heads:
        tied = measure(heads, "tied_share_data").dropna(subset="value")
        close = tied["value"] > (1 + tied["null"]) / 2
        shared = of(close, "is", "are").lower()
        found.append(
            f"On {data.name}, in the metric of their own queries and keys, {shared} closer to shared than to random. "
            f"The best W_Q = W_K keeps {percent(tied['value'].median())} of the median head (random heads: "
            f"{percent(tied['null'].median())})."
        )
    if "cycle_longer" in heads:
        beyond = (heads["cycle_2"] + heads["cycle_longer"]).dropna() > BEYOND
        found.append(
            f"{of(beyond, 'does', 'do')} what no head with W_Q = W_K can: from more than {percent(BEYOND)} of the "
            "positions, the map to the position with the highest weight leads into a cycle of two or more."
        )
    return [*filter(None, found), *on_forecast(heads, data)]


def on_unread(heads: pd.DataFrame, data: Data) -> str:
    """Which layers the text or images do not reach."""
    names = layer_names(heads)
    missing = [name for module, name in names.items() if module not in set(data.heads["module"])]
    if not missing:
        return ""
    first = ", ".join(missing[:4]) + (", …" if len(missing) > 4 else "")
    what = "text runs" if data.reads == "text" else "images run"
    return (
        f"The {what} through {len(names) - len(missing)} of {plural(len(names), 'layer')} of self-attention; nothing "
        f"is measured or replaced in the others ({first})."
    )


def on_reading(data: Data) -> str:
    """What was read, and whether it was enough."""
    sentence = (
        f"Shared heads are fitted to {data.calibrated_on:,} tokens and measured on {data.measured_on:,} others, of "
        f"{data.name}, in pieces of {data.context}."
    )
    if data.reads == "images":
        fitted, measured = data.images
        sentence = (
            f"Shared heads are fitted to {plural(fitted, 'image')} ({data.calibrated_on:,} tokens) and measured on "
            f"{measured:,} others ({data.measured_on:,} tokens), of {data.name}."
        )
    if data.calibrated_on >= FEWEST * data.dimensions:
        return sentence
    return (
        f"{sentence} That is {data.calibrated_on / data.dimensions:.1f} tokens per dimension of a head's keys and "
        f"values, too few to rely on the forecast: give {FEWEST * data.dimensions:,} tokens or more to fit to."
    )


def on_forecast(heads: pd.DataFrame, data: Data) -> list[str]:
    """What replacing all heads at once changes."""
    effects = data.forecast[data.forecast["scope"] == "all"].set_index("replacement")
    found = []
    if effects.empty and "tied_share_data" not in heads:
        found.append("There is no forecast: the rotation of queries and keys by positions cannot be undone.")
    if not effects.empty:
        cosine = {kind: number(value) for kind, value in effects["cosine"].items()}
        found.append(
            f"With all heads replaced at once, untrained, the cosine between the new output and the old one is "
            f"{cosine['tied']} for the best W_Q = W_K, {cosine['signed']} with a sign per dimension, {cosine['core']} "
            f"with a small matrix per head, {cosine['key_value']} with one tensor for keys and values "
            f"({cosine['copied']} for W_K := W_Q, {cosine['uniform']} for uniform attention)."
        )
    if data.perplexity:
        before, *after = (perplexity(value) for value in data.forecast["perplexity"].iloc[: len(FORECAST) + 1])
        then = ", ".join(f"{value} ({name})" for value, name in zip(after, FORECAST.values(), strict=False))
        on = f"on {data.name}, {data.measured_on:,} tokens in contexts of {data.context},"
        found.append(f"The perplexity {on} is {before}{f' and becomes {then}' if then else ''}.")
    return found


def on_flags(inspection: Inspection) -> list[str]:
    """What limits the measures of this checkpoint."""
    heads, found = inspection.heads, []
    if heads["qk_norm"].any():
        layers = heads.loc[heads["qk_norm"], "module"].nunique()
        found.append(
            f"In {plural(layers, 'layer')} queries or keys are normalised. The measures of weights include the gain, "
            "not the division by the rms."
        )
    if (heads["positions"] == "other").any():
        layers = heads.loc[heads["positions"] == "other", "module"].nunique()
        found.append(
            f"In {plural(layers, 'layer')} queries and keys depend on the position in another way than by a rotation "
            "of pairs. The measures are those of position 0."
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
    return f"{number(values.min())} to {number(values.max())}"
