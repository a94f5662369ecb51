"""Inspecting a checkpoint: its query and key weights, layer by layer, and what is found in them.

from querykey import inspect
heads = inspect("folder or repository")
heads.groupby("layer")[["symmetry", "tied_share"]].median()
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import nn

from querykey.checkpoint import Checkpoint, open_checkpoint, open_module
from querykey.checkpoint.files import first_line
from querykey.inspection.changes import changes
from querykey.inspection.data import Data, Reading, on_text
from querykey.inspection.forecast import Per
from querykey.inspection.measures import Nulls, Spectrum, measure_cross, measure_layer
from querykey.inspection.text import read_text
from querykey.models.huggingface import open_model


class Progress(NamedTuple):
    """A step that has been done: of what, and of how many."""

    what: str
    done: int
    total: int


Watch = Callable[[Progress], None]


@dataclass(frozen=True, eq=False)
class Inspection:
    """All that was found in one checkpoint: a row of `heads` for every head, and one of `spectra` for each of them.

    `random` is the spectrum of a random head of every shape (dim, head_dim) that there is, and `skipped` names the
    layers that could not be followed, each with the reason. `data` is what a text has shown, if there was one. `base`
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
    skipped: tuple[tuple[str, str], ...]
    bytes_read: int
    bytes_in_all: int
    seconds: float

    @property
    def name(self) -> str:
        """The last two parts of where it is, which tell two checkpoints apart."""
        return "/".join(Path(self.place).parts[-2:])


def inspect(
    model: str | Path | nn.Module,
    *,
    inputs: dict[str, Any] | None = None,
    text: str | Path | None = None,
    calibrate: str | Path | None = None,
    forecast: Per = "all",
    context: int = Reading.context,
    pieces: int = Reading.pieces,
    layers: Collection[int] | None = None,
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> pd.DataFrame:
    """What the heads of a trained checkpoint do with W_Q and W_K: one row per head.

    Args:
        model: a folder with config.json and safetensors or pytorch_model.bin, or a repository on the Hub, of which only
            the bytes that are needed are read; or a module in memory.
        inputs: of the `forward` of a module in memory that is not a model of transformers: a batch, by name.
        text: a file of text for the model to read; adds columns on how heads behave and what sharing costs.
        calibrate: another file of text, to fit shared heads to; without it, the first half of `text` is for that, and
            only the second half is measured on.
        forecast: with a text, replace all heads at once ("all"), also layer by layer or head by head, which takes
            longer, or nothing ("none").
        context: tokens in a piece of text.
        pieces: how many pieces of each text the model reads.
        layers: the model's own numbers of the layers to inspect and to replace; None for all.
        device: what the model reads the text on, such as "cuda".
        revision: branch, tag or commit of a repository.
        trust_remote_code: run code that the checkpoint brings along; without it such a checkpoint is refused.

    Returns:
        Columns ``layer``, ``head``, ``kv_head``, then every measure of `BilinearForm` with its null: ``symmetry``,
        ``symmetry_null``, ``symmetry_null_sd``, ``tied_share`` and so on. ``symmetry`` is that of W_Q W_Kᵀ itself for
        every model; ``symmetry_rotary``, ``tied_share_rotary`` and ``distance_rotary`` are the distance-aware ones, NaN
        for heads whose positions do not rotate. Biases stay out of all of them: ``query_bias`` and ``key_bias`` are
        their norms, ``bias_share`` is their part of the scores. ``qk_norm`` says that a normalisation of queries or
        keys is folded in, but for its division by the rms. With a text also ``symmetry_data``, ``tied_share_data`` and
        so on, in the metric of the head's own queries and keys; ``key_only_share``; ``entropy``, ``self_mass`` and the
        others of `behaviour`; and ``layer_cosine_tied`` …, or ``cosine_tied`` …, of `forecast`. For a folder with a
        LoRA adapter all that is of its base with the adapter, and ``change``, ``change_symmetry`` and so on are of what
        the adapter changes in W_Q W_Kᵀ.

    Raises:
        ValueError: for a checkpoint that is damaged, unknown, or has no head that can be followed; for a text that is
            not there, no text, or too short.
        MissingExtra: where the extra ``inspect`` is not installed.
    """
    found = examine(
        model,
        inputs=inputs,
        text=text,
        calibrate=calibrate,
        forecast=forecast,
        context=context,
        pieces=pieces,
        layers=layers,
        device=device,
        revision=revision,
        trust_remote_code=trust_remote_code,
    )
    return found.heads


def examine(
    model: str | Path | nn.Module,
    *,
    inputs: dict[str, Any] | None = None,
    text: str | Path | None = None,
    calibrate: str | Path | None = None,
    forecast: Per = "all",
    context: int = Reading.context,
    pieces: int = Reading.pieces,
    layers: Collection[int] | None = None,
    device: str = "cpu",
    revision: str | None = None,
    trust_remote_code: bool = False,
    watch: Watch = lambda _: None,
) -> Inspection:
    """As `inspect`, with spectra and the circumstances; `watch` is called after each step."""
    start = time.perf_counter()
    if isinstance(model, nn.Module) and text is not None:
        raise ValueError("a module in memory has no tokenizer; save it with one, and give the folder to read a text")
    _check(device)
    reading = _reading(text, calibrate, context, pieces)
    if isinstance(model, nn.Module):
        checkpoint = open_module(model, inputs)
    else:
        checkpoint = open_checkpoint(model, revision, trust_remote_code)
    checkpoint = checkpoint if layers is None else checkpoint.only(layers)
    nulls, window = Nulls(), _window(checkpoint)
    frames: list[pd.DataFrame] = []
    spectra: list[tuple[np.ndarray, np.ndarray]] = []
    before = checkpoint.before()
    own, total = len(checkpoint.layers), len(checkpoint.layers) + len(checkpoint.cross)
    for number in range(total):
        weights = checkpoint.read(number, dtype=None)
        frame, found = measure_layer(weights, nulls, window) if number < own else measure_cross(weights, nulls)
        if before and number < own:
            frame = frame.assign(**changes(before.read(number), weights))
        frames.append(frame)
        spectra += zip(*found, strict=True)
        watch(Progress("layers", number + 1, total))
    heads, bytes_read = pd.concat(frames, ignore_index=True), checkpoint.bytes_read
    data = None
    if reading is not None:
        watch(Progress("loading the model", 0, 1))
        running = open_model(checkpoint, trust_remote_code=trust_remote_code, device=device)
        data = on_text(running, reading, per=forecast, window=window, watch=lambda *step: watch(Progress(*step)))
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


def _check(device: str) -> None:
    """Raise ValueError for a device that this machine, or this build of torch, does not have."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"there is no device {device!r} here ({first_line(error)}); give cpu, cuda or mps") from None


def _reading(text: str | Path | None, calibrate: str | Path | None, context: int, pieces: int) -> Reading | None:
    """What to read of which texts; None without a text."""
    least = 2 if calibrate is None else 1
    if context < 2 or pieces < least:
        raise ValueError(f"expected a context of at least 2 tokens and {least} pieces, not {context} and {pieces}")
    if text is None:
        if calibrate is not None:
            raise ValueError("a calibration text needs a text to measure on; give both")
        return None
    if calibrate is not None and Path(text).resolve() == Path(calibrate).resolve():
        raise ValueError(f"{text} is both the text and the calibration text; give two files, or the text alone")
    fit_to = None if calibrate is None else read_text(calibrate)
    return Reading(read_text(text), Path(text).name, fit_to, context, pieces)


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
