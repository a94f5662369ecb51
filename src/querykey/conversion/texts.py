"""Texts to calibrate a conversion on and to evaluate it on, as windows of equally many tokens."""

from __future__ import annotations

import hashlib
import pydoc_data.topics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from querykey.conversion.layers import ConversionError
from querykey.tasks import sources

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BYTES = 8  # of text for each token that is wanted, read at most
LIMIT = 1 << 26  # bytes of one text that are looked at


@dataclass(frozen=True, eq=False)
class Text:
    """A named text as windows of token ids; each window begins as the tokenizer begins a text."""

    name: str
    windows: Int[Tensor, "windows length"]

    @property
    def tokens(self) -> int:
        """Number of tokens in all windows."""
        return self.windows.numel()


def read_texts(paths: Sequence[str | Path], tokenizer: Any, *, windows: int, length: int, seed: int = 0) -> list[Text]:
    """For each path (a file, a folder, a glob or hf:NAME), `windows` windows of `length` tokens from all over it.

    Which windows is drawn with `seed`; a shorter text gives as many as it has. Raises ConversionError for a text that
    is not UTF-8 or that has not a single window.
    """
    names = _names([str(path) for path in paths])
    return [_text(names[path], _decoded(path), tokenizer, windows, length, seed) for path in names]


def calibration_texts(
    paths: Sequence[str | Path], model: PreTrainedModel, tokenizer: Any, *, windows: int, length: int, seed: int = 0
) -> list[Text]:
    """About `windows` windows in all, equally many of each text; without paths, of three kinds that need no files.

    These are the sources of Python's standard library, Python's language reference, and text drawn from the model.
    """
    each = -(-windows // (len(paths) or 3))
    if paths:
        return read_texts(paths, tokenizer, windows=each, length=length, seed=seed)
    code, _ = sources.standard_library(LIMIT)
    given = (
        ("sources of Python's standard library", b"\n\n".join(code).decode("utf-8", "replace")),
        ("Python's language reference", "\n\n".join(pydoc_data.topics.topics.values())),
    )
    found = [_text(name, text, tokenizer, each, length, seed) for name, text in given]
    return [*found, drawn_text(model, tokenizer, windows=each, length=length, seed=seed)]


def drawn_text(model: PreTrainedModel, tokenizer: Any, *, windows: int, length: int, seed: int = 0) -> Text:
    """Windows of text drawn from the model itself, token by token, at temperature 1."""
    start = _prefix(tokenizer) or [
        next(t for t in (tokenizer.bos_token_id, tokenizer.eos_token_id, 0) if t is not None)
    ]
    ids = torch.tensor([start] * windows, device=model.device)
    generator: Any = model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        drawn = generator.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
            min_new_tokens=length - len(start), max_new_tokens=length - len(start), pad_token_id=start[0],
        )  # fmt: skip
    return Text("text drawn from the model", drawn.cpu())


def check_apart(calibration: Sequence[str | Path], evaluation: Sequence[str | Path]) -> None:
    """Raises ConversionError where a file is to be calibrated on and evaluated on as well, also under another name."""
    seen = {digest: file for path in calibration for file, digest in _files(path)}
    for path in evaluation:
        for file, digest in _files(path):
            if digest in seen:
                raise ConversionError(
                    f"{file} would be evaluated on, but {seen[digest]}, which has the same content, is calibrated on; "
                    "expected different files, since a fit looks better on its own text"
                )


def _names(paths: Sequence[str]) -> dict[str, str]:
    """The last part of each path, and the whole path where two have the same last part."""
    last = [Path(path).name for path in paths]
    return {path: path if last.count(name) > 1 or not name else name for path, name in zip(paths, last, strict=True)}


def _files(path: str | Path) -> list[tuple[Path, str]]:
    place = Path(path)
    files = [place] if place.is_file() else sorted(file for file in place.rglob("*") if file.is_file())
    return [(file, hashlib.sha256(file.read_bytes()).hexdigest()) for file in files]


def _decoded(path: str) -> str:
    try:
        documents, _ = sources.read([path], LIMIT)
    except ValueError as error:
        raise ConversionError(str(error)) from error
    return "\n\n".join(document.decode("utf-8-sig", "ignore") for document in documents)  # the last one may be cut


def _text(name: str, text: str, tokenizer: Any, windows: int, length: int, seed: int) -> Text:
    start = _prefix(tokenizer)
    inner = length - len(start)
    generator = torch.Generator().manual_seed(seed)
    ids = _ids(text, tokenizer, windows, inner, generator)
    if not ids:
        raise ConversionError(
            f"{name} is too short: it has no window of {length} tokens; give a longer text or a smaller window"
        )
    return Text(name, torch.tensor([start + window for window in ids]))


def _ids(text: str, tokenizer: Any, windows: int, length: int, generator: torch.Generator) -> list[list[int]]:
    """Windows without the tokens that begin a text, from places all over it, in the order of the text."""
    span = BYTES * length
    if len(text) > 2 * span * windows:  # only what is needed of a long text is tokenised
        places = torch.randperm(len(text) // span, generator=generator)[: windows + windows // 4].sort().values
        parts = [text[place * span : (place + 1) * span] for place in places.tolist()]
        found = [tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"][:length] for part in parts]
        return [ids for ids in found if len(ids) == length][:windows]
    ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
    places = torch.randperm(len(ids) // length, generator=generator)[:windows].sort().values
    return [ids[place * length : (place + 1) * length] for place in places.tolist()]


def _prefix(tokenizer: Any) -> list[int]:
    """The tokens that the tokenizer puts before a text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    whole: list[int] = tokenizer("a")["input_ids"]
    return whole[: whole.index(plain[0])] if plain and plain[0] in whole else []
