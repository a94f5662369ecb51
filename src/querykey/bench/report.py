"""A finished benchmark as CSV, JSON and Markdown, and the files that it is written to."""

from __future__ import annotations

import csv
import json
from dataclasses import fields
from io import StringIO
from pathlib import Path
from typing import Any

from querykey.bench.bench import Bench, Row
from querykey.bench.config import Config
from querykey.bench.tables import noise, summary, tables
from querykey.report.files import write_atomically
from querykey.report.numbers import plural

_SPREADS = {
    "seconds": "seconds",
    "bound_seconds": "bound_seconds",
    "to_bound": "ratio_to_bound",
    "to_baseline": "ratio_to_compared",
}


def records(result: Bench) -> list[dict[str, Any]]:
    """One record per row, each with its provenance. Times in seconds, sizes in bytes."""
    config = result.config
    provenance = {"machine": result.machine, "torch": result.torch, "threads": result.threads}
    provenance |= {name: getattr(config, name) for name in ("device", "dtype", "causal", "window", "rotary", "rounds")}
    return [provenance | _record(row, config.cached) for row in result.rows]


def as_csv(result: Bench) -> str:
    """One line per row of the result, with a header."""
    rows = records(result)
    written = StringIO()
    writer = csv.DictWriter(written, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return written.getvalue()


def as_json(result: Bench) -> str:
    """The records, the summary, and the notes on noise and on what was left out."""
    return json.dumps({"summary": summary(result), "notes": notes(result), "rows": records(result)}, indent=2) + "\n"


def as_markdown(result: Bench, picture: str = "") -> str:
    """A page with a table for each shape and pass; `picture` is the file of its plot."""
    lines = [f"# What each design costs: {result.machine}", "", summary(result), "", _provenance(result), ""]
    if picture:
        lines += [f"![Time of each design relative to the first, with the predicted ratio]({picture})", ""]
    lines += [f"- {note}" for note in notes(result)]
    for table in tables(result):
        lines += ["", f"## {table.markdown()}".rstrip()]
    return "\n".join(lines) + "\n"


def notes(result: Bench) -> list[str]:
    """The notes on what was left out, and the warning about noise."""
    return [*result.notes, *filter(None, [noise(result)])]


def write(result: Bench, folder: str | Path) -> list[Path]:
    """Write MACHINE.csv, MACHINE.md and, of several designs, MACHINE.svg, each whole or not at all; see `stem`."""
    from querykey.bench.plot import as_svg

    name, several = stem(result), len(result.config.designs) > 1
    texts = {"csv": as_csv(result), "md": as_markdown(result, picture=f"{name}.svg" * several)}
    texts |= {"svg": as_svg(result)} if several else {}
    paths = [Path(folder) / f"{name}.{kind}" for kind in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        with write_atomically(path) as partial:
            partial.write_text(text, encoding="utf-8")
    return paths


def stem(result: Bench) -> str:
    """The name of the files: the machine, and causal, window, rotary and dtype where they are not the default."""
    config = result.config
    words = [result.machine, "causal" * config.causal, f"window-{config.window}" * (config.window is not None)]
    words += ["rotary" * config.rotary, config.dtype * (config.dtype != Config.dtype)]
    return "-".join(filter(None, words))


def command(config: Config) -> str:
    """The command line that asks for this config."""
    words = ["querykey bench"]
    for field in fields(Config):
        value = getattr(config, field.name)
        if value == field.default:
            continue
        words.append(f"--{field.name}")
        if value is not True:
            words += map(str, value) if isinstance(value, tuple) else [str(value)]
    return " ".join(words)


def _provenance(result: Bench) -> str:
    config = result.config
    where = f"{plural(result.threads, 'thread')}, {config.dtype} on {config.device}"
    return f"`{command(config)}`: torch {result.torch}, {where}, {config.rounds} rounds."


def _record(row: Row, cached: int) -> dict[str, Any]:
    found: dict[str, Any] = row.shape._asdict() | {"cached": cached if row.what == "decoding" else None}
    found["pass"] = row.what
    found |= {name: getattr(row, name) for name in ("name", "design", "peer", "compared")}
    for name, column in _SPREADS.items():
        spread = getattr(row, name)
        found |= {column: spread.median, f"{column}_low": spread.low, f"{column}_high": spread.high}
    found |= {name: getattr(row, name) for name in ("predicted", "backend", "peak_bytes", "flops", "step_bytes")}
    return found | {"cache_bytes_per_token": row.cache_bytes, "rate_per_second": row.rate}
