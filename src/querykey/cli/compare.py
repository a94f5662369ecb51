"""querykey compare: train designs on tasks over paired seeds, and say which is better."""

from __future__ import annotations

import argparse
from typing import Any

from querykey.cli.options import add_command, add_options, described, output_folder
from querykey.extras import needs
from querykey.study.config import Config
from querykey.study.options import Options

EXAMPLES = {
    "querykey compare": "the plan why: do queries and keys need different weights?",
    "querykey compare --tasks text --text notes/*.txt --designs q,k,v q,k=v": "the cost of K = V on your own texts",
    "querykey compare claims --seeds auto": "a plan that states claims, with seeds until each is decided",
}


def add_to(commands: Any) -> None:
    """The command and its options."""
    about = "train designs on tasks over paired seeds, and say which is better"
    stopped = "stopped; finished cells are kept, and the same command resumes"
    parser = add_command(commands, "compare", about, _run, EXAMPLES, stopped, argument_default=argparse.SUPPRESS)
    parser.add_argument(
        "plan", nargs="?", metavar="PLAN", help="a plan that ships with querykey (why, claims), or a .toml or .py file"
    )
    about_options = described(Options)
    parser.add_argument("--seeds", type=_count_or_auto, metavar="N", help=about_options["seeds"])
    parser.add_argument("--out", type=output_folder, metavar="DIR", help=about_options["out"])
    add_options(parser, Options, without=("seeds", "out"))
    parser.add_argument("--lang", choices=("en", "zh"), help="language of the tables and the report (default: en)")
    sizes = parser.add_argument_group("model and training, for all tasks instead of the plan's")
    add_options(sizes, Config)


def _count_or_auto(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number or auto, not {text!r}")
    return text if text == "auto" else int(text)


def _run(chosen: argparse.Namespace) -> int:
    with needs("study"):
        from rich.console import Console

        from querykey.report.progress import Progress
        from querykey.study.compare import compare
        from querykey.study.display import Display
        from querykey.study.engines import EngineError
    given = {name: value for name, value in vars(chosen).items() if name not in ("command", "stopped")}
    language, told = given.pop("lang", "en"), Console(stderr=True)
    try:
        with Progress(told) as progress:
            display = Display(progress)
            report = compare(given.pop("plan", "why"), watch=display, **given)
    except EngineError as error:
        raise ValueError(str(error)) from None
    if not display.trained:
        told.print(f"all {len(report.records)} cells had been trained before", soft_wrap=True, highlight=False)
    Console().print(report.terminal(language))
    print(f"\nreport: {report.write_html(language)}")
    return 0
