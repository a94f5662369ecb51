"""Text for a model to read: a file, cut into pieces of equally many tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from querykey.models.huggingface import HuggingFaceModel

ROOM = 8  # characters for each token: enough that a piece is nearly always as long as asked for


def read_text(path: str | Path) -> str:
    """The text of a file in UTF-8. Raises ValueError for another encoding and for a file without text."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no text at {path}; give a file of plain text")
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not text in UTF-8 (byte {error.start} is {error.object[error.start]:#04x}); "
            "convert it, for example with iconv -t UTF-8"
        ) from None
    if not text.strip():
        raise ValueError(f"{path} holds no text")
    return text


def pieces(model: HuggingFaceModel, text: str, length: int, count: int) -> Int[Tensor, "pieces length"]:
    """`count` pieces from all over the text as tokens, or as many as there are; each begins a text of its own.

    Raises ValueError for a text too short for two pieces: one to fit on, and one to measure on.
    """
    length = min(length, model.longest or length)
    starts = range(0, max(len(text) - ROOM * length // 2, 1), ROOM * length)
    every = max(1, len(starts) // count)
    found = [model.encode(text[at : at + ROOM * length], length)[0] for at in starts[::every][:count]]
    whole = [ids for ids in found if ids.shape[1] == length]
    if len(whole) < 2:
        raise ValueError(
            f"the text is too short: {len(text)} characters give {len(whole)} pieces of {length} tokens, and at least "
            f"2 are needed; give {2 * ROOM * length} characters or more"
        )
    return torch.cat(whole)
