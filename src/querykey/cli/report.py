"""querykey report: the report of a study again, from its records."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from querykey.extras import needs


def add_to(commands: Any) -> None:
    """The command and its options."""
    about = "make the report of a finished or unfinished study again, from its records"
    parser = commands.add_parser("report", help=about, description=about)
    parser.add_argument("folder", metavar="DIR", help="the folder that compare wrote to")
    parser.add_argument("--format", choices=("table", "csv", "json", "html"), default="table")
    parser.set_defaults(command=_run)


def _run(chosen: argparse.Namespace) -> int:
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
