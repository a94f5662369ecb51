"""One cell: train a model and score it.

For one seed, every design sees the same data in the same order, and starts from the same values in all weights that it
has in common with the others. Choices are made on validation, and reported is the score on test: three sets.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Int
from torch import Tensor

from querykey.design import Design
from querykey.report.files import write_atomically
from querykey.study.ceilings import argmax_share
from querykey.study.config import Config
from querykey.study.plan import Cell
from querykey.tasks import Examples, Split, Task, make_task
from querykey.transformer import Transformer

CHUNK = 64  # steps whose examples are made at once
VALIDATION, TEST = 128, 1024  # examples; validation is scored at every point of the curve
SCORED_AT_ONCE = 256
EXAMPLE = "example"  # the name of the example among the kept weights


@dataclass(frozen=True)
class Outcome:
    """The result of a cell. `metrics` is empty where training diverged.

    `curve` has the lists ``step``, ``loss`` (mean training loss in nats since the last point) and ``validation`` (in
    the task's metric). `metrics` has ``test`` and ``validation``; ``test@LEVEL`` for tasks with levels; ``train``, the
    score on examples of the training split after training, for tasks with data; and ``argmax`` for tasks that fix the
    related position, the share of positions at which the first head gives it the highest weight.
    """

    status: str
    metrics: dict[str, float] = field(default_factory=dict)
    curve: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0


def train(cell: Cell, weights: Path | None = None, watch: Callable[[int], None] = lambda step: None) -> Outcome:
    """Train one cell, and write its weights to the safetensors file `weights` if one is given.

    `watch` is called after each step with its number, from 1. The status is ``"diverged"`` if the loss is not finite,
    else ``"finished"``.

    Raises:
        ValueError: if the text is not the one that the cell was planned with.
    """
    started = time.perf_counter()
    task = _make_task(cell.task.kind, json.dumps(dict(cell.task.options)))
    if task.data_hash != cell.data_hash:
        raise ValueError("the text has changed since the study began; start again, with another --out or the old text")
    model = build(cell, task).to(cell.device)
    curve, finite = _fit(model, cell, task, watch)
    metrics: dict[str, float] = {}
    if finite:
        test = _draw(task, cell, TEST, "test", "test")
        metrics = _metrics(model, cell, task, test) | {"validation": curve["validation"][-1]}
        if weights is not None:
            _save(model, cell, task, test.inputs[:1], weights)
    finished = finite and all(map(math.isfinite, metrics.values()))
    seconds = time.perf_counter() - started
    return Outcome("finished" if finished else "diverged", metrics if finished else {}, curve, seconds)


def build(cell: Cell, task: Task) -> Transformer:
    """The untrained model of a cell."""
    return _build(task.vocabulary, task.classes, task.length, task.causal, cell.task.config, cell.design, cell.seed)


class Trained(NamedTuple):
    """A model that `train` kept, with an example of its inputs and the task that it was trained on.

    `options` are those that `make_task` takes for the same task, except where its text is. None in files of an older
    version.
    """

    model: Transformer
    example: Int[Tensor, "1 length features"]
    task: str
    options: dict[str, Any] | None


def load(weights: Path) -> Trained:
    """The trained model that `train` kept in this file."""
    from safetensors import safe_open

    with safe_open(weights, "pt") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    stored = json.loads(metadata["model"])
    example = tensors.pop(EXAMPLE)
    config = Config(**stored.pop("config", None) or stored.pop("setting"))  # in files of an older version
    model = _build(**stored | {"config": config, "design": Design.parse(stored["design"])})
    model.load_state_dict(tensors)
    options = json.loads(metadata["options"]) if "options" in metadata else None
    return Trained(model.eval(), example, metadata["task"], options)


@torch.no_grad()
def score(model: Transformer, task: Task, examples: Examples, split: Split) -> dict[str, float]:
    """The task's metric under the key ``""``, and under ``"@LEVEL"`` for each level that the examples have."""
    model.eval()
    parts = [
        task.score(model(part.inputs)[part.counted].float(), part.targets[part.counted], split)
        for part in _parts(examples, SCORED_AT_ONCE)
    ]
    model.train()
    values = torch.cat(parts)
    found = {"": float(values.mean())}
    if examples.level is not None:
        levels = examples.level[examples.counted]
        for level in levels.unique().tolist():
            found[f"@{level}"] = float(values[levels == level].mean())
    return found


def learning_rate(step: int, config: Config) -> float:
    """Share of the peak rate before a step, counted from 0: up over the warm-up, then down to 0, in straight lines."""
    warmup = max(1, round(config.warmup * config.steps))
    if step < warmup:
        return (step + 1) / warmup
    return max(0.0, (config.steps - step) / max(1, config.steps - warmup))


def generator(task: str, seed: int, use: str) -> torch.Generator:
    """Randomness for one use of one seed of one task, the same for every design."""
    digest = hashlib.sha256(f"{task} {seed} {use}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)


def _fit(
    model: Transformer, cell: Cell, task: Task, watch: Callable[[int], None]
) -> tuple[dict[str, list[float]], bool]:
    """Train the model; its curve, and whether the loss stayed finite."""
    config = cell.task.config
    validation = _draw(task, cell, VALIDATION, "validation", "validation")
    curve: dict[str, list[float]] = {"step": [], "loss": [], "validation": []}
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, betas=(0.9, 0.98), fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: learning_rate(step, config))
    forward = torch.compile(model) if config.compile else model
    losses: list[Tensor] = []
    marks = {round((n + 1) * config.steps / config.evaluations) for n in range(config.evaluations)}
    for step, examples in enumerate(_batches(task, cell), start=1):
        with _precision(cell):
            loss = _loss(forward, examples)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
        losses.append(loss.detach())
        watch(step)
        if step in marks:
            mean = float(torch.stack(losses).mean())
            if not math.isfinite(mean):
                return curve, False
            curve["step"].append(step)
            curve["loss"].append(mean)
            with _precision(cell):
                curve["validation"].append(score(model, task, validation, "validation")[""])
            losses.clear()
    return curve, True


def _metrics(model: Transformer, cell: Cell, task: Task, test: Examples) -> dict[str, float]:
    """What `Outcome` has of a trained model, but for validation."""
    with _precision(cell):
        metrics = {f"test{level}": value for level, value in score(model, task, test, "test").items()}
        if task.data_hash is not None:  # its training examples can be learned by heart
            again = _draw(task, cell, TEST, "train again", "train")
            metrics["train"] = score(model, task, again, "train")[""]
    related = task.related_positions(test.inputs)
    if related is not None:
        metrics["argmax"] = argmax_share(model, test.inputs, related)
    return metrics


def _precision(cell: Cell) -> torch.autocast:
    """The context of a forward pass."""
    return torch.autocast(torch.device(cell.device).type, torch.bfloat16, enabled=cell.task.config.bf16)


@lru_cache(maxsize=4)
def _make_task(name: str, options: str) -> Task:
    return make_task(name, **json.loads(options))


def _batches(task: Task, cell: Cell) -> Iterator[Examples]:
    config, source = cell.task.config, generator(task.name, cell.seed, "train")
    for start in range(0, config.steps, CHUNK):
        count = min(CHUNK, config.steps - start)
        yield from _parts(_to(task.sample(count * config.batch, source, "train"), cell.device), config.batch)


def _draw(task: Task, cell: Cell, count: int, use: str, split: Split) -> Examples:
    """Examples for one use of the cell's seed, on its device."""
    return _to(task.sample(count, generator(task.name, cell.seed, use), split), cell.device)


def _parts(examples: Examples, size: int) -> Iterator[Examples]:
    for start in range(0, len(examples.inputs), size):
        stop = start + size
        yield _each(examples, lambda column: column[start:stop])  # noqa: B023 - called before the next round


def _to(examples: Examples, device: str) -> Examples:
    return _each(examples, lambda column: column.to(device))


def _each(examples: Examples, change: Callable[[Tensor], Tensor]) -> Examples:
    inputs, targets, counted, level = examples
    return Examples(change(inputs), change(targets), change(counted), None if level is None else change(level))


def _loss(forward: Callable[[Tensor], Tensor], examples: Examples) -> Tensor:
    """Mean cross-entropy in nats over what counts."""
    targets = examples.targets.masked_fill(~examples.counted, -100)
    return F.cross_entropy(forward(examples.inputs).flatten(0, 1).float(), targets.flatten(), ignore_index=-100)


def _build(
    vocabulary: int, classes: int, length: int, causal: bool, config: Config, design: Design, seed: int = 0
) -> Transformer:
    return Transformer(
        vocabulary,
        classes,
        length,
        dim=config.dim,
        heads=config.heads,
        layers=config.layers,
        design=design,
        head_dim=config.head_dim,
        mlp=config.mlp,
        causal=causal,
        positions=config.positions or "none",
        dropout=config.dropout,
        seed=seed,
    )


def _save(model: Transformer, cell: Cell, task: Task, example: Tensor, path: Path) -> None:
    """Weights and an example to look at; whole or not at all: a killed run leaves no torn file under this name."""
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    sizes = {"vocabulary": task.vocabulary, "classes": task.classes, "length": task.length, "causal": task.causal}
    kept = {**sizes, "config": asdict(cell.task.config), "design": str(cell.design)}
    metadata = {"model": json.dumps(kept), "task": cell.task.kind, "options": json.dumps(cell.plain["options"])}
    tensors = {name: tensor.contiguous() for name, tensor in model.state_dict().items()} | {EXAMPLE: example}
    try:
        with write_atomically(path) as partial:
            save_file(tensors, partial, metadata=metadata)
    except SafetensorError as error:
        raise OSError(f"the weights cannot be written to {path}: {error}") from None
