"""querykey compare: train designs on tasks over paired seeds, and say which is better."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from querykey.extras import needs


def add_to(commands: Any) -> None:
    """The command and its options."""
    about = "train designs on tasks over paired seeds, and say which is better"
    parser = commands.add_parser("compare", help=about, description=about, argument_default=argparse.SUPPRESS)
    parser.add_argument(
        "plan", nargs="?", metavar="PLAN", help="a plan that ships with querykey (why, claims), or a .toml or .py file"
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
    parser.set_defaults(command=_run)


def _count_or_auto(text: str) -> int | str:
    if text != "auto" and not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number or auto, not {text!r}")
    return text if text == "auto" else int(text)


def _settings() -> dict[str, Callable[[str], Any]]:
    """The fields of a setting, with the way each is read."""
    whole = ("layers", "dim", "heads", "head_dim", "steps", "batch", "evaluations")
    real = ("mlp", "dropout", "lr", "weight_decay", "warmup")
    return dict.fromkeys(whole, int) | dict.fromkeys(real, float) | {"positions": str}


def _run(chosen: argparse.Namespace) -> int:
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
