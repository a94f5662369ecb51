"""A finished benchmark as data and as text: CSV, JSON, Markdown, and the notes that go with its tables."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from dataclasses import fields
from io import StringIO
from itertools import groupby
from pathlib import Path
from typing import Any

from querykey.bench.bench import Bench, Row
from querykey.bench.config import Setting
from querykey.bench.timing import Spread
from querykey.report.files import write_atomically

_SPREADS = {
    "seconds": "seconds",
    "floor_seconds": "floor_seconds",
    "to_floor": "ratio_to_floor",
    "to_baseline": "ratio_to_compared",
}


def records(result: Bench) -> list[dict[str, Any]]:
    """One per row, each with all that tells where it comes from. Times in seconds, sizes in bytes."""
    setting = result.setting
    origin = {
        "machine": result.machine,
        "device": setting.device,
        "torch": result.torch,
        "threads": result.threads,
        "dtype": setting.dtype,
        "causal": setting.causal,
        "window": setting.window,
        "rotary": setting.rotary,
        "rounds": setting.rounds,
    }
    return [origin | _record(row, setting.cached) for row in result.rows]


def as_csv(result: Bench) -> str:
    """One line per row of the result, with a head."""
    rows = records(result)
    written = StringIO()
    writer = csv.DictWriter(written, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()


def as_json(result: Bench) -> str:
    """The records, and the notes on what was left out."""
    return json.dumps({"notes": result.notes, "rows": records(result)}, indent=2) + "\n"


def as_markdown(result: Bench, picture: str = "") -> str:
    """A page with a table for each shape and pass; `picture` is the file of its plot."""
    lines = [f"# What each design costs: {result.machine}", "", _made_by(result), ""]
    if picture:
        lines += [f"![Time of each design relative to the first, with what theory gives]({picture})", ""]
    for rows in tables(result):
        lines += [f"## {title(rows[0], result.setting)}", "", *_markdown_table(rows), ""]
        lines += [compared_note(rows), ""] if compared_note(rows) else []
    lines += [f"- **{word}**: {meaning}" for word, meaning in legend(result).items()]
    lines += [*(f"- {note}" for note in result.notes), ""]
    return "\n".join(lines)


def write(result: Bench, folder: str | os.PathLike[str]) -> list[Path]:
    """MACHINE.csv, MACHINE.md and MACHINE.svg in that folder, which is made; what is not as usual joins the name."""
    from querykey.bench.plot import as_svg

    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    name = stem(result)
    texts = {
        "csv": as_csv(result),
        "md": as_markdown(result, picture=f"{name}.svg"),
        "svg": as_svg(result),
    }
    for kind, text in texts.items():
        with write_atomically(place / f"{name}.{kind}") as partial:
            partial.write_text(text, encoding="utf-8")
    return [place / f"{name}.{kind}" for kind in texts]


def stem(result: Bench) -> str:
    """What its files are called: the machine, and causal, window, rotary and dtype where they are not as usual."""
    setting = result.setting
    words = [result.machine, "causal" * setting.causal, f"window-{setting.window}" * (setting.window is not None)]
    words += ["rotary" * setting.rotary]
    words += [setting.dtype] * (setting.dtype != Setting.dtype)
    return "-".join(filter(None, words))


def tables(result: Bench) -> Iterator[list[Row]]:
    """The rows of each shape and pass."""
    for _, rows in groupby(result.rows, key=lambda row: (row.shape, row.what)):
        yield list(rows)


def title(row: Row, setting: Setting) -> str:
    """Of its table."""
    batch, length, dim, heads = row.shape
    if row.what == "decoding":
        seen = f", of which {setting.window:,} are seen" if setting.window is not None else ""
        return f"decoding: batch {batch}, {setting.cached:,} positions cached{seen}, dim {dim}, {heads} heads"
    causal = ", causal" * setting.causal + f", window {setting.window}" * (setting.window is not None)
    return f"{row.what}: batch {batch}, length {length}, dim {dim}, {heads} heads{causal}"


def compared_note(rows: list[Row]) -> str:
    """Which layers of ours the peers are compared with, where it is not the first design."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.peer and row.compared != rows[0].name:
            found.setdefault(row.compared, []).append(row.name)
    pairs = [f"{', '.join(names)} with {ours}" for ours, names in found.items()]
    return f"Compared with what computes the same: {'; '.join(pairs)}." if pairs else ""


def legend(result: Bench) -> dict[str, str]:
    """What the columns mean."""
    first = result.setting.designs[0]
    own = " or ".join(sorted({row.backend for row in result.rows} & {"blocked", "products"}))
    below = f" A layer can be below it where its kernel is {own}, ours, which can beat the stock one." if own else ""
    turned = " The floor does not rotate." if result.setting.rotary else ""
    meaning = {
        "time": "median of the rounds, and their middle half; ratios are taken within rounds",
        "÷ floor": "to the bare matrix products and PyTorch's stock kernel, on tensors that lie as they want them."
        f"{below}{turned}",
        f"÷ {first}": "to the first design; of another library's layer, to ours that computes the same",
        "theory": "the ratio to the first design that FLOPs give; in decoding, the bytes of weights and cache",
        "peak": "memory that a pass takes beside weights, input and cache",
    }
    for unit in dict.fromkeys(map(rate_unit, result.rows)):
        meaning[unit] = "what theory counts, over the time"
    if any(row.cache_bytes is not None for row in result.rows):
        meaning["B/token"] = "what the cache keeps of each position"
    return meaning


def interval(spread: Spread, digits: int = 2) -> tuple[str, str]:
    """The median, and the interval; this is empty of what is compared with itself."""
    if set(spread) == {1.0}:
        return "1", ""
    return f"{spread.median:.{digits}f}", f"{spread.low:.{digits}f}–{spread.high:.{digits}f}"


def milliseconds(spread: Spread) -> tuple[str, str]:
    """The median of a time and its interval, with three figures."""
    number = 1e3 * spread.median
    digits = 3 if number < 1 else 2 if number < 10 else 1 if number < 100 else 0
    return interval(Spread(*(1e3 * value for value in spread)), digits)


def size(number: int) -> str:
    """In a unit that leaves three figures."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if number >= unit:
            return f"{number / unit:.3g} {name}" if number < 1e3 * unit else f"{number / unit:,.0f} {name}"
    return f"{number} B"


def rate_unit(row: Row) -> str:
    """Of what theory counts, in a second."""
    return "GFLOP/s" if row.step_bytes is None else "GB/s"


def _made_by(result: Bench) -> str:
    setting = result.setting
    threads = f"{result.threads} thread{'s' * (result.threads > 1)}"
    where = f"{setting.dtype} on {setting.device}"
    return f"`{command(setting)}`: torch {result.torch}, {threads}, {where}, {setting.rounds} rounds."


def command(setting: Setting) -> str:
    """The command line that asks for this setting."""
    words = ["querykey bench"]
    for field in fields(Setting):
        value = getattr(setting, field.name)
        if value == field.default:
            continue
        words.append(f"--{field.name}")
        if value is not True:
            words += map(str, value) if isinstance(value, tuple) else [str(value)]
    return " ".join(words)


def _record(row: Row, cached: int) -> dict[str, Any]:
    found: dict[str, Any] = row.shape._asdict() | {"cached": cached if row.what == "decoding" else None}
    found["pass"] = row.what
    found |= {name: getattr(row, name) for name in ("name", "design", "peer", "compared")}
    for name, column in _SPREADS.items():
        spread = getattr(row, name)
        found |= {column: spread.median, f"{column}_low": spread.low, f"{column}_high": spread.high}
    found |= {name: getattr(row, name) for name in ("theory", "backend", "peak_bytes", "flops", "step_bytes")}
    return found | {"cache_bytes_per_token": row.cache_bytes, "rate_per_second": row.rate}


def _markdown_table(rows: list[Row]) -> list[str]:
    heads = ["layer", "time (ms)", "÷ floor", f"÷ {rows[0].name}", "theory", "peak", "kernel", rate_unit(rows[0])]
    if rows[0].cache_bytes is not None:
        heads.append("B/token")
    lines = [f"| {' | '.join(heads)} |", "|---" + "|--:" * 5 + "|---" + "|--:" * (len(heads) - 7) + "|"]
    for row in rows:
        pairs = (milliseconds(row.seconds), interval(row.to_floor), interval(row.to_baseline))
        cells = [
            row.name if row.peer else f"`{row.name}`",
            *(f"{middle} ({around})" if around else middle for middle, around in pairs),
        ]
        cells += [theory_cell(row), size(row.peak_bytes), row.backend, f"{row.rate / 1e9:,.3g}"]
        if len(heads) > 8:
            cells.append("" if row.cache_bytes is None else f"{row.cache_bytes:,}")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def theory_cell(row: Row) -> str:
    """Empty for peers."""
    return "" if row.theory is None else f"{row.theory:.2f}"
