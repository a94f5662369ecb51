"""What a conversion has cost and saved: tables, sentences, a page with the curve, and the numbers as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from querykey.conversion.convert import Conversion, doubts
from querykey.conversion.evaluate import Ratio, TextCost, overall
from querykey.report.figures import Curve, curves, palette
from querykey.report.files import write_atomically
from querykey.report.numbers import number, percent, perplexity
from querykey.report.page import environment
from querykey.report.table import Cell, Column, Table

INTERVAL = "95 % interval"


def costs_table(costs: Sequence[TextCost], length: int) -> Table:
    """A row for each text, and one for all of them."""
    columns = [
        Column("text", "left", wrap=True),
        Column("tokens", rank=2),
        Column("perplexity before", rank=1),
        Column("after"),
        Column("ratio", detail=INTERVAL, about="perplexity after over before, paired over windows"),
        Column("KL", about="divergence of the next-token distributions, original to converted, in nats"),
        Column("agreement", about="tokens for which both models find the same next token likeliest"),
    ]
    rows: list[list[Cell | str]] = []
    for cost in costs:
        before, after = cost.perplexity
        rows.append([
            cost.name, f"{cost.tokens:,}", perplexity(before), perplexity(after), _ratio(cost.ratio),
            number(cost.divergence, 3), percent(cost.agreement, 1),
        ])  # fmt: skip
    if len(costs) > 1:
        tokens = sum(cost.tokens for cost in costs)
        rows.append(["all", f"{tokens:,}", "", "", _ratio(overall(costs)), "", ""])
    return Table(columns, rows, caption=f"Perplexity on windows of {length} tokens")


def layers_table(conversion: Conversion) -> Table:
    """A row for each layer: the width of its latent, and the share of the metric that it keeps."""
    columns = [
        Column("layer", "left"),
        Column("latent", about="numbers in the latent of one token"),
        Column("of", about="outputs that are made from it"),
        Column("kept", about="share of the Fisher metric of these outputs; no forecast of perplexity"),
    ]
    found = zip(conversion.fitted.layers, conversion.ranks, conversion.kept(), strict=True)
    rows = [[layer.module, str(rank), str(layer.outputs), percent(kept, 2)] for layer, rank, kept in found]
    return Table(columns, rows, caption="Latents")


def curve_table(conversion: Conversion) -> Table:
    """A row for each size of the cache that was tried."""
    columns = [
        Column("cache"),
        Column("ratio", detail=INTERVAL),
        Column("worst text", "left", wrap=True),
        Column("its ratio"),
    ]
    rows: list[list[Cell | str]] = []
    for cache, costs in conversion.curve:
        worst = max(costs, key=lambda cost: cost.ratio.value)
        rows.append([percent(cache, 1), _ratio(overall(costs)), worst.name, number(worst.ratio.value, 3)])
    return Table(columns, rows, caption="Perplexity ratio by size of the cache")


def sentences(conversion: Conversion) -> list[str]:
    """What one should know of this conversion, a sentence each."""
    before, after = conversion.cache_bytes()
    first, second = conversion.parameters()
    found = [
        f"cache: {before:,.0f} bytes a token before, {after:,.0f} after ({percent(after / before, 1)}), both "
        f"counted on a cache in {str(conversion.model.dtype).removeprefix('torch.')}",
        f"parameters: {first:,} before, {second:,} after",
    ]
    if conversion.costs:
        ratio = overall(conversion.costs)
        found.append(
            f"perplexity: {number(ratio.value, 3)} × the original ({INTERVAL} {number(ratio.low, 3)} to "
            f"{number(ratio.high, 3)}) on {sum(cost.tokens for cost in conversion.costs):,} tokens of "
            f"{len(conversion.costs)} texts"
        )
    if conversion.healed:
        found.append(_healed(conversion.healed))
    return found + doubts(conversion.fitted, max(conversion.ranks))


def record(conversion: Conversion) -> dict[str, Any]:
    """All numbers of the report."""
    before, after = conversion.cache_bytes()
    return conversion.section() | {
        "cache_bytes": {"before": before, "after": after},
        "parameters": dict(zip(("before", "after"), conversion.parameters(), strict=True)),
        "kept": conversion.kept(),
        "costs": [_cost(cost) for cost in conversion.costs],
        "curve": [{"cache": cache, "costs": [_cost(cost) for cost in costs]} for cache, costs in conversion.curve],
    }


def write(conversion: Conversion, folder: Path, length: int) -> Path:
    """`report.json` and `report.html` in `folder`; gives the path of the page."""
    with write_atomically(folder / "report.json") as partial:
        partial.write_text(json.dumps(record(conversion), indent=1) + "\n", encoding="utf-8")
    tables = [costs_table(conversion.costs, length)] if conversion.costs else []
    tables += [curve_table(conversion)] if conversion.curve else []
    page = environment("conversion").get_template("report.html.j2").render(
        title=f"{conversion.fitted.model.config.name_or_path or 'model'}: {conversion.section()['design']}",
        sentences=sentences(conversion),
        tables=[*tables, layers_table(conversion)],
        figure=figure(conversion),
    )  # fmt: skip
    with write_atomically(folder / "report.html") as partial:
        partial.write_text(page, encoding="utf-8")
    return folder / "report.html"


def figure(conversion: Conversion) -> str:
    """Perplexity ratio against bytes of the cache, with the choice as a level; empty without a curve."""
    if not conversion.curve:
        return ""
    before, _ = conversion.cache_bytes()
    found = sorted((cache, overall(costs)) for cache, costs in conversion.curve)
    x, ratios = [cache * before for cache, _ in found], [ratio for _, ratio in found]
    look = palette(["q,k=v"])["q,k=v"]
    line = Curve("converted", look, x, [r.value for r in ratios], [r.low for r in ratios], [r.high for r in ratios])
    name = f"chosen: {percent(conversion.cache)} of the cache"
    levels = {name: overall(conversion.costs).value} if conversion.costs else {}
    return curves(
        "Perplexity ratio against bytes of the cache", [line], x_label="bytes of cache a token",
        y_label="perplexity, × the original", levels=levels,
    )  # fmt: skip


def _healed(healed: dict[str, Any]) -> str:
    if healed["kept"]:
        ratios = f"perplexity ratio {number(healed['before'], 3)} before, {number(healed['after'], 3)} after"
        part = "" if healed["share"] == 1 else f", of whose change {percent(healed['share'])} is kept"
        return f"healed in {healed['steps']} steps{part}: {ratios}"
    return f"healing for {healed['steps']} steps made {healed['worse']} worse, so the closed form was kept"


def _cost(cost: TextCost) -> dict[str, Any]:
    before, after = cost.perplexity
    return {
        "text": cost.name, "tokens": cost.tokens, "perplexity": {"before": before, "after": after},
        "ratio": cost.ratio._asdict(), "divergence": cost.divergence, "agreement": cost.agreement,
    }  # fmt: skip


def _ratio(ratio: Ratio) -> Cell:
    return Cell(number(ratio.value, 3), f"[{number(ratio.low, 3)}, {number(ratio.high, 3)}]", value=ratio.value)
