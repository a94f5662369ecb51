"""querykey report: the report of a study again, from its records."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from querykey.cli.options import add_command, add_format
from querykey.extras import needs

EXAMPLES = {
    "querykey report runs/why": "the tables of a run, also while it is still training",
    "querykey report runs/why --format csv > cells.csv": "one row for each training run",
}


def add_to(commands: Any) -> None:
    """The command and its options."""
    about = "make the report of a finished or unfinished study again, from its records"
    parser = add_command(commands, "report", about, _run, EXAMPLES)
    parser.add_argument("folder", metavar="DIR", help="the folder that compare wrote to")
    add_format(parser, "table", "csv", "json", "html")
    parser.add_argument("--lang", choices=("en", "zh"), default="en", help="of table and html (default: en)")


def _run(chosen: argparse.Namespace) -> int:
    with needs("study"):
        from rich.console import Console

        from querykey.study.report import read
    report = read(chosen.folder)
    if chosen.format == "table":
        Console().print(report.terminal(chosen.lang))
    elif chosen.format == "html":
        sys.stdout.write(report.html(chosen.lang))
    else:
        sys.stdout.write(report.csv() if chosen.format == "csv" else report.json())
    return 0
