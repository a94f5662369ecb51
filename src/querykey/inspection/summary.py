"""What an inspection found, in sentences."""

from __future__ import annotations

from typing import Any

import pandas as pd

from querykey.checkpoint import Reason
from querykey.inspection.columns import ENGLISH, counted
from querykey.inspection.data import Data
from querykey.inspection.forecast import REPLACEMENTS
from querykey.inspection.inspect import Inspection
from querykey.inspection.names import layer_names
from querykey.report.numbers import number, percent, perplexity
from querykey.report.words import Words

SURE = 3.0  # standard deviations of random heads by which a head must differ from them
BEYOND = 0.05  # share of positions in cycles above which a head is counted
FEWEST = 10  # tokens to fit to per dimension, below which a forecast is not to be relied on


def sentences(inspection: Inspection, say: Words = ENGLISH) -> list[str]:
    """The most important one first; each is understood alone."""
    heads = inspection.heads[inspection.heads["attention"] == "self"]
    if not len(heads):
        return [on_cross(inspection.heads, say), *on_flags(inspection, say)]
    found = [part(heads, say) for part in (on_sharing, on_symmetry, on_keeping, on_rank, on_sums)]
    found += on_data(heads, inspection.data, say) if inspection.data else ()
    found += [on_changes(heads, say), on_cross(inspection.heads, say)]
    return [*filter(None, found), *on_flags(inspection, say)]


def measure(heads: pd.DataFrame, name: str) -> pd.DataFrame:
    """`value`, `null` and `sd` of a measure per head: the rotary one where positions rotate, else the plain one."""
    rotary = f"{name}_rotary"
    columns = {"value": "", "null": "_null", "sd": "_null_sd"}
    return pd.DataFrame({to: heads[rotary + end].fillna(heads[name + end]) for to, end in columns.items()})


def closer_to_shared(heads: pd.DataFrame) -> pd.Series:
    """Heads of which the best W_Q = W_K keeps more than the midpoint between a random head's share and 1."""
    tied = measure(heads, "tied_share")
    return tied["value"] > (1 + tied["null"]) / 2


def on_sharing(heads: pd.DataFrame, say: Words) -> str:
    """How many heads are closer to shared than to random."""
    close, names = closer_to_shared(heads), layer_names(heads)
    named = [say("called", layer=names[str(row.module)], head=row.head) for row in heads[close].itertuples()]
    few = 0 < len(named) <= 6
    return of(say, close, "sharing", named=say("named", heads=_list(say, named)) if few else "")


def on_symmetry(heads: pd.DataFrame, say: Words) -> str:
    """How many heads are more symmetric than random ones, and how many less."""
    symmetry = measure(heads, "symmetry")
    away = (symmetry["value"] - symmetry["null"]) / symmetry["sd"]
    less = int((away < -SURE).sum()) or say("nothing")
    return of(say, away > SURE, "symmetry", less=less, sd=f"{SURE:g}", median=number(symmetry["value"].median()))


def on_keeping(heads: pd.DataFrame, say: Words) -> str:
    """What the best shared weights keep of the median head."""
    tied = measure(heads, "tied_share")
    shares = {"tied": tied["value"], "tied_null": tied["null"], "signed": heads["signed_share"]}
    shares["signed_null"] = heads["signed_share_null"]
    return say("keeping", **{name: percent(values.median()) for name, values in shares.items()})


def on_rank(heads: pd.DataFrame, say: Words) -> str:
    """The effective rank of the median head and of the lowest."""
    rank, size = heads["effective_rank"], heads["head_dim"]
    least = heads.iloc[int((rank / size).argmin())]
    return say(
        "rank",
        rank=number(rank.median(), 1),
        size=f"{size.median():g}",
        least=number(least["effective_rank"], 1),
        of=least["head_dim"],
        where=say("called", layer=layer_names(heads)[least["module"]], head=least["head"]),
    )


def on_sums(heads: pd.DataFrame, say: Words) -> str:
    """The symmetry of the sum over a layer's heads, which published tables give, beside that of single heads."""
    if heads.groupby("module").size().max() == 1:
        return ""
    sums, single = heads.groupby("module")["layer_symmetry"].first(), heads["symmetry"]
    return say("sums", sums=span(say, sums), single=span(say, single), median=number(single.median()))


def on_cross(heads: pd.DataFrame, say: Words) -> str:
    """The effective rank of cross-attention, which is all that can be compared with random heads there."""
    heads = heads[heads["attention"] == "cross"]
    if not len(heads):
        return ""
    rank, null = (number(heads[name].median(), 1) for name in ("effective_rank", "effective_rank_null"))
    return say("cross", heads=counted(say, len(heads), "head"), rank=rank, null=null)


def on_changes(heads: pd.DataFrame, say: Words) -> str:
    """What an adapter changes in W_Q W_Kᵀ."""
    if "change" not in heads:
        return ""
    changed = heads[heads["change"] > 0]
    if not len(changed):
        return say("adapter.none")
    return say(
        "adapter",
        heads=counted(say, len(changed), "head"),
        median=percent(changed["change"].median()),
        most=percent(changed["change"].max()),
        symmetry=number(changed["change_symmetry"].median()),
        null=number(changed["change_symmetry_null"].median()),
    )


def on_data(heads: pd.DataFrame, data: Data, say: Words) -> list[str]:
    """What was measured on the text or images: sharing in the heads' own metric, cycles, and the forecast."""
    found = [on_reading(data, say), on_unread(heads, data, say)]
    if "tied_share_data" in heads:
        tied = measure(heads, "tied_share_data").dropna(subset="value")
        shares = {"tied": percent(tied["value"].median()), "null": percent(tied["null"].median())}
        found.append(of(say, tied["value"] > (1 + tied["null"]) / 2, "data", name=data.name, **shares))
    if "cycle_longer" in heads:
        beyond = (heads["cycle_2"] + heads["cycle_longer"]).dropna() > BEYOND
        found.append(of(say, beyond, "cycles", share=percent(BEYOND)))
    return [*filter(None, found), *on_forecast(heads, data, say)]


def on_unread(heads: pd.DataFrame, data: Data, say: Words) -> str:
    """Which layers the text or images do not reach."""
    names = layer_names(heads)
    missing = [name for module, name in names.items() if module not in set(data.heads["module"])]
    if not missing:
        return ""
    first = _list(say, [*missing[:4], *["…"] * (len(missing) > 4)])
    every = counted(say, len(names), "layer")
    return say(f"unread.{data.reads}", some=len(names) - len(missing), all=every, names=first)


def on_reading(data: Data, say: Words) -> str:
    """What was read, and whether it was enough."""
    counts = {"fitted": f"{data.calibrated_on:,}", "measured": f"{data.measured_on:,}"}
    images, others = data.images
    sentence = say(
        f"reading.{data.reads}",
        name=data.name,
        context=data.context,
        images=counted(say, images, "image"),
        others=f"{others:,}",
        **counts,
    )
    if data.calibrated_on >= FEWEST * data.dimensions:
        return sentence
    each, enough = f"{data.calibrated_on / data.dimensions:.1f}", f"{FEWEST * data.dimensions:,}"
    return " ".join([sentence, say("few", each=each, enough=enough)]).replace("。 ", "。")


def on_forecast(heads: pd.DataFrame, data: Data, say: Words) -> list[str]:
    """What replacing all heads at once changes."""
    effects = data.forecast[data.forecast["scope"] == "all"].set_index("replacement")
    found = []
    if effects.empty and "tied_share_data" not in heads:
        found.append(say("forecast.none"))
    if not effects.empty:
        found.append(say("forecast", **{str(kind): number(value) for kind, value in effects["cosine"].items()}))
    if data.perplexity:
        before, *after = (perplexity(value) for value in data.forecast["perplexity"].iloc[: len(REPLACEMENTS) + 1])
        values = [
            say("perplexity.value", value=value, name=say(f"replacement.{kind}"))
            for kind, value in zip(REPLACEMENTS, after, strict=False)
        ]
        then = say("perplexity.then", values=_list(say, values)) if values else ""
        counts = {"measured": f"{data.measured_on:,}", "context": data.context}
        found.append(say("perplexity", name=data.name, before=before, then=then, **counts))
    return found


def on_flags(inspection: Inspection, say: Words) -> list[str]:
    """What limits the measures of this checkpoint."""
    heads, skipped, found = inspection.heads, inspection.skipped, []
    for flag, limited in (("norm", heads["qk_norm"]), ("positions", heads["positions"] == "other")):
        if limited.any():
            layers = heads.loc[limited, "module"].nunique()
            found.append(say(f"flag.{flag}", layers=counted(say, layers, "layer")))
    if skipped:
        reasons = "; ".join(say("flag.reason", name=name, reason=_said(reason, say)) for name, reason in skipped[:3])
        more = say("flag.more", n=len(skipped) - 3) if len(skipped) > 3 else ""
        found.append(say("flag.skipped", layers=counted(say, len(skipped), "layer"), reasons=reasons, more=more))
    return found


def _said(reason: Reason, say: Words) -> str:
    """A reason in the language of the report."""
    words = {name: say(f"role.{value}") if name == "role" else value for name, value in reason.values.items()}
    return say(f"reason.{reason.template}", **words)


def of(say: Words, chosen: pd.Series, key: str, **values: Any) -> str:
    """The sentence for none, for one or for more of the heads."""
    count = int(chosen.sum())
    which = ("none", "one")[count] if count < 2 else "more"
    return say(f"{key}.{which}", n=f"{count:,}", all=counted(say, len(chosen), "head"), **values)


def span(say: Words, values: pd.Series) -> str:
    """`−0.21 to 0.73`."""
    return say("span", low=number(values.min()), high=number(values.max()))


def _list(say: Words, parts: list[str]) -> str:
    return (", " if say.language == "en" else "、").join(parts)
