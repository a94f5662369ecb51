"""Text for a model to read: a file, cut into pieces of equally many tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Int
from torch import Tensor

from querykey.checkpoint import Checkpoint
from querykey.checkpoint.inputs import Reads
from querykey.inspection.options import CONTEXT, PIECES
from querykey.models.huggingface import HuggingFaceModel
from querykey.tasks.encoding import as_utf8

CHARACTERS = 8  # read for each token that is wanted, of texts that are far longer
SHORTEST = 16  # tokens of a piece


@dataclass(frozen=True)
class Text:
    """Which text is read, and how: at most `pieces` pieces of `context` tokens each.

    Without a `calibration` text the first half of the pieces is for calibration. `name` is what the text is called.
    """

    text: str
    name: str = "the text"
    calibration: str | None = None
    context: int = CONTEXT
    pieces: int = PIECES
    reads: ClassVar[Reads] = "text"

    def check(self, checkpoint: Checkpoint) -> None:
        """Raises ValueError if the model reads no text."""
        checkpoint.reader("text")

    def halves(self, model: HuggingFaceModel) -> tuple[Int[Tensor, "pieces length"], Int[Tensor, "pieces length"]]:
        """The pieces for calibration and those to measure on. Raises ValueError for a text that is too short."""
        if self.calibration is not None:
            first, second = (pieces(model, text, self.context, self.pieces) for text in (self.calibration, self.text))
            return first, second
        whole = pieces(model, self.text, self.context, self.pieces, least=2)
        half = (len(whole) + 1) // 2
        return whole[:half], whole[half:]


def read_text(path: str | Path) -> str:
    """The text of a file, whose encoding is detected. Raises ValueError if it is no text or holds none."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no text at {path}; give a file of plain text")
    text = as_utf8(path.read_bytes(), str(path)).decode("utf-8-sig", "ignore")
    if not text.strip():
        raise ValueError(f"{path} holds no text")
    return text


def pieces(model: HuggingFaceModel, text: str, length: int, count: int, least: int = 1) -> Int[Tensor, "pieces length"]:
    """At most `count` pieces of `length` tokens from all over the text, each with the model's own special tokens.

    Pieces of a text with fewer tokens than `least` pieces need are shorter. Raises ValueError if that is not enough.
    """
    length = min(length, model.longest or length)
    read = _parts(text, CHARACTERS * length, count)
    tokens = [model.tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"] for part in read]
    before, after = _special_tokens(model.tokenizer, read[0], tokens[0])
    size = length - len(before) - len(after)
    if len(read) == 1:
        size = min(size, len(tokens[0]) // least)
    if size < SHORTEST:
        raise ValueError(
            f"the text is too short: it has {len(tokens[0])} tokens, and at least {least * SHORTEST} are needed"
        )
    found = [part[at : at + size] for part in tokens for at in range(0, len(part) - size + 1, size)]
    number = min(count, len(found))
    return torch.tensor([[*before, *found[i * len(found) // number], *after] for i in range(number)])


def _parts(text: str, size: int, count: int) -> list[str]:
    """The whole text, or `count` parts of a long one, evenly apart: tokenisers are slow."""
    if len(text) <= size * count:
        return [text]
    return [text[i * len(text) // count :][:size] for i in range(count)]


def _special_tokens(tokenizer: Any, text: str, ids: Sequence[int]) -> tuple[Sequence[int], Sequence[int]]:
    """The tokens that the tokeniser puts before and after a text that has these ids without them."""
    whole = tokenizer(text, verbose=False)["input_ids"]
    for start in range(len(whole) - len(ids) + 1):
        if whole[start : start + len(ids)] == ids:
            return whole[:start], whole[start + len(ids) :]
    return [], []
