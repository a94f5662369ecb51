"""querykey compare: train designs on tasks over paired seeds, and say which is better."""

from __future__ import annotations

import argparse
from typing import Any

from querykey.cli.options import add_command, add_options, output_folder, parsed, real_number, whole_number
from querykey.design import Design
from querykey.extras import needs
from querykey.study.config import Config

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
    parser.add_argument(
        "--tasks", nargs="+", metavar="TASK", help="tasks instead of the plan's, such as cycle shift text"
    )
    parser.add_argument(
        "--designs",
        nargs="+",
        type=parsed(Design.parse),
        metavar="DESIGN",
        help="designs instead of the plan's; the first is the baseline",
    )
    parser.add_argument("--text", nargs="+", metavar="PATH", help="files, folders, globs or hf:NAME for the task text")
    parser.add_argument("--tokenizer", metavar="FILE", help="of the tokenizers library, instead of bytes")
    parser.add_argument("--seeds", type=_count_or_auto, metavar="N", help="paired seeds; auto adds them until decided")
    parser.add_argument("--most-seeds", type=whole_number, metavar="N", help="where --seeds auto ends (default: 24)")
    parser.add_argument("--match", choices=("width", "parameters", "flops"), help="what is equal for all designs")
    parser.add_argument(
        "--tune", nargs="+", type=real_number, metavar="LR", help="learning rates to choose from, per design"
    )
    parser.add_argument(
        "--out", type=output_folder, metavar="DIR", help="folder of the records and the report (default: runs/PLAN)"
    )
    parser.add_argument("--workers", type=whole_number, metavar="N", help="processes (default: one per core)")
    parser.add_argument("--device", metavar="NAME", help="auto (default), cpu, cuda, ...")
    parser.add_argument("--engine", choices=("local", "ray"), help="local processes (default), or Ray tasks")
    parser.add_argument(
        "--ray-address", metavar="HOST:PORT", help="a running Ray cluster (default: one of this machine)"
    )
    parser.add_argument("--gpus", type=real_number, metavar="SHARE", help="of a GPU that each Ray task asks for")
    sizes = parser.add_argument_group("model and training, for all tasks instead of the plan's")
    add_options(sizes, Config)


def _count_or_auto(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number or auto, not {text!r}")
    return text if text == "auto" else int(text)


def _run(chosen: argparse.Namespace) -> int:
    with needs("study"):
        from rich.console import Console

        from querykey.study.compare import compare
        from querykey.study.display import Display
        from querykey.study.engines import EngineError
        from querykey.study.report import print_tables, write_html
    given = {name: value for name, value in vars(chosen).items() if name not in ("command", "stopped")}
    try:
        with Display(Console(stderr=True)) as display:
            result = compare(given.pop("plan", "why"), watch=display, **given)
    except EngineError as error:
        raise ValueError(str(error)) from None
    print_tables(result, Console())
    print(f"\nreport: {write_html(result)}")
    return 0
