"""querykey cost: what each design costs, from its layout."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import sys
from typing import TYPE_CHECKING, Any

from querykey.design import PARTITIONS, Design, DesignError
from querykey.extras import needs

if TYPE_CHECKING:
    from querykey.layout import Layout

COST_DESIGNS = (*PARTITIONS, "q=k,v+core=full", "q=k=v+core=full")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def add_to(commands: Any) -> None:
    """The command and its options."""
    about = "what each design costs: parameters, FLOPs and cached bytes of one attention layer"
    parser = commands.add_parser("cost", help=about, description=about)
    parser.add_argument("--dim", type=int, required=True, metavar="N", help="width of the model")
    parser.add_argument("--heads", type=int, required=True, metavar="N", help="query heads")
    parser.add_argument(
        "--kv-heads", type=int, metavar="N", help="key and value heads, for the designs that can have fewer"
    )
    parser.add_argument("--head-dim", type=int, metavar="N", help="size of a head (default: dim / heads)")
    parser.add_argument(
        "--length", type=int, default=2048, metavar="N", help="positions of the forward pass (default: 2048)"
    )
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the cache (default: float32)")
    parser.add_argument(
        "--designs", nargs="+", default=COST_DESIGNS, metavar="DESIGN", help="the first is the baseline"
    )
    parser.add_argument("--format", choices=("table", "csv", "json"), default="table")
    parser.set_defaults(command=_run)


def _run(chosen: argparse.Namespace) -> int:
    if chosen.length < 1:
        raise ValueError(f"--length must be positive, not {chosen.length}")
    layouts, notes = [], []
    for text in chosen.designs:
        layout, note = _resolve_grouped(Design.parse(text), chosen)
        layouts.append(layout)
        notes += [note] * bool(note)
    rows = [_cost_row(layout, layouts[0], chosen) for layout in layouts]
    if chosen.format == "json":
        print(json.dumps(rows, indent=2))
    elif chosen.format == "csv":
        writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    else:
        _print_costs(rows, chosen)
    for note in notes:
        print(note, file=sys.stderr)
    return 0


def _resolve_grouped(design: Design, chosen: argparse.Namespace) -> tuple[Layout, str]:
    """With the key heads asked for, where the design can have them; else without, and a note that says why."""
    from querykey.layout import Layout  # needs torch, which the parser does not

    sizes = {"dim": chosen.dim, "heads": chosen.heads, "head_dim": chosen.head_dim}
    plain = Layout.of(design, **sizes)
    if chosen.kv_heads in (None, plain.kv_heads) or design.kv_heads:
        return plain, ""
    if chosen.kv_heads < 1 or chosen.heads % chosen.kv_heads:
        raise ValueError(f"--kv-heads {chosen.kv_heads} must divide the {chosen.heads} query heads")
    try:
        return Layout.of(dataclasses.replace(design, kv_heads=chosen.kv_heads), **sizes), ""
    except DesignError as error:
        why = str(error).partition(": ")[2]
        return plain, f"{design} is shown with {plain.kv_heads} key heads: {why}"


def _cost_row(layout: Layout, baseline: Layout, chosen: argparse.Namespace) -> dict[str, Any]:
    import torch

    dtype = getattr(torch, chosen.dtype)
    row: dict[str, Any] = {"design": str(layout.design), "kv_heads": layout.kv_heads}
    measures = {
        "parameters": lambda one: one.parameters,
        "flops": lambda one: one.flops(chosen.length),
        "cache_bytes_per_token": lambda one: one.cache_bytes(dtype),
    }
    for name, measure in measures.items():
        row[name] = measure(layout)
        row[f"{name}_ratio"] = round(measure(layout) / measure(baseline), 4)
    return row


def _print_costs(rows: list[dict[str, Any]], chosen: argparse.Namespace) -> None:
    with needs("study"):
        from rich import box
        from rich.console import Console
        from rich.table import Table
    title = (
        f"One attention layer: dim {chosen.dim}, {chosen.heads} heads, {chosen.length} positions, {chosen.dtype} cache"
    )
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("design", no_wrap=True)
    for name in ("parameters", "FLOPs", "cache B/token"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        table.add_row(
            row["design"],
            *(
                f"{_short(row[name])} {row[f'{name}_ratio']:5.2f}×"
                for name in ("parameters", "flops", "cache_bytes_per_token")
            ),
        )
    Console().print(table)


def _short(number: int) -> str:
    """Four digits and a unit: 41943040 -> "41.94 M"."""
    for size, unit in ((1e12, " T"), (1e9, " G"), (1e6, " M")):
        if number >= size:
            return f"{number / size:,.4g}{unit}"
    return f"{number:,}"
