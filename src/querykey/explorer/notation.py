"""How a text becomes what a model reads, for each kind of model that the page can show."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from querykey.models.huggingface import HuggingFaceModel

LONGEST = 512  # tokens that are shown at most
MOST_CHARACTERS = 100_000  # of a text that is taken at all


class Encoded(NamedTuple):
    """What a model reads, (1, length) or (1, length, features), what each token is called, and whether more was cut."""

    ids: Int[Tensor, "1 length *features"]
    tokens: tuple[str, ...]
    cut: bool


@runtime_checkable
class Notation(Protocol):
    """What a kind of model reads and answers."""

    def encode(self, text: str) -> Encoded:
        """Raises ValueError, in a sentence, for a text that cannot be read."""
        ...

    def answers(self, best: Int[Tensor, " length"]) -> list[str]:
        """What each answer of the model is called."""
        ...

    def targets(self, ids: Int[Tensor, "1 length *features"]) -> Int[Tensor, " length"] | None:
        """What the model should answer at each position, −1 where nothing can be said; None where nothing is known."""
        ...


@dataclass(frozen=True)
class Words:
    """The tokenizer of a model of transformers."""

    live: HuggingFaceModel

    def encode(self, text: str) -> Encoded:
        """The tokens of its tokenizer, up to the longest that is shown."""
        limit = min(x for x in (LONGEST, self.live.longest) if x is not None)
        ids, tokens = self.live.encode(text, limit=limit)
        whole = self.live.tokenizer(text, verbose=False)["input_ids"] if len(tokens) == limit else tokens
        return Encoded(ids, tokens, len(whole) > limit)

    def answers(self, best: Int[Tensor, " length"]) -> list[str]:
        """Tokens."""
        return list(self.live.spelled(best.tolist()))

    def targets(self, ids: Int[Tensor, "1 length"]) -> Int[Tensor, " length"] | None:
        """The next token, for a model that sees what came before."""
        return _next(ids[0]) if self.live.causal else None


class Bytes:
    """The bytes of a text, in UTF-8."""

    def encode(self, text: str) -> Encoded:
        """One token for each byte."""
        content = text.encode()
        if not content:
            raise ValueError("The text is empty; give it at least one letter.")
        kept = content[:LONGEST]
        return Encoded(torch.tensor([list(kept)])[..., None], tuple(map(_byte, kept)), len(content) > LONGEST)

    def answers(self, best: Int[Tensor, " length"]) -> list[str]:
        """Bytes."""
        return [_byte(value) for value in best.tolist()]

    def targets(self, ids: Int[Tensor, "1 length 1"]) -> Int[Tensor, " length"]:
        """The next byte."""
        return _next(ids[0, :, 0])


@dataclass(frozen=True)
class Naming:
    """The task of naming: each position has a name, names another and carries a number: ``A→C 3``.

    A model with `names` names and `payloads` numbers, at most `length` positions.
    """

    names: int
    payloads: int
    length: int

    def encode(self, text: str) -> Encoded:
        """Positions such as ``A→C 3``, in any number; the arrow may be written > or ->, the number left out."""
        found = re.findall(r"([A-Za-z])\s*(?:→|->|>|:)\s*([A-Za-z])\s*(\d*)", text)
        last, most = chr(ord("A") + self.names - 1), self.payloads - 1
        form = f"a position is written A→C 3: its name and the name it asks, A to {last}, and its number, 0 to {most}"
        if not found:
            raise ValueError(f"There is nothing to read; {form}.")
        rows = [(ord(own.upper()) - 65, ord(asked.upper()) - 65, int(number or 0)) for own, asked, number in found]
        if any(own >= self.names or asked >= self.names or number > most for own, asked, number in rows):
            raise ValueError(f"This model does not know all of these names and numbers; {form}.")
        owns = [own for own, _, _ in rows]
        if len(set(owns)) < len(owns):
            twice = next(own for own in owns if owns.count(own) > 1)
            raise ValueError(f"The name {chr(65 + twice)} is there twice; each position needs its own.")
        kept = rows[: self.length]
        ids = [[own, self.names + asked, 2 * self.names + number] for own, asked, number in kept]
        tokens = tuple(f"{chr(65 + own)}→{chr(65 + asked)} {number}" for own, asked, number in kept)
        return Encoded(torch.tensor([ids]), tokens, len(rows) > self.length)

    def answers(self, best: Int[Tensor, " length"]) -> list[str]:
        """Numbers."""
        return [str(value) for value in best.tolist()]

    def targets(self, ids: Int[Tensor, "1 length 3"]) -> Int[Tensor, " length"]:
        """The number of the position that is named."""
        own, asked, number = (ids[0] - torch.tensor([0, self.names, 2 * self.names])).T
        numbers = dict(zip(own.tolist(), number.tolist(), strict=True))
        return torch.tensor([numbers.get(name, -1) for name in asked.tolist()])


@dataclass(frozen=True)
class Numbers:
    """Any other task: symbols as numbers, ``7 2 15``, those of one position joined by commas, ``3,17,26``."""

    vocabulary: int
    features: int
    length: int | None

    def encode(self, text: str) -> Encoded:
        """One token for each group of numbers."""
        groups = re.findall(r"\d+(?:,\d+)*", text)
        rows = [[int(number) for number in group.split(",")] for group in groups]
        form = ",".join(["N"] * self.features)
        if not rows or any(len(row) != self.features or max(row) >= self.vocabulary for row in rows):
            raise ValueError(
                f"This model reads positions of the form {form}, each N from 0 to {self.vocabulary - 1}, with spaces "
                "between them."
            )
        limit = LONGEST if self.length is None else min(self.length, LONGEST)
        return Encoded(torch.tensor([rows[:limit]]), tuple(groups[:limit]), len(rows) > limit)

    def answers(self, best: Int[Tensor, " length"]) -> list[str]:
        """Numbers."""
        return [str(value) for value in best.tolist()]

    def targets(self, ids: Int[Tensor, "1 length features"]) -> None:
        """Nothing is known of the task."""
        return


def _next(ids: Sequence[int] | Tensor) -> Tensor:
    """Each symbol's successor, and −1 for the last."""
    ids = torch.as_tensor(ids)
    return torch.cat([ids[1:], torch.tensor([-1])])


def _byte(value: int) -> str:
    """A byte as it is best seen."""
    shown = {32: "␣", 10: "⏎", 9: "⇥"}
    return shown.get(value) or (chr(value) if 33 <= value < 127 else f"{value:02X}")
