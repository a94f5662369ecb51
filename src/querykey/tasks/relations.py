"""Relations between positions: which position must attend to which, and nothing else.

`Cycle` and `Swap` say in their input who names whom, `Shift` means the next position, and in `Relation` tokens are
related once and for all; what a single head can express of that, `querykey.tasks.ceiling` tells. A head whose
queries and keys share one matrix scores i for j exactly as j for i, which swapping partners can live with and a
directed cycle or a shift cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from querykey.tasks.ceiling import Kind, cycle_length
from querykey.tasks.task import Examples, Positions, Split, check_choice, check_size, distinct, permutations


@dataclass(frozen=True)
class _Naming:
    """Positions in groups of `group`; each names the next of its group, and the last the first.

    With several `relations` there are as many groupings, each with names of its own, and a position names the next
    of its group in one of them, which is drawn.
    """

    name: ClassVar[str]
    group: ClassVar[int]

    length: int = 12
    names: int = 12
    payloads: int = 8
    relations: int = 1

    causal: ClassVar[bool] = False
    positions: ClassVar[Positions] = "none"
    metric: ClassVar[Literal["accuracy"]] = "accuracy"
    best: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        _check_groups(self.name, self.length, self.group)
        check_size(self.name, "names", self.names, least=self.length)  # each position needs its own
        check_size(self.name, "payloads", self.payloads, least=2)
        check_size(self.name, "relations", self.relations, least=1)

    @property
    def features(self) -> int:
        """A name for each relation, a pointer and a payload."""
        return self.relations + 2

    @property
    def vocabulary(self) -> int:
        """Names, then names as pointers, then payloads: disjoint ranges, the first two with a part per relation."""
        return 2 * self.relations * self.names + self.payloads

    @property
    def classes(self) -> int:
        """One per payload."""
        return self.payloads

    @property
    def chance(self) -> float:
        """1/payloads: the target is the payload of another position, drawn uniformly and on its own."""
        return 1 / self.payloads

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` examples, drawn from `generator` alone; every split has the same distribution."""
        drawn = [self._grouping(count, generator) for _ in range(self.relations)]
        payloads = torch.randint(self.payloads, (count, self.length), generator=generator)
        names = [relation * self.names + own for relation, (_, own) in enumerate(drawn)]
        pointers = [own.gather(1, named) for own, (named, _) in zip(names, drawn, strict=True)]
        named, pointer = drawn[0][0], pointers[0]
        if self.relations > 1:
            chosen = torch.randint(self.relations, (1, count, self.length), generator=generator)
            named = torch.stack([one for one, _ in drawn]).gather(0, chosen)[0]
            pointer = torch.stack(pointers).gather(0, chosen)[0]
        several = self.relations * self.names
        return Examples(
            inputs=torch.stack([*names, several + pointer, 2 * several + payloads], dim=-1),
            targets=payloads.gather(1, named),
            counted=torch.ones(count, self.length, dtype=torch.bool),
        )

    def _grouping(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The position that each position names, and the name of each, both (count, length)."""
        place = permutations(count, self.length, generator)  # place[k]: the position of the k-th member
        named = torch.empty_like(place).scatter_(1, place, place[:, next_in_group(self.length, self.group)])
        return named, distinct(count, self.length, self.names, generator)


@dataclass(frozen=True)
class Cycle(_Naming):
    """Directed 3-cycles: each position names another, which does not name it back.

    A position holds three symbols, its own name, the name it points to and a payload; the target is the payload of
    the position it names. Names, cycles, payloads and the order of positions are drawn anew for each example, so
    what must be learned is to follow a name and no table of tokens helps. For example, with length = 3, names = 5
    and payloads = 4 (names 0-4, pointers 5-9, payloads 10-13):

        position      0         1         2
        own name      3         0         4
        points to     0 (5)     4 (9)     3 (8)
        payload       2 (12)    1 (11)    3 (13)
        target        1         3         2

    With several `relations` a position has a name in each and points by one of them, so that a head must know them
    all: fewer heads than relations. `chance` is 1/payloads and `best` 1, since the named position is always there. It
    has no `level`. By default 12 positions, as many names, 8 payloads, one relation, and no positional information.
    """

    name: ClassVar[str] = "cycle"
    group: ClassVar[int] = 3


@dataclass(frozen=True)
class Swap(_Naming):
    """Pairs that name each other: `Cycle` with groups of two, a relation that symmetric scores can express.

    For example, with length = 4, names = 5 and payloads = 4 (names 0-4, pointers 5-9, payloads 10-13), positions 0
    and 2, and 1 and 3, are partners:

        position      0         1         2         3
        own name      3         0         4         1
        points to     4 (9)     1 (6)     3 (8)     0 (5)
        payload       2 (12)    1 (11)    3 (13)    0 (10)
        target        3         0         2         1

    `chance` is 1/payloads and `best` 1. It has no `level`. Defaults as in `Cycle`.
    """

    name: ClassVar[str] = "swap"
    group: ClassVar[int] = 2


@dataclass(frozen=True)
class Shift:
    """The next token, inside an encoder that sees the whole sequence.

    Tokens are uniform and independent; the target at i is token i + 1, and the last position is not counted. Next is
    a directed relation of positions, which must come from `positions`, "rotary" or "learned". For example, with
    length = 5 and symbols = 16:

        input     7   2   2  15   0
        target    2   2  15   0   -

    `chance` is 1/symbols and `best` 1. It has no `level`.
    """

    name: ClassVar[str] = "shift"

    length: int = 16
    symbols: int = 16
    positions: Positions = "rotary"

    features: ClassVar[int] = 1
    causal: ClassVar[bool] = False
    metric: ClassVar[Literal["accuracy"]] = "accuracy"
    best: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_size(self.name, "length", self.length, least=2)
        check_size(self.name, "symbols", self.symbols, least=2)
        check_choice(self.name, "positions", self.positions, ("rotary", "learned"))  # without, no "next"

    @property
    def vocabulary(self) -> int:
        """The symbols."""
        return self.symbols

    @property
    def classes(self) -> int:
        """One per symbol."""
        return self.symbols

    @property
    def chance(self) -> float:
        """1/symbols: the next token is uniform."""
        return 1 / self.symbols

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` examples, drawn from `generator` alone; every split has the same distribution."""
        tokens = torch.randint(self.symbols, (count, self.length), generator=generator)
        counted = torch.ones_like(tokens, dtype=torch.bool)
        counted[:, -1] = False
        return Examples(tokens.unsqueeze(-1), tokens.roll(-1, dims=1) * counted, counted)


@dataclass(frozen=True)
class Relation:
    """One fixed relation between tokens: for one head and nothing else.

    Each sequence holds every token once, in random order and with a random payload; the target is the payload of the
    token that its own is related to, always the same: itself ("identity"), its partner ("swap"), the next of its
    three ("3-cycles") or the next of all ("n-cycle"). For example, with kind = "3-cycles", length = 6 and payloads
    = 4 (tokens 0-5, payloads 6-9; 0 → 1 → 2 → 0 and 3 → 4 → 5 → 3):

        token         4        0        2        5        1        3
        payload       1 (7)    3 (9)    0 (6)    2 (8)    2 (8)    0 (6)
        target        2        2        3        0        0        1

    `chance` is 1/payloads and `best` 1. `argmax_ceiling` bounds the share of positions at which a head of some kind
    gives its highest weight to the right one (`related_positions`). A head that reads that one alone then scores at
    most f + (1 − f)/payloads, f being the ceiling; one that mixes several, or a residual stream beside it, may get
    more. It has no `level`, and no positional information: the order does not matter, so `all_examples` gives every
    case there is.
    """

    name: ClassVar[str] = "relation"

    kind: Kind = "3-cycles"
    length: int = 6
    payloads: int = 4

    features: ClassVar[int] = 2
    causal: ClassVar[bool] = False
    positions: ClassVar[Positions] = "none"
    metric: ClassVar[Literal["accuracy"]] = "accuracy"
    best: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_choice(self.name, "kind", self.kind, get_args(Kind))
        check_size(self.name, "length", self.length, least=2)
        _check_groups(f"{self.name} of {self.kind}", self.length, cycle_length(self.kind, self.length))
        check_size(self.name, "payloads", self.payloads, least=2)

    @property
    def vocabulary(self) -> int:
        """Tokens, then payloads."""
        return self.length + self.payloads

    @property
    def classes(self) -> int:
        """One per payload."""
        return self.payloads

    @property
    def chance(self) -> float:
        """1/payloads: payloads are uniform and independent of all else."""
        return 1 / self.payloads

    @property
    def related(self) -> Int[Tensor, " length"]:
        """The token that each token is related to."""
        return next_in_group(self.length, cycle_length(self.kind, self.length))

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` examples, drawn from `generator` alone; every split has the same distribution."""
        tokens = permutations(count, self.length, generator)
        payloads = torch.randint(self.payloads, (count, self.length), generator=generator)
        return self._examples(tokens, payloads)

    def related_positions(self, inputs: Int[Tensor, "count length features"]) -> Int[Tensor, "count length"]:
        """The position that each position is to attend to: where the highest weights of a right head lie."""
        tokens = inputs[..., 0]
        return tokens.argsort(dim=1).gather(1, self.related[tokens])

    def all_examples(self) -> Examples:
        """Every assignment of payloads, once, with the tokens in ascending order.

        Raises ValueError where these are more than 2¹⁷.
        """
        count = self.payloads**self.length
        if count > 2**17:
            raise ValueError(
                f"{self.name}: {self.payloads} payloads at {self.length} positions make {count} cases, more than "
                f"{2**17}; sample them, or take fewer of either"
            )
        digit = self.payloads ** torch.arange(self.length)
        payloads = torch.arange(count)[:, None] // digit % self.payloads
        return self._examples(torch.arange(self.length).expand(count, -1), payloads)

    def _examples(self, tokens: Int[Tensor, "count length"], payloads: Int[Tensor, "count length"]) -> Examples:
        inputs = torch.stack([tokens, self.length + payloads], dim=-1)
        return Examples(
            inputs=inputs,
            targets=payloads.gather(1, self.related_positions(inputs)),
            counted=torch.ones_like(tokens, dtype=torch.bool),
        )


def next_in_group(length: int, group: int) -> Int[Tensor, " length"]:
    """Of 0 .. length-1 in groups of `group`: the next of the same group, and after the last the first."""
    member = torch.arange(length)
    return torch.where(member % group == group - 1, member - group + 1, member + 1)


def _check_groups(task: str, length: int, group: int) -> None:
    check_size(task, "length", length, least=group)
    if length % group:
        nearest = round(length / group) * group
        raise ValueError(
            f"{task}: length must divide by {group}, because positions stand in groups of {group}; got {length}, "
            f"the nearest that does is {nearest}"
        )
