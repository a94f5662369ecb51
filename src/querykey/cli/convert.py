"""querykey convert: a trained model with a smaller KV cache, since its keys and values read one latent."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from querykey.cli.options import add_command, output_folder, reading, real_number, whole_number
from querykey.extras import load, needs
from querykey.spelling import existing_or_repository

if TYPE_CHECKING:
    from querykey.conversion.convert import Conversion, Fitted

SIZES = (0.75, 0.5, 0.375, 0.25)
EXAMPLES = {
    "querykey convert HuggingFaceTB/SmolLM2-135M --dry-run --evaluate mine.txt": "what each size would cost, no files",
    "querykey convert ./model --out ./half --calibrate a.txt b/ c.txt --evaluate mine.txt": "half of the cache",
    "querykey convert ./model --out ./half --heal 40 --evaluate mine.txt other.txt": "then train the new weights",
    "querykey convert ./model --out ./small --share qk": "one latent for queries and keys: fewer parameters",
}
STOPPED = "stopped; the output folder was not written, and the same command resumes the calibration"


def add_to(commands: Any) -> None:
    """The command and its options."""
    about = "halve the KV cache of a trained model: keys and values from one latent, fitted in closed form"
    parser = add_command(commands, "convert", about, _run, EXAMPLES, STOPPED)
    parser.add_argument(
        "model",
        type=reading(existing_or_repository),
        metavar="MODEL",
        help="a folder, a repository on the Hub, or a GGUF file",
    )
    parser.add_argument("--out", type=output_folder, metavar="DIR", help="a new folder for model and report")
    parser.add_argument(
        "--share", choices=("kv", "qk", "qkv"), default="kv", help="the roles that read one latent (default: kv)"
    )
    parser.add_argument(
        "--cache", type=real_number, default=0.5, metavar="PART", help="of the cache that remains (default: 0.5)"
    )
    parser.add_argument(
        "--calibrate", nargs="+", default=[], metavar="TEXT",
        help="texts to fit to: files, folders, globs or hf:NAME, a kind of text each (default: three kinds)",
    )  # fmt: skip
    parser.add_argument(
        "--evaluate", nargs="+", default=[], metavar="TEXT", help="other texts, on which the report is measured"
    )
    parser.add_argument(
        "--windows", type=whole_number, default=48, metavar="N", help="of calibration text in all (default: 48)"
    )
    parser.add_argument(
        "--length", type=whole_number, default=512, metavar="N", help="tokens of a window (default: 512)"
    )
    parser.add_argument("--heal", type=whole_number, default=0, metavar="STEPS", help="of training of the new weights")
    parser.add_argument(
        "--plain", action="store_true", help="multiplied out: an ordinary checkpoint, with a full cache"
    )
    parser.add_argument(
        "--self-contained", action="store_true", help="with modelling code, for people who do not have querykey"
    )
    parser.add_argument("--curve", action="store_true", help="measure other sizes too, for a plot in the report")
    parser.add_argument("--dry-run", action="store_true", help="print what several sizes cost, and write nothing")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="of the weights (default: stored)")
    parser.add_argument("--device", default="cpu", help="where the model runs (default: cpu)")
    parser.add_argument("--seed", type=whole_number, default=0, help="of windows and labels (default: 0)")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit, for repositories")


def _run(chosen: argparse.Namespace) -> int:
    _check(chosen)
    with needs("convert"):
        from rich.console import Console

        from querykey.conversion import report, save, texts
        from querykey.report.progress import Progress
    load("transformers", "convert").logging.set_verbosity_error()
    load("transformers.utils.logging", "convert").disable_progress_bar()
    texts.check_apart(chosen.calibrate, chosen.evaluate)
    if not chosen.dry_run:
        save.check_free(chosen.out)
    told, out = Console(stderr=True, soft_wrap=True, highlight=False), Console()
    with Progress(told) as watch:
        fitted, evaluation = _fitted(chosen, watch)
        told.print(f"calibrated on {_names(fitted.calibration)}", markup=False)
        conversion = _converted(chosen, fitted, evaluation, watch)
    if conversion.curve:
        out.print(report.curve_table(conversion))
    if chosen.dry_run:
        return 0
    out.print(report.layers_table(conversion))
    if conversion.costs:
        out.print(report.costs_table(conversion.costs, chosen.length))
    for sentence in report.sentences(conversion):
        told.print(f"- {sentence}", markup=False)
    conversion.save(chosen.out, plain=chosen.plain, self_contained=chosen.self_contained)
    told.print(f"model: {chosen.out}, report: {report.write(conversion, chosen.out, chosen.length)}", markup=False)
    _beside(chosen, "calibration").unlink(missing_ok=True)
    return 0


def _check(chosen: argparse.Namespace) -> None:
    """What can be refused before anything is loaded."""
    if not chosen.out and not chosen.dry_run:
        raise ValueError("no output folder was given; add --out DIR, or --dry-run to see the costs alone")
    if not 0 < chosen.cache <= 1:
        raise ValueError(f"--cache is the part that remains, more than 0 and at most 1, not {chosen.cache:g}")
    if chosen.dry_run and not chosen.evaluate:
        raise ValueError("--dry-run measures sizes on text; add --evaluate TEXT, other than the calibration text")
    if chosen.curve and not chosen.evaluate:
        raise ValueError("--curve measures sizes on text; add --evaluate TEXT, other than the calibration text")
    if chosen.heal and not chosen.evaluate:
        raise ValueError("--heal keeps its result only if no text gets worse; add --evaluate TEXT")
    for name, least in (("windows", 1), ("length", 16), ("heal", 0)):
        if getattr(chosen, name) < least:
            raise ValueError(f"--{name} is at least {least}, not {getattr(chosen, name)}")


def _fitted(chosen: argparse.Namespace, watch: Any) -> tuple[Fitted, list[Any]]:
    from querykey.conversion import calibrate, convert, layers, save, source, texts
    from querykey.report.numbers import amount

    model, tokenizer = source.open_model(
        chosen.model, dtype=chosen.dtype, device=chosen.device, revision=chosen.revision
    )
    shared, state = layers.shared_layers(model, chosen.share), None
    if not chosen.dry_run:
        save.check_space(save.model_bytes(model), chosen.out)
        state = _beside(chosen, "calibration")
    if folder := convert.moments_folder(shared, state):
        size = amount(calibrate.memory_needed(shared))
        print(f"memory is short: {size} bytes of moments are kept on disk, in {folder}", file=sys.stderr)
    evaluation = texts.read_texts(
        chosen.evaluate, tokenizer, windows=convert.EVALUATION, length=chosen.length, seed=chosen.seed
    )
    fitted = convert.fit(
        model, tokenizer, share=chosen.share, texts=chosen.calibrate, windows=chosen.windows, length=chosen.length,
        seed=chosen.seed, state=state, watch=watch,
    )  # fmt: skip
    return fitted, evaluation


def _converted(chosen: argparse.Namespace, fitted: Fitted, evaluation: list[Any], watch: Any) -> Conversion:
    """The conversion that was chosen; for a dry run, measured at several sizes first."""
    from querykey.conversion import convert

    sizes = sorted({*SIZES, chosen.cache}, reverse=True) if chosen.dry_run or chosen.curve else []
    curve = fitted.curve(sizes, evaluation, watch)
    conversion = fitted.convert(chosen.cache)
    conversion.curve = curve
    convert.check(conversion)
    if evaluation and not chosen.dry_run:
        conversion.evaluate(evaluation, watch)
    if chosen.heal and not chosen.dry_run:
        _heal(chosen, conversion, evaluation, watch)
    return conversion


def _heal(chosen: argparse.Namespace, conversion: Conversion, evaluation: list[Any], watch: Any) -> None:
    """Trains on other windows of the calibration texts than the fit has seen."""
    from querykey.conversion import heal, texts

    fitted, folder = conversion.fitted, _beside(chosen, "healing")
    with conversion.original():
        read = texts.calibration_texts(
            chosen.calibrate, fitted.model, fitted.tokenizer, windows=chosen.heal, length=chosen.length,
            seed=chosen.seed + 1,
        )  # fmt: skip
    heal.heal(conversion, read, evaluation, steps=chosen.heal, folder=folder, watch=watch)
    shutil.rmtree(folder, ignore_errors=True)


def _beside(chosen: argparse.Namespace, what: str) -> Path:
    """Where an interrupted calibration or healing is found again."""
    out = Path(chosen.out)
    return out.with_name(f".{out.name}.{what}")


def _names(texts: list[Any]) -> str:
    return "; ".join(f"{text.name} ({text.tokens:,} tokens)" for text in texts)
