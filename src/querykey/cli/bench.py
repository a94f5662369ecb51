"""querykey bench: what each design costs and saves on this machine."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querykey.extras import load, needs

if TYPE_CHECKING:
    from querykey.bench.config import Setting


def add_to(commands: Any) -> None:
    """The command and its options."""
    about = "time designs on this machine: prefill, training and cached decoding, against floor, theory and peers"
    parser = commands.add_parser("bench", help=about, description=about, argument_default=argparse.SUPPRESS)
    parser.add_argument(
        "--shapes",
        nargs="+",
        metavar="B,L,D,H",
        help="batch, length, dim and heads (default: 32,64,128,4 and two larger)",
    )
    parser.add_argument(
        "--designs", nargs="+", metavar="DESIGN", help="the first is the baseline (default: the five partitions)"
    )
    parser.add_argument("--passes", nargs="+", metavar="PASS", help="prefill, training, decoding (default: all)")
    parser.add_argument(
        "--against", nargs="+", metavar="PEER", help="other libraries' layers too: mha, x-transformers, hf"
    )
    parser.add_argument("--causal", action="store_true", help="a position sees itself and what came before")
    parser.add_argument("--window", type=int, metavar="N", help="with --causal: of these the last N, itself included")
    parser.add_argument("--rotary", action="store_true", help="queries and keys are rotated by position")
    parser.add_argument("--cached", type=int, metavar="N", help="positions that a decoding step reads (default: 4096)")
    parser.add_argument("--dtype", metavar="NAME", help="float32 (default), bfloat16, float16 or float64")
    parser.add_argument("--device", metavar="NAME", help="cpu (default), cuda or cuda:N")
    parser.add_argument("--threads", type=int, metavar="N", help="of the CPU (default: as torch takes them)")
    parser.add_argument("--rounds", type=int, metavar="N", help="in which all take turns (default: 15)")
    parser.add_argument(
        "--format", choices=("table", "csv", "json"), default="table", help="on standard output (default: table)"
    )
    parser.add_argument(
        "--out", metavar="DIR", help="write MACHINE.md, MACHINE.csv and MACHINE.svg, a plot, to this folder"
    )
    parser.set_defaults(command=_run)


def _run(chosen: argparse.Namespace) -> int:
    with needs("bench"):
        from rich.console import Console

        from querykey.bench import report
        from querykey.bench.bench import bench
        from querykey.bench.terminal import Display, Tables
    if "out" in chosen:
        load("matplotlib", "bench")  # what would fail is told before minutes of timing rather than after
        if Path(chosen.out).is_file():
            raise ValueError(f"--out must be a folder, but {chosen.out} is a file")
        Path(chosen.out).mkdir(parents=True, exist_ok=True)
    told = Console(stderr=True, soft_wrap=True, highlight=False)
    try:
        with Display(told) as display:
            result = bench(_setting(chosen), display)
    except KeyboardInterrupt:
        told.print("querykey: stopped; nothing was written")
        return 130
    if chosen.format == "table":
        Console().print(Tables(result))
    else:
        sys.stdout.write({"csv": report.as_csv, "json": report.as_json}[chosen.format](result))
    for note in result.notes:
        told.print(note, markup=False)
    if "out" in chosen:
        for path in report.write(result, chosen.out):
            told.print(f"written: {path}", markup=False)
    return 0


def _setting(chosen: argparse.Namespace) -> Setting:
    from querykey.bench.config import Setting, Shape
    from querykey.design import Design

    readers: dict[str, Callable[[str], Any]] = {
        "shapes": Shape.parse,
        "designs": Design.parse,
        "passes": str,
        "against": str,
    }
    given = {name: value for name, value in vars(chosen).items() if name not in ("command", "format", "out")}
    for name in readers.keys() & given.keys():
        given[name] = tuple(map(readers[name], given[name]))
    return Setting(**given)
