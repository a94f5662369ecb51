"""Attention maps out of the weights that a study kept: who attends to whom in one head, for each design of a task."""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from torch import Tensor

from querykey.machine import one_thread
from querykey.models.native import trace
from querykey.study.result import Result
from querykey.study.training import load
from querykey.transformer import Transformer

SHOWN = 32  # positions
Maps = Float[np.ndarray, "layers heads queries keys"]


class HeadMaps(NamedTuple):
    """One head's attention weights on one example, rows are queries, for each design whose weights are there.

    `distance` says how far they lie apart. `names` are the positions' bytes where the example is text, `missing` the
    designs without weights.
    """

    layer: int
    head: int
    layers: int
    heads: int
    distance: float
    maps: dict[str, Float[np.ndarray, "queries keys"]]
    names: list[str] | None
    length: int
    missing: list[str]


def head_maps(result: Result, task: str, designs: Sequence[str]) -> HeadMaps | None:
    """The head whose maps differ most among the designs; None where no weights were kept.

    The rule: for two designs, the total variation distance between what a query attends to in one and in the other,
    averaged over the queries; of this the mean over all pairs of designs; the (layer, head) with the highest mean.
    """
    kept = {design: one for design in designs if (one := _load(result.weights(task, design))) is not None}
    if not kept:
        return None
    with one_thread():
        found = {design: attention_maps(model, _shown(model, inputs)) for design, (model, inputs) in kept.items()}
    model, example = next(iter(kept.values()))
    layer, head, distance = _most_different(found)
    layers, heads = next(iter(found.values())).shape[:2]
    maps = {design: weights[layer, head, :SHOWN, :SHOWN] for design, weights in found.items()}
    of_bytes = result.study.tasks[task]["metric"] == "bits per byte" and model.embedding.num_embeddings == 256
    names = _byte_names(example[0, :SHOWN, 0].tolist()) if of_bytes else None
    missing = [design for design in designs if design not in found]
    return HeadMaps(layer, head, layers, heads, distance, maps, names, example.shape[1], missing)


def attention_maps(model: Transformer, inputs: Int[Tensor, "1 length features"]) -> Maps:
    """The attention weights of every head of the model on one example."""
    return torch.stack([layer.weights[0] for layer in trace(model, inputs).layers]).numpy()


def _load(weights: Path) -> tuple[Transformer, Tensor] | None:
    """The kept model and example; None if there are none, torn ones, or those of another version."""
    try:
        return load(weights)[:2]
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, RuntimeError):
        return None


def _shown(model: Transformer, inputs: Tensor) -> Tensor:
    """All that the map needs: what comes later changes nothing for a causal model, but costs memory for all pairs."""
    return inputs[:, :SHOWN] if model.attentions[0].causal else inputs


def _most_different(found: Mapping[str, Maps]) -> tuple[int, int, float]:
    """(layer, head, mean distance); the first head where there is but one design."""
    pairs = [np.abs(a - b).sum(-1).mean(-1) / 2 for a, b in combinations(found.values(), 2)]
    if not pairs:
        return 0, 0, 0.0
    distances = np.mean(pairs, axis=0)
    layer, head = np.unravel_index(distances.argmax(), distances.shape)
    return int(layer), int(head), float(distances.max())


def _byte_names(tokens: Sequence[int]) -> list[str]:
    """A sign for each byte. A character of several bytes stands at its last one, and its other bytes have none."""
    decoder = getincrementaldecoder("utf-8")("replace")
    return ["".join(map(_sign, decoder.decode(bytes([byte])))) for byte in tokens]


def _sign(character: str) -> str:
    """The character, an open box for a space, an arrow for a new line, a dot for what has no sign."""
    return {" ": "␣", "\n": "⏎", "\t": "⇥", "\ufffd": "·"}.get(character, character if character.isprintable() else "·")
