"""querykey inspect: what the heads of a trained checkpoint do with their query and key weights."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from querykey.cli.options import add_command, add_format, add_options, described, given, output_folder, reading
from querykey.extras import load, needs
from querykey.inspection.options import Options
from querykey.spelling import existing_or_repository

if TYPE_CHECKING:
    from querykey.inspection.inspect import Inspection
    from querykey.report.words import Words

FORMATS = ("table", "csv", "json", "parquet")
EXAMPLES = {
    "querykey inspect HuggingFaceTB/SmolLM2-135M": "W_Q and W_K of a model on the Hub",
    "querykey inspect ./model --text notes.txt --out report": "with the model run on a text, as a page",
    "querykey inspect ./vit --inputs ./photos": "a vision model, run on a folder of images",
    "querykey inspect ./before ./after --per head --format csv": "two checkpoints, a row for each head",
}


def add_to(commands: Any) -> None:
    """The command and its options."""
    about = "what the heads of a trained checkpoint do with their query and key weights"
    parser = add_command(commands, "inspect", about, _run, EXAMPLES, "stopped; nothing was written")
    parser.add_argument(
        "checkpoints",
        nargs="+",
        type=reading(existing_or_repository),
        metavar="CHECKPOINT",
        help="a folder, a file of weights (also GGUF), a LoRA folder (compared with its base), a repository on the "
        "Hub, or minilm; two are compared",
    )
    parser.add_argument("--per", choices=("layer", "head"), default="layer", help="a row per layer (default) or head")
    add_format(parser, *FORMATS)
    parser.add_argument("--lang", choices=("en", "zh"), default="en", help="of tables and report (default: en)")
    parser.add_argument(
        "--out",
        type=output_folder,
        metavar="DIR",
        help="write DIR/report.html, one page that needs nothing beside itself",
    )
    add_options(parser, Options, without=["layers"])
    parser.add_argument(
        "--layers",
        type=reading(numbers),
        default=argparse.SUPPRESS,
        metavar="NUMBERS",
        help=described(Options)["layers"],
    )


def numbers(text: str) -> list[int]:
    """The numbers of `0-5,8`. Raises ValueError for another form."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.strip().partition("-")
        if not first.isdecimal() or (last and not last.isdecimal()) or int(last or first) < int(first):
            raise ValueError(f"expected numbers of layers such as 0-5,8, not {text!r}")
        found += range(int(first), int(last or first) + 1)
    return found


def _run(chosen: argparse.Namespace) -> int:
    with needs("inspect"):
        from rich.console import Console

        from querykey.inspection.page import write_html
        from querykey.inspection.summary import sentences
        from querykey.report.words import Words
    say = Words("inspection", chosen.lang)
    if len(chosen.checkpoints) > 2:
        raise ValueError(f"one checkpoint is inspected, or two side by side, not {len(chosen.checkpoints)}")
    if chosen.format == "parquet" and sys.stdout.isatty():
        raise ValueError("parquet is not for terminals; send it to a file: --format parquet > heads.parquet")
    told = Console(stderr=True, soft_wrap=True, highlight=False)
    inspections = [_examined(path, chosen, told) for path in chosen.checkpoints]
    if len(inspections) == 1 and inspections[0].base:
        inspections.insert(0, _examined(inspections[0].base, chosen, told))
    _print(inspections, chosen, say)
    for one in inspections:
        told.print(f"\n{one.place}" if len(inspections) > 1 else "", style="bold")
        for sentence in sentences(one, say):
            told.print(f"- {sentence}", markup=False)
    if chosen.out:
        told.print(f"report: {write_html(inspections, chosen.out, say)}", markup=False)
    return 0


def _examined(path: str, chosen: argparse.Namespace, told: Any) -> Inspection:
    """One checkpoint, with a bar on a terminal and a line on what was read."""
    from rich.filesize import decimal

    from querykey.inspection.inspect import examine
    from querykey.report.progress import Progress

    load("transformers.utils.logging", "inspect").disable_progress_bar()  # ours is enough
    with Progress(told, "opening, libraries included") as progress:
        found = examine(path, watch=lambda step: progress(step.what, step.done, step.total), **given(chosen, Options))
    whole = f"{decimal(found.bytes_read)} of {decimal(found.bytes_in_all)}"
    at = f" at {found.revision}" if found.revision else ""
    also = f", and the whole model to run it on the {found.data.reads}" if found.data else ""
    told.print(f"{found.place}{at}: read {whole}{also}, in {found.seconds:.1f} s", markup=False)
    return found


def _print(inspections: list[Inspection], chosen: argparse.Namespace, say: Words) -> None:
    """The data, and nothing else, on standard output."""
    from rich.console import Console

    from querykey.inspection import tables, terminal

    if chosen.format == "table":
        terminal.print_tables(inspections, chosen.per, Console(), say)
        return
    frame = tables.table(inspections, chosen.per)
    if chosen.format == "parquet":
        sys.stdout.buffer.write(tables.as_parquet(frame))
        sys.stdout.buffer.flush()
    else:
        sys.stdout.write({"csv": tables.as_csv, "json": tables.as_json}[chosen.format](frame))
