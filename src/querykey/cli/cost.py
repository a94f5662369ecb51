"""querykey cost: what each design costs, from its layout."""

from __future__ import annotations

import argparse
import csv
import json
import sys
from collections.abc import Sequence
from typing import Any

from querykey.cli.options import add_command, add_format, add_options, given
from querykey.costs import Amounts, Cost, cost
from querykey.extras import needs

EXAMPLES = {
    "querykey cost --dim 512 --heads 8": "one layer, all designs",
    "querykey cost --dim 4096 --heads 32 --kv-heads 8 --layers 32 --length 8192 --dtype bfloat16": (
        "the attention of an 8B model with grouped keys, and its KV cache for one sequence"
    ),
}
_TITLES = {
    "parameters": "parameters",
    "flops": "FLOPs",
    "cache_bytes_per_token": "cache per token",
    "cache_bytes": "cache",
}
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1, ""))


def add_to(commands: Any) -> None:
    """The command and its options."""
    about = "show what each design costs: parameters, FLOPs and bytes of the KV cache"
    parser = add_command(commands, "cost", about, _run, EXAMPLES)
    add_options(parser, cost)
    add_format(parser, "table", "csv", "json")


def _run(chosen: argparse.Namespace) -> int:
    costs = cost(**given(chosen, cost))
    rows = list(map(_record, costs))
    match chosen.format:
        case "json":
            print(json.dumps(rows, indent=2))
        case "csv":
            writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        case _:
            _print(costs)
    for one in costs:
        if one.note:
            print(one.note, file=sys.stderr)
    return 0


def _record(one: Cost) -> dict[str, Any]:
    row: dict[str, Any] = {"design": str(one.design), "kv_heads": one.kv_heads}
    for name, amount in one.amounts._asdict().items():
        row |= {name: amount, f"{name}_ratio": round(one.ratio(name), 4)}
    return row


def _print(costs: Sequence[Cost]) -> None:
    with needs("study"):
        from rich.console import Console

        from querykey.report.table import Cell, Column, Table
    columns = [Column("design", "left")]
    cells = [[Cell(str(one.design), style="code") for one in costs]]
    for name in Amounts._fields:
        texts = aligned([getattr(one.amounts, name) for one in costs], "B" * name.startswith("cache"))
        columns.append(Column(_TITLES[name], detail="ratio"))
        cells.append([Cell(text, f"{one.ratio(name):.2f}") for text, one in zip(texts, costs, strict=True)])
    Console().print(Table(columns, list(zip(*cells, strict=True))))


def aligned(numbers: Sequence[int], unit: str) -> list[str]:
    """The numbers in one unit and with equally many decimals, three digits at least where they are not whole."""
    size, prefix = next((size, prefix) for size, prefix in _UNITS if max(numbers) >= size)
    shown = [number / size for number in numbers]
    digits = next((n for n in range(3) if min(shown) * 10**n >= 100 or all(x == round(x, n) for x in shown)), 3)
    name = f" {prefix}{unit}".rstrip()
    return [f"{value:,.{digits}f}{name}" for value in shown]
