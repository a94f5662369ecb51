"""What conversions cost at several sizes, over several draws of the calibration text, closed and healed.

    python benchmarks/curve.py MODEL --calibrate a.txt b.txt code/ --evaluate c.txt d.txt --out model.json
    python benchmarks/curve.py MODEL … --out model.json --share qk --sizes 0.5    # queries and keys
    python benchmarks/curve.py MODEL … --out model.json --sizes 0.5 --heal 56 --bf16
    python benchmarks/curve.py --table model.json other.json
    python benchmarks/curve.py --picture curve.svg model.json other.json

Each measurement is one record of the file. Those that are there already are left as they are, so a run that was stopped
goes on, and a file can grow by draws and sizes. CPU time, unlike time, does not depend on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from querykey.conversion.convert import Conversion, Fitted, fit
from querykey.conversion.evaluate import TextCost, overall, paired_ratio
from querykey.conversion.heal import heal
from querykey.conversion.source import open_model
from querykey.conversion.texts import Text, check_apart, read_texts

Record = dict[str, Any]
SIZES = (0.75, 0.5, 0.375, 0.25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("places", nargs="+", metavar="MODEL", help="or files of records, for --table and --picture")
    parser.add_argument("--calibrate", nargs="+")
    parser.add_argument("--evaluate", nargs="+")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--share", default="kv")
    parser.add_argument("--sizes", nargs="+", type=float, default=SIZES)
    parser.add_argument("--draws", nargs="+", type=int, default=[0])
    parser.add_argument("--heal", type=int, default=0, metavar="STEPS")
    parser.add_argument("--bf16", action="store_true", help="heal in bfloat16 where autocast allows")
    parser.add_argument("--dtype", default="float32", help="of the evaluation; the fit is in float32")
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--each", type=int, default=6, help="windows of each evaluation text")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--picture", type=Path)
    chosen = parser.parse_args()
    if chosen.table or chosen.picture:
        records = [record for place in chosen.places for record in json.loads(Path(place).read_text())]
        if chosen.table:
            table(records)
        else:
            chosen.picture.write_text(drawing(records), encoding="utf-8")
        return
    check_apart(chosen.calibrate, chosen.evaluate)
    for draw in chosen.draws:
        measure(chosen, draw)


def measure(chosen: argparse.Namespace, draw: int) -> None:
    """The sizes of one draw that the file does not have yet."""
    records = json.loads(chosen.out.read_text()) if chosen.out.exists() else []
    known = {tuple(record[name] for name in ("share", "cache", "draw", "steps", "dtype")) for record in records}
    sizes = [c for c in chosen.sizes if (chosen.share, c, draw, chosen.heal, chosen.dtype) not in known]
    if not sizes:
        return
    model, tokenizer = open_model(chosen.places[0], dtype="float32")
    evaluation = read_texts(chosen.evaluate, tokenizer, windows=chosen.each, length=chosen.length, seed=7)
    before = time.process_time()
    fitted = fit(
        model, tokenizer, share=chosen.share, texts=chosen.calibrate, windows=chosen.windows, length=chosen.length,
        seed=draw, state=chosen.out.with_suffix(f".{chosen.share}-{draw}.state"), watch=said,
    )  # fmt: skip
    fitting = time.process_time() - before
    model.to(getattr(torch, chosen.dtype))

    def keep(conversion: Conversion, costs: list[TextCost], more: Record) -> None:
        records.append(
            {"model": Path(chosen.places[0]).name, "draw": draw, "dtype": chosen.dtype, "fit": fitting}
            | described(conversion, costs) | more
        )  # fmt: skip
        chosen.out.write_text(json.dumps(records, indent=1) + "\n")
        conversion.switch.restore()

    if chosen.heal:
        for cache in sizes:
            closed = [
                r for r in records if (r["share"], r["cache"], r["draw"], r["steps"]) == (chosen.share, cache, draw, 0)
            ]
            keep(*healed(chosen, fitted, cache, evaluation, draw, closed))
        return
    for cache, costs in fitted.curve(sizes, evaluation, said):
        keep(fitted.convert(cache), costs, {})


def healed(
    chosen: argparse.Namespace, fitted: Fitted, cache: float, evaluation: list[Text], draw: int, closed: list[Record]
) -> tuple[Conversion, list[TextCost], Record]:
    """On other windows of the calibration texts than the fit has seen; `closed` has the costs before, if known."""
    count = -(-chosen.heal // len(chosen.calibrate))
    texts = read_texts(chosen.calibrate, fitted.tokenizer, windows=count, length=chosen.length, seed=draw + 1)
    conversion = fitted.convert(cache)
    conversion.costs = [TextCost(**text) for record in closed[:1] for text in record["texts"]]
    before, spent = time.process_time(), []

    def timed(what: str, done: int, total: int) -> None:
        if "healing" in what:
            spent.append(time.process_time())
        said(what, done, total)

    with tempfile.TemporaryDirectory() as folder:
        heal(
            conversion, texts, evaluation, steps=chosen.heal, folder=folder, bf16=chosen.bf16, save_strategy="no",
            watch=timed,
        )  # fmt: skip
    return conversion, conversion.costs, {"healing": spent[-1] - before}


def described(conversion: Conversion, costs: list[TextCost]) -> Record:
    """One record: what was converted, what it costs, and what that took."""
    healing, fitted = conversion.healed or {}, conversion.fitted
    return {
        "share": fitted.share,
        "cache": conversion.cache,
        "steps": healing.get("steps", 0),
        "design": conversion.design,
        "ranks": conversion.ranks,
        "kept": conversion.kept(),
        "bytes": conversion.cache_bytes(),
        "parameters": conversion.parameters(),
        "calibration": sum(text.tokens for text in fitted.calibration),
        "healed": conversion.healed,
        "ratio": overall(costs)._asdict(),
        "texts": [vars(cost) for cost in costs],
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def said(what: str, done: int, total: int) -> None:
    if done % 8 == 0 or done == total:
        print(f"{what}: {done} of {total}, {time.process_time():.0f} s of CPU time", flush=True)


def grouped(records: list[Record]) -> dict[tuple[str, str, int, str, float], list[Record]]:
    """The draws of each measurement, by model, share, steps of healing, dtype, and part of the cache."""
    found: dict[tuple[str, str, int, str, float], list[Record]] = {}
    for record in records:
        key = (record["model"], record["share"], record["steps"], record["dtype"], -record["cache"])
        found.setdefault(key, []).append(record)
    return dict(sorted(found.items()))


def ratios(draws: list[Record], text: int | None = None) -> list[float]:
    """The perplexity ratio of each draw, on all texts or on one of them."""
    if text is None:
        return [record["ratio"]["value"] for record in draws]
    found = []
    for record in draws:
        one = record["texts"][text]
        found.append(paired_ratio([a - b for a, b in zip(one["after"], one["before"], strict=True)]).value)
    return found


def table(records: list[Record]) -> None:
    """The mean of the draws, their range, and the worst text."""
    names = "model|shares|cache|bytes a token|parameters|steps of healing|draws|perplexity ratio|range|worst text"
    print(f"| {names.replace('|', ' | ')} |\n|---|---|{'--:|' * 7}---|")
    for (model, share, steps, dtype, cache), draws in grouped(records).items():
        values, first = ratios(draws), draws[0]
        worst, name = max((mean(ratios(draws, n)), Path(text["name"]).stem) for n, text in enumerate(first["texts"]))
        before, after = first["parameters"]
        cells = [
            model if dtype == "float32" else f"{model}, {dtype}", share, f"{-cache:.1%}", f"{first['bytes'][1]:,.0f}",
            f"{after - before:+,}", steps, len(draws), f"{mean(values):.3f}", f"{min(values):.3f} to {max(values):.3f}",
            f"{name} {worst:.3f}",
        ]  # fmt: skip
        print(f"| {' | '.join(map(str, cells))} |")


def mean(values: list[float]) -> float:
    return sum(values) / len(values)


def drawing(records: list[Record]) -> str:
    """Perplexity ratio against the part of the cache, as an SVG file: a line for each model, closed and healed."""
    from matplotlib.figure import Figure

    from querykey.report.figures import COLOURS
    from querykey.report.picture import picture

    lines: dict[tuple[str, bool], dict[float, list[float]]] = {}
    for (model, share, steps, dtype, cache), draws in grouped(records).items():
        if share == "kv" and dtype == "float32":
            lines.setdefault((model, steps > 0), {})[-cache] = ratios(draws)

    def draw() -> Figure:
        figure = Figure(figsize=(6.4, 3.8), layout="constrained")
        axes = figure.subplots()
        models = list(dict.fromkeys(model for model, _ in lines))
        for (model, trained), points in lines.items():
            colour = COLOURS[1 + models.index(model)].light
            whole = points if trained else {1.0: [1.0], **points}  # with the original
            x, y = [100 * c for c in whole], [mean(v) for v in whole.values()]
            style = {"linestyle": "--", "marker": "o", "markerfacecolor": "none"} if trained else {"marker": "o"}
            axes.plot(x, y, color=colour, label=f"{model}, {'healed' if trained else 'closed form'}", **style)
            axes.vlines(x, *zip(*((min(v), max(v)) for v in whole.values()), strict=True), color=colour)
        axes.set(yscale="log", xlabel="bytes of cache a token, % of the original", ylabel="perplexity, × the original")
        axes.set_xticks([100, 75, 50, 37.5, 25], ["100", "75", "50", "37.5", "25"])
        ticks = [1, 1.05, 1.1, 1.2, 1.4, 1.6, 2.0]
        axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.legend(frameon=False)
        return figure

    return picture("Perplexity of converted models against the bytes of their cache", draw)


if __name__ == "__main__":
    main()
