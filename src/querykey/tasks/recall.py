"""Recall: find in the sequence what followed a token the last time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

import torch
from jaxtyping import Int
from torch import Tensor

from querykey.tasks.task import Examples, Positions, Split, Task, check_choice, check_size, distinct


@dataclass(frozen=True)
class Induction(Task):
    """Continue a sequence of random tokens that has begun to repeat itself (Olsson et al. 2022, arXiv 2209.11895).

    A segment of `period` distinct random tokens is repeated to the end of the sequence; its length is drawn anew
    for each example from [shortest, longest], so no fixed offset helps. The target at i is token i + 1, counted
    where token i has stood in the sequence before. For example, with length = 8 and a period of 3:

        input     5   9   2   5   9   2   5   9
        target    -   -   -   9   2   5   9   2
        level     -   -   -   2   2   2   2   2

    `level` is the distance from i back to the nearest position that holds the answer, period - 1. `chance` is
    1/vocabulary; `best` is 1, because the tokens of a segment are distinct and so one token fixes what follows. The
    model is causal: one that also sees token i + 1 would read the answer there.
    """

    name = "induction"

    length: int = 24
    vocabulary: int = 16
    shortest: int = 6
    longest: int = 12
    positions: Positions = "rotary"

    causal = True

    def __post_init__(self) -> None:
        check_size(self.name, "length", self.length, least=3)
        check_size(self.name, "longest", self.longest, least=2, most=self.length - 1)  # one answer in each example
        check_size(self.name, "shortest", self.shortest, least=2, most=self.longest)
        check_size(self.name, "vocabulary", self.vocabulary, least=self.longest)  # a segment's tokens are distinct
        check_choice(self.name, "positions", self.positions, get_args(Positions))

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` examples, drawn from `generator` alone."""
        segment = distinct(count, self.longest, self.vocabulary, generator)
        period = torch.randint(self.shortest, self.longest + 1, (count, 1), generator=generator)
        tokens = segment.gather(1, torch.arange(self.length + 1) % period)
        counted = torch.arange(self.length) >= period
        return Examples(
            inputs=tokens[:, :-1, None],
            targets=tokens[:, 1:] * counted,
            counted=counted,
            level=(period - 1) * counted,
        )


@dataclass(frozen=True)
class Recall(Task):
    """Multi-query associative recall (MQAR; Arora et al. 2023, arXiv 2312.04927): the value that went with a key.

    The sequence begins with `pairs` keys and values in turn, keys (distinct) from the lower half of the vocabulary,
    values (distinct) from the upper. Then each key comes once more, likely soon: of the slots of two positions that
    are left, number n is chosen with weight n^-0.99, without replacement. All other positions hold uniform tokens.
    The target where a key comes again is its value; nothing else is counted. For example, with length = 12,
    pairs = 2 and vocabulary = 16:

        input     3  14   5   9   5   2   3  11   0   8  15   1
        target    -   -   -   -   9   -  14   -   -   -   -   -
        level     -   -   -   -   1   -   4   -   -   -   -   -

    `level` is the distance back to the value, rounded down to a power of two. `chance` is one over the number of
    values and `best` 1, since where the pairs stand is known. No later position shows the answer, so `causal` may be
    either. By default (length, pairs, vocabulary) = (64, 4, 256); the paper has vocabulary 8192 and (length, pairs) =
    (64, 4), (128, 8) and (256, 16), with learned positions and a causal mask.
    """

    name = "recall"

    length: int = 64
    pairs: int = 4
    vocabulary: int = 256
    positions: Positions = "learned"
    causal: bool = True

    def __post_init__(self) -> None:
        check_size(self.name, "pairs", self.pairs, least=1)
        check_size(self.name, "length", self.length, least=4 * self.pairs)  # the pairs, then a slot of two for each
        check_size(self.name, "vocabulary", self.vocabulary, least=max(4, 2 * self.pairs))
        check_choice(self.name, "positions", self.positions, get_args(Positions))

    @property
    def chance(self) -> float:
        """One over the number of values."""
        return 1 / (self.vocabulary - self.vocabulary // 2)

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` examples, drawn from `generator` alone."""
        half = self.vocabulary // 2
        keys = distinct(count, self.pairs, half, generator)
        values = half + distinct(count, self.pairs, self.vocabulary - half, generator)
        tokens = torch.randint(self.vocabulary, (count, self.length), generator=generator)
        tokens[:, : 2 * self.pairs] = torch.stack([keys, values], dim=-1).flatten(1)
        place = 2 * (self.pairs + self._slots(count, generator))
        distance = place - 2 * torch.arange(self.pairs) - 1
        nothing = torch.zeros_like(tokens)
        return Examples(
            inputs=tokens.scatter_(1, place, keys).unsqueeze(-1),
            targets=nothing.scatter(1, place, values),
            counted=nothing.scatter(1, place, 1).bool(),
            level=nothing.scatter(1, place, 2 ** distance.log2().long()),
        )

    def _slots(self, count: int, generator: torch.Generator) -> Int[Tensor, "count pairs"]:
        """A slot for each key: the order of arrival of exponential clocks is that of draws without replacement."""
        number = torch.arange(1, self.length // 2 - self.pairs + 1)
        clock = torch.empty(count, len(number)).exponential_(generator=generator) * number**0.99
        return clock.topk(self.pairs, dim=1, largest=False).indices
