"""The report of a study: a table for the terminal, rows for other programs, a page for people.

Each is a pure function of the records: the same records give the same bytes, whenever and wherever it is made.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console

from querykey.report.files import write_atomically
from querykey.study.page import as_html as as_html
from querykey.study.result import Result
from querykey.study.tables import claim_rows
from querykey.study.terminal import Tables


def as_table(result: Result) -> Tables:
    """What rich prints: a table per task, what the designs cost, notes, and last the answer."""
    return Tables(result)


def print_tables(result: Result, console: Console) -> None:
    """Print `as_table`, as wide as the console is."""
    console.print(as_table(result))


def as_csv(result: Result) -> str:
    """One row per cell, with its configuration, metrics and origin; see `Result.cells`. Lists are written as JSON."""
    cells = result.cells.map(lambda value: json.dumps(value) if isinstance(value, list) else value)
    return cells.to_csv(index=False, lineterminator="\n")


def as_json(result: Result) -> str:
    """An object with ``study``, ``answer``, ``claims``, ``summary``, ``costs``, ``cells`` and ``curves``.

    Cells keep their nested configuration, metrics and origin, and curves are one object per cell, by its key. What is
    no finite number is null.
    """
    parts = {
        "study": asdict(result.study),
        "missing": result.missing,
        "answer": result.answer(),
        "claims": [row._asdict() | {"evidence": [one._asdict() for one in row.evidence]} for row in claim_rows(result)],
        "improvement": result.improvement,
        "summary": result.summary.to_dict("records"),
        "costs": result.costs.to_dict("records"),
        "cells": result.records.drop(columns="curve").to_dict("records"),
        "curves": [
            {"key": key, **curve} for key, curve in zip(result.records["key"], result.records["curve"], strict=True)
        ],
    }
    return json.dumps(_strict(parts), allow_nan=False, ensure_ascii=False) + "\n"


def write_html(result: Result) -> Path:
    """Write the page as ``report.html`` beside the records; whole or not at all."""
    path = result.folder / "report.html"
    with write_atomically(path) as partial:
        partial.write_text(as_html(result), encoding="utf-8")
    return path


def _strict(value: Any) -> Any:
    """For JSON: what is no finite number is None."""
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
