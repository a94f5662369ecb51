"""How a text becomes what a model reads, and what its tokens and answers are called, for each kind of model.

A token that is only a part of a character is called by the character and its place in it: 注₁ 注₂ 注₃. A part of a
character that a model answers is called by its bytes in hexadecimal digits.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from querykey.models.huggingface import HuggingFaceModel

LONGEST = 512  # tokens that are shown at most
MOST_CHARACTERS = 100_000  # of a text that is taken at all
BLANKS = {" ": "␣", "\n": "⏎", "\t": "⇥"}
PRINTED = (*range(33, 127), *range(161, 173), *range(174, 256))  # bytes that byte-level vocabularies write as they are
OTHERS = [byte for byte in range(256) if byte not in PRINTED]  # and those that they write as characters from 256 on


class Encoded(NamedTuple):
    """What a model reads, and what each token is called.

    `special` marks tokens that stand for no text, such as [CLS]; `unknown` counts those that the vocabulary lacks;
    `cut` says whether the text went on.
    """

    ids: Int[Tensor, "1 length *features"]
    tokens: tuple[str, ...]
    cut: bool
    special: tuple[bool, ...]
    unknown: int = 0


@runtime_checkable
class Tokenizer(Protocol):
    """What a kind of model reads and answers."""

    def encode(self, text: str) -> Encoded:
        """Raises ValueError for a text that cannot be read."""
        ...

    def answers(self, best: Int[Tensor, " answers"]) -> list[str]:
        """What each answer of the model is called."""
        ...

    def targets(self, ids: Int[Tensor, "1 length *features"]) -> Int[Tensor, " length"] | None:
        """The correct answer at each position, −1 where there is none; None where nothing is known."""
        ...


@dataclass(frozen=True)
class ModelTokenizer:
    """The tokenizer of a transformers model."""

    model: HuggingFaceModel

    def encode(self, text: str) -> Encoded:
        """The tokens of its tokenizer, up to the longest that is shown."""
        tokenizer = self.model.tokenizer
        limit = min(x for x in (LONGEST, self.model.longest) if x is not None)
        ids = self.model.encode(text, limit=limit)[0]
        names = tokenizer.convert_ids_to_tokens(ids[0].tolist())
        options = {"return_offsets_mapping": True} if tokenizer.is_fast else {}
        whole = tokenizer(text, verbose=False, **options)
        spans = whole.get("offset_mapping", [(0, 0)] * len(names))
        tokens = _named(tokenizer, names, [text[start:end] for start, end in spans[: len(names)]], spans)
        unknown = names.count(tokenizer.unk_token)
        special = tuple(name in tokenizer.all_special_tokens and name != tokenizer.unk_token for name in names)
        return Encoded(ids, tokens, len(whole["input_ids"]) > limit, special, unknown)

    def answers(self, best: Int[Tensor, " answers"]) -> list[str]:
        """Tokens; #7 for one that the vocabulary lacks."""
        tokenizer, ids = self.model.tokenizer, best.tolist()
        names = [name or f"#{id}" for name, id in zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True)]
        return [_spelled(tokenizer, name) or _hexadecimal(name) for name in names]

    def targets(self, ids: Int[Tensor, "1 length"]) -> Int[Tensor, " length"] | None:
        """The next token, for a causal model."""
        return _next(ids[0]) if self.model.causal else None


class ByteTokenizer:
    """The bytes of a text, in UTF-8."""

    def encode(self, text: str) -> Encoded:
        """One token for each byte."""
        content = text.encode()
        if not content:
            raise ValueError("the text is empty; give it at least one letter")
        ids = torch.tensor([list(content[:LONGEST])])[..., None]
        names = [name for character in text[:LONGEST] for name in _bytes_of(character)][:LONGEST]
        return Encoded(ids, tuple(names), len(content) > LONGEST, (False,) * len(names))

    def answers(self, best: Int[Tensor, " answers"]) -> list[str]:
        """Bytes."""
        return [BLANKS.get(chr(b)) or (chr(b) if 33 <= b < 127 else f"{b:02X}") for b in best.tolist()]

    def targets(self, ids: Int[Tensor, "1 length 1"]) -> Int[Tensor, " length"]:
        """The next byte."""
        return _next(ids[0, :, 0])


@dataclass(frozen=True)
class CycleTokenizer:
    """The tasks of cycles and swaps: each position has a name, names another and holds a number: ``A→C 3``.

    For a model with `names` names and `payloads` numbers, at most `length` positions.
    """

    names: int
    payloads: int
    length: int

    def encode(self, text: str) -> Encoded:
        """Positions such as ``A→C 3``, in any number; the arrow may be written > or ->, the number left out."""
        found = re.findall(r"([A-Za-z])\s*(?:→|->|>|:)\s*([A-Za-z])\s*(\d*)", text)
        last, most = chr(ord("A") + self.names - 1), self.payloads - 1
        form = f"a position is written A→C 3: its name and the name it asks for, A to {last}, and a number, 0 to {most}"
        if not found:
            raise ValueError(f"the text has no positions; {form}")
        rows = [(ord(own.upper()) - 65, ord(asked.upper()) - 65, int(number or 0)) for own, asked, number in found]
        if any(own >= self.names or asked >= self.names or number > most for own, asked, number in rows):
            raise ValueError(f"the model does not know all of these names and numbers; {form}")
        owns = [own for own, _, _ in rows]
        if len(set(owns)) < len(owns):
            twice = next(own for own in owns if owns.count(own) > 1)
            raise ValueError(f"the name {chr(65 + twice)} is there twice; each position needs its own")
        kept = rows[: self.length]
        ids = [[own, self.names + asked, 2 * self.names + number] for own, asked, number in kept]
        tokens = tuple(f"{chr(65 + own)}→{chr(65 + asked)} {number}" for own, asked, number in kept)
        return Encoded(torch.tensor([ids]), tokens, len(rows) > self.length, (False,) * len(tokens))

    def answers(self, best: Int[Tensor, " answers"]) -> list[str]:
        """Numbers."""
        return [str(value) for value in best.tolist()]

    def targets(self, ids: Int[Tensor, "1 length 3"]) -> Int[Tensor, " length"]:
        """The number of the position that is asked for."""
        own, asked, number = (ids[0] - torch.tensor([0, self.names, 2 * self.names])).T
        numbers = dict(zip(own.tolist(), number.tolist(), strict=True))
        return torch.tensor([numbers.get(name, -1) for name in asked.tolist()])


@dataclass(frozen=True)
class NumberTokenizer:
    """Any other task: tokens as numbers, ``7 2 15``, those of one position joined by commas, ``3,17,26``."""

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
                f"the model does not read this text; it reads positions of the form {form}, each N from 0 to "
                f"{self.vocabulary - 1}, with spaces between them"
            )
        limit = LONGEST if self.length is None else min(self.length, LONGEST)
        tokens = tuple(groups[:limit])
        return Encoded(torch.tensor([rows[:limit]]), tokens, len(rows) > limit, (False,) * len(tokens))

    def answers(self, best: Int[Tensor, " answers"]) -> list[str]:
        """Numbers."""
        return [str(value) for value in best.tolist()]

    def targets(self, ids: Int[Tensor, "1 length features"]) -> None:
        """Nothing is known of the task."""
        return


def _named(tokenizer: Any, names: list[str], texts: list[str], spans: list[tuple[int, int]]) -> tuple[str, ...]:
    """What tokens are called in a text, of which `texts` are their parts, at `spans`."""
    found, place = [], 0
    for name, text, span, before in zip(names, texts, spans, [None, *spans], strict=False):
        spelled = _spelled(tokenizer, name)
        place = place + 1 if span == before else 1
        if name == tokenizer.unk_token and text:
            found.append(f"{text}?")
        else:
            found.append(spelled or (f"{text.strip()}{chr(0x2080 + place)}" if text.strip() else _hexadecimal(name)))
    return tuple(found)


def _spelled(tokenizer: Any, name: str) -> str:
    """What a token of a vocabulary stands for, with ## where it continues a word; nothing for a part of a character."""
    if name in tokenizer.all_special_tokens or name.startswith("##"):
        return name
    text: str = tokenizer.convert_tokens_to_string([name])
    return "" if "\ufffd" in text else text if text.strip() else "".join(BLANKS.get(sign, sign) for sign in text)


def _hexadecimal(name: str) -> str:
    """The bytes of a part of a character, which vocabularies write as <0xE6>, or as one character for each byte."""
    if byte := re.fullmatch(r"<0x([0-9A-F]{2})>", name):
        return byte[1]
    values = [OTHERS[ord(sign) - 256] if 256 <= ord(sign) < 256 + len(OTHERS) else ord(sign) for sign in name]
    return bytes(values).hex().upper() if max(values, default=0) < 256 else name


def _next(ids: Int[Tensor, " length"]) -> Int[Tensor, " length"]:
    """The token after each one, and −1 for the last."""
    return torch.cat([ids[1:], torch.tensor([-1])])


def _bytes_of(character: str) -> list[str]:
    """What the bytes of a character are called."""
    content = character.encode()
    if len(content) > 1:
        return [f"{character}{chr(0x2080 + place)}" for place in range(1, len(content) + 1)]
    return [BLANKS.get(character) or (character if 33 <= content[0] < 127 else f"{content[0]:02X}")]
