"""The command line: parsing, printing, exit codes; nothing else.

Exit codes: 0 done; 1 a fault of ours; 2 input that cannot be used, said in a sentence; 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import io
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import querykey
from querykey.design import PARTITIONS, Design, DesignError
from querykey.extras import MissingExtra, needs

if TYPE_CHECKING:
    from querykey.layout import Layout

COST_DESIGNS = (*PARTITIONS, "q=k,v+core=full", "q=k=v+core=full")
DTYPES = ("float32", "bfloat16", "float16", "float64")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ± still gets its table
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = chosen.command
        return command(chosen)
    except (ValueError, MissingExtra) as error:
        print(f"querykey: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"querykey: {error.strerror or error}{where}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("querykey: stopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="querykey", description=querykey.__doc__)
    parser.add_argument("--version", action="version", version=f"querykey {querykey.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_compare(commands)
    _add_report(commands)
    _add_cost(commands)
    return parser


# querykey compare


def _add_compare(commands: Any) -> None:
    about = "train designs on tasks over paired seeds, and say which is better"
    parser = commands.add_parser("compare", help=about, description=about, argument_default=argparse.SUPPRESS)
    parser.add_argument(
        "plan", nargs="?", metavar="PLAN", help="a plan that ships with querykey (why), or a .toml or .py file"
    )
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="tasks instead of the plan's, such as cycle shift text"
    )
    parser.add_argument(
        "--designs", nargs="+", metavar="DESIGN", help="designs instead of the plan's; the first is the baseline"
    )
    parser.add_argument("--text", nargs="+", metavar="PATH", help="files, folders, globs or hf:NAME for the task text")
    parser.add_argument("--tokenizer", metavar="FILE", help="of the tokenizers library, instead of bytes")
    parser.add_argument("--seeds", type=_count_or_auto, metavar="N", help="paired seeds; auto adds them until decided")
    parser.add_argument("--most-seeds", type=int, metavar="N", help="where --seeds auto ends (default: 24)")
    parser.add_argument("--match", choices=("width", "parameters", "flops"), help="what is equal for all designs")
    parser.add_argument("--tune", nargs="+", type=float, metavar="LR", help="learning rates to choose from, per design")
    parser.add_argument("--out", metavar="DIR", help="folder of the records and the report (default: runs/PLAN)")
    parser.add_argument("--workers", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--device", metavar="NAME", help="auto (default), cpu, cuda, ...")
    parser.add_argument("--engine", choices=("local", "ray"), help="local processes (default), or Ray tasks")
    parser.add_argument(
        "--ray-address", metavar="HOST:PORT", help="a running Ray cluster (default: one of this machine)"
    )
    parser.add_argument("--gpus", type=float, metavar="SHARE", help="of a GPU that each Ray task asks for")
    sizes = parser.add_argument_group("model and training, for all tasks instead of the plan's")
    for name, kind in _settings().items():
        sizes.add_argument(
            f"--{name.replace('_', '-')}", type=kind, metavar="N" if kind is not str else "WORD", dest=name
        )
    parser.set_defaults(command=_compare)


def _count_or_auto(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number or auto, not {text!r}")
    return text if text == "auto" else int(text)


def _settings() -> dict[str, Callable[[str], Any]]:
    """The fields of a setting, with the way each is read."""
    whole = ("layers", "dim", "heads", "head_dim", "steps", "batch", "evaluations")
    real = ("mlp", "dropout", "lr", "weight_decay", "warmup")
    return dict.fromkeys(whole, int) | dict.fromkeys(real, float) | {"positions": str}


def _compare(chosen: argparse.Namespace) -> int:
    with needs("study"):
        from rich.console import Console

        from querykey.study.compare import compare
        from querykey.study.display import Display
        from querykey.study.engines import EngineError
        from querykey.study.report import print_tables, write_html
    given = {name: value for name, value in vars(chosen).items() if name != "command"}
    try:
        with Display(Console(stderr=True)) as display:
            result = compare(given.pop("plan", "why"), watch=display, **given)
    except EngineError as error:
        raise ValueError(str(error)) from None
    print_tables(result, Console())
    print(f"\nreport: {write_html(result)}")
    return 0


# querykey report


def _add_report(commands: Any) -> None:
    about = "make the report of a finished or unfinished study again, from its records"
    parser = commands.add_parser("report", help=about, description=about)
    parser.add_argument("folder", metavar="DIR", help="the folder that compare wrote to")
    parser.add_argument("--format", choices=("table", "csv", "json", "html"), default="table")
    parser.set_defaults(command=_report)


def _report(chosen: argparse.Namespace) -> int:
    with needs("study"):
        from rich.console import Console

        from querykey.study import report
        from querykey.study.result import read
    result = read(chosen.folder)
    if chosen.format == "table":
        report.print_tables(result, Console())
    else:
        render = {"csv": report.as_csv, "json": report.as_json, "html": report.as_html}[chosen.format]
        sys.stdout.write(render(result))
    return 0


# querykey cost


def _add_cost(commands: Any) -> None:
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
    parser.set_defaults(command=_cost)


def _cost(chosen: argparse.Namespace) -> int:
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
    sizes = {"dim": chosen.dim, "heads": chosen.heads, "head_dim": chosen.head_dim}
    plain = design.resolve(**sizes)
    if chosen.kv_heads in (None, plain.kv_heads) or design.kv_heads:
        return plain, ""
    if chosen.kv_heads < 1 or chosen.heads % chosen.kv_heads:
        raise ValueError(f"--kv-heads {chosen.kv_heads} must divide the {chosen.heads} query heads")
    try:
        return dataclasses.replace(design, kv_heads=chosen.kv_heads).resolve(**sizes), ""
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


if __name__ == "__main__":
    sys.exit(main())
