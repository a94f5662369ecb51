"""The models on the page: each opened when it is first looked at, and shared heads fitted for its interventions.

`offers` lists all that one page can show. A subject is a traced model, its tokenizer and its interventions.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from querykey.checkpoint.files import minilm
from querykey.design import Design
from querykey.explorer import builtin
from querykey.explorer.builtin import Progress
from querykey.explorer.converted import Converted, recorded_original
from querykey.explorer.names import NAMES, known_or_elsewhere
from querykey.explorer.sample import EXAMPLE, PYTHON, SAMPLE
from querykey.explorer.tokenizer import ByteTokenizer, CycleTokenizer, ModelTokenizer, NumberTokenizer, Tokenizer
from querykey.models.huggingface import open_model
from querykey.models.native import NativeModel
from querykey.models.replacements import Kind, Replacements
from querykey.models.trace import TracedModel
from querykey.study.training import Trained, load
from querykey.tasks import make_task, options_of

SHOWN: tuple[Kind, ...] = ("trained", "copied", "tied", "signed", "core", "key_value", "selfmask", "cosine")
Shown = Kind | Literal["converted"]
Scope = Literal["head", "layer", "all"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
WINDOW = 64  # under rotary positions the distances below it count in a fit

Purpose = Literal["sentence", "language", "masked", "bytes", "naming", "numbers"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, how its texts are written, the interventions in its heads, and a text to begin with.

    `design` is that of the model as trained. `converted` is what `querykey convert` made of it, which the page shows as
    one more intervention, in all heads.
    """

    purpose: Purpose
    model: TracedModel
    tokenizer: Tokenizer
    replacements: Replacements
    example: str
    design: Design = field(default_factory=Design)
    converted: Converted | None = None

    @property
    def interventions(self) -> list[Shown]:
        """Those that the page offers for this model, the first one none at all."""
        return [kind for kind in SHOWN if kind in self.replacements.kinds] + ["converted"] * bool(self.converted)


@dataclass
class Offer:
    """A model that can be chosen: `title` for one that has no name on the page.

    `progress` is what its opening is doing (a step, how much of it is done, of how much).
    """

    title: str
    make: Callable[[Progress], Subject]
    subject: Subject | None = None
    progress: tuple[str, int, int] = ("load", 0, 1)
    failed: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, watch: Progress = lambda step, done, total: None) -> Subject:
        """The subject, opened now if need be; `watch` gets its progress. Raises ValueError if it cannot be opened."""

        def report(step: str, done: int, total: int) -> None:
            self.progress = step, done, total
            watch(step, done, total)

        with self.lock:
            if self.subject is None:
                self.failed = None
                try:
                    self.subject = self.make(report)
                except Exception as error:  # also what a model's own code raises: the page waits for a word
                    self.failed = str(error) or type(error).__name__
                    raise ValueError(self.failed) from error
            return self.subject


def offers(
    model: str | Path | None = None, revision: str | None = None, trust: bool = False, against: str | None = None
) -> dict[str, Offer]:
    """What a page offers: the given model first, then the models of the cycle task, MiniLM, and the model of bytes.

    `model` is the folder of a run of `compare`, whose trained models are all offered, a checkpoint folder, or a
    repository on the Hub. `against` is the original of a converted model. Raises ValueError for a misspelt name, and
    for `against` without a checkpoint.
    """
    found: dict[str, Offer] = {}
    if against and (model is None or str(model) in NAMES or (Path(model) / "records.sqlite").exists()):
        raise ValueError(f"--against {against} goes with a model that querykey convert wrote, not with {model}")
    if model is not None and (Path(model) / "records.sqlite").exists():
        found |= _run_of_compare(Path(model))
    elif model is not None and str(model) in NAMES:
        found |= _builtin(str(model))
    elif model is not None:
        known_or_elsewhere(str(model))
        title = Path(model).resolve().name if Path(model).is_dir() else str(model)
        found["given"] = Offer(title, partial(_transformers, model, revision, trust, against))
    for name in NAMES:
        if name not in found and (name != "minilm" or minilm()):
            found |= _builtin(name)
    return found


def _builtin(name: str) -> dict[str, Offer]:
    """A model by its name on the page."""
    if name != "minilm":
        return {name: Offer(name, lambda progress: _native(builtin.trained(name, progress), progress))}
    return {name: Offer(name, partial(_transformers, name, None, False, None))}


def _run_of_compare(folder: Path) -> dict[str, Offer]:
    """The trained models of a run, one for each task and design whose weights were kept."""
    from querykey.study.result import read

    result = read(folder)
    found = {}
    for task in result.study.tasks:
        for design in result.study.designs_of(task):
            path = result.weights(task, design)
            if path.exists():
                found[f"run:{task}:{design}"] = Offer(f"{task} · {design}", partial(_native, path))
    if not found:
        raise ValueError(f"the run {folder} kept no trained weights; run querykey compare --out {folder} again")
    return found


def _transformers(
    place: str | Path, revision: str | None, trust: bool, against: str | None, progress: Progress
) -> Subject:
    progress("load", 0, 1)
    model, converted = open_model(place, revision, trust), None
    if original := against or recorded_original(place):
        with nullcontext() if against else suppress(ValueError):  # what config.json names may have changed
            converted = Converted.beside(open_model(original, trust_remote_code=trust), model)
    model = model if converted is None else converted.original
    progress("load", 1, 1)
    progress("sample", 0, 1)
    ids, _ = model.encode(SAMPLE, limit=512)
    replacements = Replacements.of(model, ids, WINDOW)
    purpose: Purpose = (
        "sentence" if model.trace(ids[:, :2]).logits is None else "language" if model.causal else "masked"
    )
    progress("sample", 1, 1)
    return Subject(purpose, model, ModelTokenizer(model), replacements, EXAMPLE, converted=converted)


def _native(path: Path, progress: Progress) -> Subject:
    """A model that `compare` or this page has trained."""
    trained = load(path)
    model = NativeModel(trained.model)
    tokenizer, sample = _reading(trained)
    purposes: dict[type[Tokenizer], Purpose] = {
        ByteTokenizer: "bytes",
        CycleTokenizer: "naming",
        NumberTokenizer: "numbers",
    }
    progress("sample", 0, 1)
    replacements = Replacements.of(model, sample, WINDOW)
    design = trained.model.attentions[0].design
    return Subject(
        purposes[type(tokenizer)], model, tokenizer, replacements, _example(tokenizer, trained.example), design
    )


def _reading(trained: Trained) -> tuple[Tokenizer, Tensor]:
    """How the inputs of a model's task are written, and a sample of them."""
    vocabulary, length = trained.model.embedding.num_embeddings, trained.model.length
    features = trained.example.shape[-1]
    if trained.task == "text" and vocabulary == 256:
        sample = torch.tensor(list(PYTHON.encode()))
        return ByteTokenizer(), sample[: len(sample) // length * length].view(-1, length, 1)
    numbers = NumberTokenizer(vocabulary, features, length)
    if trained.options is None or "paths" in options_of(trained.task):  # an older file, or a text that may be gone
        return numbers, trained.example
    task = make_task(trained.task, **trained.options)
    cycle = trained.task in ("cycle", "swap") and features == 3
    tokenizer = CycleTokenizer(task.options["names"], task.classes, length) if cycle else numbers
    return tokenizer, task.sample(64, torch.Generator().manual_seed(0)).inputs


def _example(tokenizer: Tokenizer, stored: Tensor) -> str:
    """A text to begin with."""
    if isinstance(tokenizer, ByteTokenizer):
        return PYTHON[:64]
    if isinstance(tokenizer, CycleTokenizer):
        rows = (stored[0] - torch.tensor([0, tokenizer.names, 2 * tokenizer.names])).tolist()
        return "  ".join(f"{chr(65 + own)}→{chr(65 + asked)} {number}" for own, asked, number in rows)
    return " ".join(",".join(map(str, row)) for row in stored[0].tolist())
