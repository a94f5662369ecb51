"""Relations between positions: each position must attend to one other position.

`Cycle` and `Swap` say in their input which position names which. `Shift` asks for the token at a fixed offset. In
`Relation` tokens are related once and for all; `querykey.tasks.ceiling` has what a single head can express of that. The
scores of a head whose queries and keys share one matrix are symmetric: enough to swap partners, not for a directed
cycle or a shift without a causal mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, get_args

import torch
from jaxtyping import Int
from torch import Tensor

from querykey.tasks.ceiling import Kind, cycle_length
from querykey.tasks.task import Examples, Positions, Split, Task, check_choice, check_size, distinct, permutations


@dataclass(frozen=True)
class _Naming(Task):
    """Positions in groups of `group`; each names the next of its group, and the last the first.

    With several `relations` there are as many groupings, each with names of its own, and a position names the next
    of its group in one of them, which is drawn.
    """

    group: ClassVar[int]

    length: int = 12
    names: int = 12
    payloads: int = 8
    relations: int = 1

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

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` examples, drawn from `generator` alone."""
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

    A position holds three tokens, its own name, the name it points to and a payload; the target is the payload of
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

    name = "cycle"
    group = 3


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

    name = "swap"
    group = 2


@dataclass(frozen=True)
class Shift(Task):
    """The token at a fixed offset: by default the next one, in an encoder that sees the whole sequence.

    Tokens are uniform and independent; the target at i is token i + offset, counted where there is one. This is a
    directed relation of positions, which must come from `positions`, "rotary" or "learned". A causal model needs a
    negative offset. For example, with length = 5 and vocabulary = 16:

        input     7   2   2  15   0
        target    2   2  15   0   -

    `chance` is 1/vocabulary and `best` 1. It has no `level`.
    """

    name = "shift"

    length: int = 16
    vocabulary: int = 16
    positions: Positions = "rotary"
    offset: int = 1
    causal: bool = False

    def __post_init__(self) -> None:
        check_size(self.name, "length", self.length, least=2)
        check_size(self.name, "vocabulary", self.vocabulary, least=2)
        check_choice(self.name, "positions", self.positions, ("rotary", "learned"))  # without, no offset
        check_size(self.name, "offset", self.offset, 1 - self.length, -1 if self.causal else self.length - 1)
        if not self.offset:
            raise ValueError(f"{self.name}: offset must not be 0, or every position would hold its own answer")

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` examples, drawn from `generator` alone."""
        tokens = torch.randint(self.vocabulary, (count, self.length), generator=generator)
        source = torch.arange(self.length) + self.offset
        counted = ((source >= 0) & (source < self.length)).expand(count, -1)
        return Examples(tokens.unsqueeze(-1), tokens.roll(-self.offset, dims=1) * counted, counted)


@dataclass(frozen=True)
class Relation(Task):
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
    more. It has no `level`, and no positional information: the order does not matter.
    """

    name = "relation"

    kind: Kind = "3-cycles"
    length: int = 6
    payloads: int = 4

    features = 2

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
    def related(self) -> Int[Tensor, " length"]:
        """The token that each token is related to."""
        return next_in_group(self.length, cycle_length(self.kind, self.length))

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` examples, drawn from `generator` alone."""
        tokens = permutations(count, self.length, generator)
        payloads = torch.randint(self.payloads, (count, self.length), generator=generator)
        return self._examples(tokens, payloads)

    def related_positions(self, inputs: Int[Tensor, "count length features"]) -> Int[Tensor, "count length"]:
        """The position that each position must attend to: where the highest weights of a right head lie."""
        tokens = inputs[..., 0]
        return tokens.argsort(dim=1).gather(1, self.related[tokens])

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
