"""Sequence to sequence of the same length, in an encoder: one answer for every position of random tokens.

`Reverse`, `Sort`, `Copy` and `Sub` are those of Kayyam et al. (2026, arXiv 2606.04032), with ten tokens and lengths 16,
64 and 128 in their table. `Histogram` is that of Friedman et al. (2023, arXiv 2306.01128).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor
from torch.distributions import Binomial

from querykey.tasks.task import Examples, Split, Task, check_size


@dataclass(frozen=True)
class _Sequence(Task):
    """Uniform independent tokens; every position is counted."""

    length: int = 16
    vocabulary: int = 10

    positions = "learned"

    def __post_init__(self) -> None:
        check_size(self.name, "length", self.length, least=2)
        check_size(self.name, "vocabulary", self.vocabulary, least=2)

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` examples, drawn from `generator` alone."""
        tokens = torch.randint(self.vocabulary, (count, self.length), generator=generator)
        return Examples(tokens.unsqueeze(-1), self._answer(tokens), torch.ones_like(tokens, dtype=torch.bool))

    @abstractmethod
    def _answer(self, tokens: Int[Tensor, "count length"]) -> Int[Tensor, "count length"]: ...


@dataclass(frozen=True)
class Reverse(_Sequence):
    """The sequence backwards: positions in pairs that must read each other.

        input     3   1   4   1   5
        target    5   1   4   1   3

    `chance` is 1/vocabulary and `best` 1. By default 16 positions, learned, and 10 tokens.
    """

    name = "reverse"

    def _answer(self, tokens: Int[Tensor, "count length"]) -> Int[Tensor, "count length"]:
        return tokens.flip(1)


@dataclass(frozen=True)
class Sort(_Sequence):
    """The same tokens in ascending order.

        input     3   1   4   1   5
        target    1   1   3   4   5

    `chance` is above 1/vocabulary, for the first positions are likely low and the last high: the best fixed answer at
    rank i is the mode of the i-th order statistic, P(X_(i) ≤ v) = P(Binomial(length, (v+1)/vocabulary) ≥ i), and
    `chance` is the mean of its probability over i. `best` is 1. Defaults as in `Reverse`.
    """

    name = "sort"

    @property
    def chance(self) -> float:
        """Mean over the ranks of the probability of the likeliest token."""
        at_most = [_binomial_tail(self.length, value / self.vocabulary) for value in range(1, self.vocabulary)]
        never, always = torch.zeros(self.length).double(), torch.ones(self.length).double()
        return float(torch.stack([never, *at_most, always]).diff(dim=0).max(dim=0).values.mean())

    def _answer(self, tokens: Int[Tensor, "count length"]) -> Int[Tensor, "count length"]:
        return tokens.sort(dim=1).values


@dataclass(frozen=True)
class Histogram(_Sequence):
    """How often the position's own token stands in the sequence, from 1 to length; class 0 is never the target.

        input     3   1   4   1   5
        target    1   2   1   2   1

    `chance` is the probability of the likeliest count, 1 + Binomial(length − 1, 1/vocabulary). `best` is 1. It needs
    no positional information. By default 16 positions and 10 tokens.
    """

    name = "histogram"
    positions = "none"  # type: ignore[assignment]

    @property
    def classes(self) -> int:
        """Counts from 0 to length."""
        return self.length + 1

    @property
    def chance(self) -> float:
        """Probability of the likeliest count."""
        others = Binomial(self.length - 1, torch.tensor(1 / self.vocabulary, dtype=torch.float64))
        return float(others.log_prob(torch.arange(self.length).double()).exp().max())

    def _answer(self, tokens: Int[Tensor, "count length"]) -> Int[Tensor, "count length"]:
        counts = torch.zeros(len(tokens), self.vocabulary, dtype=torch.int64)
        return counts.scatter_add_(1, tokens, torch.ones_like(tokens)).gather(1, tokens)


@dataclass(frozen=True)
class Copy(_Sequence):
    """The sequence itself: what attention must not get in the way of.

        input     3   1   4   1   5
        target    3   1   4   1   5

    `chance` is 1/vocabulary and `best` 1. Defaults as in `Reverse`.
    """

    name = "copy"

    def _answer(self, tokens: Int[Tensor, "count length"]) -> Int[Tensor, "count length"]:
        return tokens.clone()


@dataclass(frozen=True)
class Sub(_Sequence):
    """One fixed substitution, vocabulary − 1 − x: a table of tokens, where no position needs another.

        input     3   1   4   1   5
        target    6   8   5   8   4

    `chance` is 1/vocabulary and `best` 1. Defaults as in `Reverse`.
    """

    name = "sub"

    def _answer(self, tokens: Int[Tensor, "count length"]) -> Int[Tensor, "count length"]:
        return self.vocabulary - 1 - tokens


def _binomial_tail(n: int, p: float) -> Tensor:
    """P(Binomial(n, p) ≥ i) for i = 1 .. n."""
    pmf: Tensor = Binomial(n, torch.tensor(p, dtype=torch.float64)).log_prob(torch.arange(n + 1).double()).exp()
    return pmf.flip(0).cumsum(0).flip(0)[1:]
