"""N-gram models by counting, with Witten-Bell smoothing: what a trained model must beat.

    P_k(w | c) = (count(c, w) + kinds(c) P_{k-1}(w | c')) / (count(c) + kinds(c)),    P_0 = 1 / classes

c holds the k − 1 nearest tokens of the target, c' all of them but the farthest, and kinds(c) is the number of distinct
tokens that were seen with c. Where c was never seen, P_k = P_{k-1}. (Witten and Bell 1991; Chen and Goodman 1999 find
it close to the best smoothing for large counts, and it has no constant to tune.)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64, Integer

from querykey.tasks.task import Examples

ORDERS = {"unigram": 1, "bigram": 2, "trigram": 3, "5-gram": 5}


class Events(NamedTuple):
    """Targets with the tokens around them: `context[k]` is the (k + 1)-th nearest, −1 beyond the window."""

    target: Integer[np.ndarray, " events"]
    context: Integer[np.ndarray, "order events"]

    @classmethod
    def of(cls, parts: Iterable[Examples], offsets: Sequence[int]) -> Events:
        """The counted targets of examples, with the inputs at these offsets from them, the nearest first."""
        found = [_events(examples, offsets) for examples in parts]
        return cls(*(np.concatenate(column, axis=-1) for column in zip(*found, strict=True)))


def bits(read: Events, scored: Events, classes: int) -> list[float]:
    """Mean bits per target of `scored`, of the n-gram models 1, 2, … that count `read`."""
    return [float(-np.log2(p).mean()) for p in probabilities(read, scored, classes)]


def probabilities(read: Events, scored: Events, classes: int) -> Iterator[Float64[np.ndarray, " scored"]]:
    """What each order gives the targets of `scored`. One order is counted at a time, so that memory stays small."""
    p = np.full(len(scored.target), 1 / classes)
    here, there = np.zeros(len(read.target), int), np.zeros(len(p), int)  # numbers of contexts; −1 if never seen
    base = 2 + int(max(read.context.max(initial=0), scored.context.max(initial=0)))  # tokens, and −1
    for order in range(len(read.context) + 1):
        if order:
            table, here = np.unique(here * base + read.context[order - 1] + 1, return_inverse=True)
            there = np.where(there < 0, -1, _find(table, there * base + scored.context[order - 1] + 1))
        pairs, counts = np.unique(here * classes + read.target, return_counts=True)
        total, kinds = np.bincount(pairs // classes, counts), np.bincount(pairs // classes)
        at = _find(pairs, there * classes + scored.target)
        count = np.where(at < 0, 0, counts[at])
        p = np.where(there < 0, p, (count + kinds[there] * p) / (total[there] + kinds[there]))
        yield p


def _events(examples: Examples, offsets: Sequence[int]) -> Events:
    tokens, counted = examples.inputs[..., 0].numpy(), examples.counted.numpy()
    before, after, width = max(0, -min(offsets)), max(0, *offsets), tokens.shape[1]
    padded = np.pad(tokens, ((0, 0), (before, after)), constant_values=-1)
    context = [padded[:, before + offset : before + offset + width][counted] for offset in offsets]
    small = np.int16 if tokens.max() < 2**15 else np.int32  # eight bytes for each token of a corpus would be too many
    return Events(examples.targets.numpy()[counted].astype(np.int32), np.stack(context).astype(small))


def _find(table: Int64[np.ndarray, " rows"], keys: Int64[np.ndarray, " keys"]) -> Int64[np.ndarray, " keys"]:
    """The row of each key in a sorted table, −1 where it is not there."""
    row = np.searchsorted(table, keys).clip(max=len(table) - 1)
    return np.where(table[row] == keys, row, -1)
