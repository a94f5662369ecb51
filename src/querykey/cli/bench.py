"""querykey bench: what each design costs and saves on this machine."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from querykey.bench.config import Config
from querykey.cli.options import add_command, add_format, add_options, given, output_folder
from querykey.extras import load, needs

EXAMPLES = {
    "querykey bench": "the five partitions at three shapes, about 5 minutes",
    "querykey bench --shapes 8,1024,768,12 --designs q,k,v q,k=v --against hf": "your sizes, with transformers",
    "querykey bench --passes decoding --device cuda --dtype bfloat16 --out results": "decoding on a GPU, as files",
}


def add_to(commands: Any) -> None:
    """The command and its options."""
    about = "time designs on this machine: prefill, training and decoding, with lower bounds and other libraries"
    parser = add_command(commands, "bench", about, _run, EXAMPLES, "stopped; nothing was written")
    add_options(parser, Config)
    add_format(parser, "table", "csv", "json")
    help = "write MACHINE.md, MACHINE.csv and MACHINE.svg, a plot, to this folder"
    parser.add_argument("--out", type=output_folder, metavar="DIR", help=help)


def _run(chosen: argparse.Namespace) -> int:
    config = Config(**given(chosen, Config))
    with needs("bench"):
        from rich.console import Console

        from querykey.bench import report, tables
        from querykey.bench.bench import bench
        from querykey.report.progress import Progress
    if chosen.out:
        load("matplotlib", "bench")  # a missing package is reported before minutes of timing
    errors = Console(stderr=True, soft_wrap=True, highlight=False)
    with Progress(errors, "preparing") as progress:
        result = bench(config, progress)
    if chosen.format == "table":
        for table in tables.tables(result):
            Console().print(table, "")
    else:
        sys.stdout.write({"csv": report.as_csv, "json": report.as_json}[chosen.format](result))
    for path in report.write(result, chosen.out) if chosen.out else ():
        errors.print(f"written: {path}", markup=False)
    for line in (*report.notes(result), tables.summary(result)):
        errors.print(line, markup=False)
    return 0
