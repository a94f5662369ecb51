"""Inspecting a checkpoint: its query and key weights, layer by layer, and what is found in them.

from querykey import inspect
heads = inspect("folder or repository")
heads.groupby("layer")[["symmetry", "tied_share"]].median()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from querykey.checkpoint import Checkpoint, Reason, open_checkpoint, open_module
from querykey.checkpoint.files import first_line
from querykey.inspection.changes import changes
from querykey.inspection.data import Data, Reading, on_inputs
from querykey.inspection.images import Images
from querykey.inspection.measures import Nulls, Spectrum, measure_cross, measure_layer
from querykey.inspection.options import CONTEXT, Options
from querykey.inspection.text import Text, read_text
from querykey.machine import at_once
from querykey.models.huggingface import open_model


class Progress(NamedTuple):
    """A step that has been done: of what, and of how many."""

    what: str
    done: int
    total: int


Watch = Callable[[Progress], None]


LARGE = 2**24  # numbers in the query matrices of the layers that are measured side by side


@dataclass(frozen=True, eq=False)
class Inspection:
    """All that was found in one checkpoint: a row of `heads` for every head, and one of `spectra` for each of them.

    `random` is the spectrum of a random head of every shape (dim, head_dim) that there is, and `skipped` names the
    layers that could not be followed, each with the reason. `data` is what a text or images have shown, if any. `base`
    is where the base of an adapter is.
    """

    place: str
    revision: str | None
    base: str | None
    kind: str
    heads: pd.DataFrame
    spectra: list[tuple[np.ndarray, np.ndarray]]
    random: dict[tuple[int, int], Spectrum]
    window: int | None
    data: Data | None
    skipped: tuple[tuple[str, Reason], ...]
    bytes_read: int
    bytes_in_all: int
    seconds: float

    @property
    def name(self) -> str:
        """The last two parts of where it is, which tell two checkpoints apart."""
        return "/".join(Path(self.place).parts[-2:])


def inspect(model: str | Path | nn.Module, **options: Any) -> pd.DataFrame:
    """What the heads of a trained checkpoint do with W_Q and W_K: one row per head.

    Args:
        model: a folder with config.json and safetensors or pytorch_model.bin, or a repository on the Hub, of which only
            the bytes that are needed are read; or a module in memory.
        options: fields of `Options`, such as ``text="notes.txt"``, ``forecast="layer"`` or ``layers=[0, 1]``. A module
            in memory that is not a model of transformers takes ``inputs``: a batch for its `forward`, by name.

    Returns:
        Columns ``layer``, ``head``, ``kv_head``, then every measure of `BilinearForm` with its null: ``symmetry``,
        ``symmetry_null``, ``symmetry_null_sd``, ``tied_share`` and so on. ``symmetry`` is that of W_Q W_Kᵀ itself for
        every model; ``symmetry_rotary``, ``tied_share_rotary`` and ``distance_rotary`` are the distance-aware ones, NaN
        for heads whose positions do not rotate. Biases stay out of all of them: ``query_bias`` and ``key_bias`` are
        their norms, ``bias_share`` is their part of the scores. ``qk_norm`` says that a normalisation of queries or
        keys is folded in, but for its division by the rms. With a text or images also ``symmetry_data``,
        ``tied_share_data`` and so on, in the metric of the head's own queries and keys; ``key_only_share``;
        ``entropy``, ``self_mass`` and the others of `behaviour`; and ``layer_cosine_tied`` …, or ``cosine_tied`` …, of
        `forecast`. For a folder with a LoRA adapter all that is of its base with the adapter, and ``change``,
        ``change_symmetry`` and so on are of what the adapter changes in W_Q W_Kᵀ.

    Raises:
        ValueError: for a checkpoint that is damaged, unknown, or has no head that can be followed; for options that
            exclude each other; for a text or images that are not there, damaged, too few, or not what the model reads.
        MissingExtra: where the extra ``inspect`` is not installed.
    """
    return examine(model, **options).heads


def examine(model: str | Path | nn.Module, *, watch: Watch = lambda _: None, **options: Any) -> Inspection:
    """As `inspect`, with spectra and the circumstances; `watch` is called after each step."""
    start, asked = time.perf_counter(), Options(**options)
    _check(asked.device)
    checkpoint, reading = _opened(model, asked)
    checkpoint = checkpoint if asked.layers is None else checkpoint.only(asked.layers)
    nulls, window = Nulls(), _window(checkpoint)
    frames: list[pd.DataFrame] = []
    spectra: list[tuple[np.ndarray, np.ndarray]] = []
    before = checkpoint.before()
    reading_files = Lock()
    own, total = len(checkpoint.layers), len(checkpoint.layers) + len(checkpoint.cross)

    def measured(number: int) -> tuple[pd.DataFrame, Spectrum]:
        with reading_files:
            weights = checkpoint.read(number, dtype=None)
            earlier = before.read(number) if before and number < own else None
        frame, found = measure_layer(weights, nulls, window) if number < own else measure_cross(weights, nulls)
        return frame if earlier is None else frame.assign(**changes(earlier, weights)), found

    done = at_once(measured, range(total), _at_a_time(checkpoint))
    for number, (frame, found) in enumerate(done, start=1):
        frames.append(frame)
        spectra += zip(*found, strict=True)
        watch(Progress("layers", number, total))
    heads, bytes_read = pd.concat(frames, ignore_index=True), checkpoint.bytes_read
    data = None
    if reading is not None:
        watch(Progress("loading the model", 0, 1))
        running = open_model(checkpoint, None, asked.trust_remote_code, device=asked.device, reads=reading.reads)
        steps = {"watch": lambda *step: watch(Progress(*step))}
        data = on_inputs(running, reading, per=asked.forecast, window=window, **steps)
        heads = heads.merge(data.heads, on=["module", "head"], how="left")
    shapes = set(zip(heads["dim"], heads["head_dim"], strict=True))
    return Inspection(
        place=checkpoint.place,
        revision=checkpoint.revision,
        base=before.place if before else None,
        kind=_kind(checkpoint),
        heads=heads,
        spectra=spectra,
        random={shape: nulls.spectrum(*shape) for shape in sorted(shapes)},
        window=window,
        data=data,
        skipped=checkpoint.skipped,
        bytes_read=bytes_read,
        bytes_in_all=checkpoint.size,
        seconds=time.perf_counter() - start,
    )


def _at_a_time(checkpoint: Checkpoint) -> int:
    """How many layers to measure side by side, so that their weights stay small."""
    widest = max(layer.query.heads * layer.query.size for layer in (*checkpoint.layers, *checkpoint.cross))
    return max(1, LARGE // widest**2)


def _check(device: str) -> None:
    """Raise ValueError for a device that this machine, or this build of torch, does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {device!r} here ({first_line(error)}); give cpu, cuda or mps") from None


def _opened(model: str | Path | nn.Module, asked: Options) -> tuple[Checkpoint, Reading | None]:
    """The checkpoint, and what the model is to read, if anything; both have been checked, so that errors are early."""
    if isinstance(model, nn.Module):
        if asked.text is not None:
            raise ValueError(
                "a module in memory has no tokenizer; save it with one and give the folder, to read a text"
            )
        if not isinstance(asked.inputs, Mapping | None):
            raise ValueError("a module in memory takes a batch by name; save it and give the folder, to read images")
        return open_module(model, None if asked.inputs is None else dict(asked.inputs)), None
    reading = _reading(asked)
    checkpoint = open_checkpoint(model, asked.revision, asked.trust_remote_code, variant=asked.variant)
    if reading is not None:
        reading.check(checkpoint)
    return checkpoint, reading


def _reading(asked: Options) -> Reading | None:
    """What to read of which text or images; None without them."""
    if isinstance(asked.inputs, Mapping):
        raise ValueError("a batch by name is for a module in memory; a checkpoint takes a folder of images as inputs")
    if asked.inputs is not None:
        return Images(asked.inputs, asked.calibrate, asked.pieces)
    if asked.text is None:
        return None
    fit_to = None if asked.calibrate is None else read_text(asked.calibrate)
    context = CONTEXT if asked.context is None else asked.context
    return Text(read_text(asked.text), Path(asked.text).name, fit_to, context, asked.pieces)


def _window(checkpoint: Checkpoint) -> int | None:
    """The distances that the model was made for, where its configuration tells."""
    if not hasattr(checkpoint.config, "get_text_config"):  # a module in memory
        return None
    length = getattr(checkpoint.config.get_text_config(), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def _kind(checkpoint: Checkpoint) -> str:
    """The type of a model, and its design where `querykey convert` or `querykey.share` has changed it."""
    config = checkpoint.config
    section = getattr(config, "querykey", None) or {}
    kind = str(section.get("model_type") or getattr(config, "model_type", checkpoint.place))
    return f"{kind}, {section['design']}" if "design" in section else kind
