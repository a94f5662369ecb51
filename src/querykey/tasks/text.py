"""Text: predict the next byte of files, in bits per byte."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import ClassVar, Literal, get_args

import torch

from querykey.tasks.corpus import SPLITS, Corpus, Documents
from querykey.tasks.task import Examples, Positions, Split, check_choice, check_size
from querykey.tasks.tokenizer import Tokenizer


@dataclass(frozen=True)
class Text:
    """Language modelling: the next symbol, a byte by default, given those before it in the window.

    A window is `length` + 1 symbols in a row from one split, its start drawn uniformly from those that have another
    one after them in their document; inputs are the first `length`, targets the last. Where a document ends within
    the window, what follows is not counted, so no target lies in another document than its context. For example,
    with length = 8, of a document that ends in "...return x\\n":

        input     e   t   u   r   n   _   x  \\n
        target    t   u   r   n   _   x  \\n   -

    The metric is bits per byte: bits per symbol, divided by `bytes_per_symbol` (1 for bytes), so that tokenizers
    compare. `chance` is the cross-entropy of the test split under the frequencies of single symbols in the training
    split (add-one smoothed, so that a symbol never seen costs a finite number of bits). `best` is 0, a bound that no
    model reaches: the entropy of the text is not known. It has no `level`.
    """

    name: ClassVar[str] = "text"

    corpus: Corpus
    length: int = 64
    positions: Positions = "rotary"

    features: ClassVar[int] = 1
    causal: ClassVar[bool] = True
    metric: ClassVar[Literal["bits per byte"]] = "bits per byte"
    best: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_size(self.name, "length", self.length, least=1)
        check_choice(self.name, "positions", self.positions, get_args(Positions))
        for split in SPLITS:
            part = self._part(split)
            if part.targets < self.length:
                unit = "bytes" if part.data.dtype == torch.uint8 else "tokens"
                raise ValueError(
                    f"the text is too short for length {self.length}: a window needs {self.length + 1} {unit} in a "
                    f"row, and all documents of the {split} split together make a row of {part.targets + 1} "
                    f"({self.corpus.description}); give more text or a shorter length"
                )

    @classmethod
    def read(
        cls,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]] = (),
        length: int = 64,
        positions: Positions = "rotary",
        tokenizer: str | os.PathLike[str] = "bytes",
        limit: int | None = None,
        prepared: str | os.PathLike[str] | None = None,
    ) -> Text:
        """The text at `paths` (see `Corpus.read`), or Python's standard library where none are given.

        `tokenizer` is "bytes" or a file of the `tokenizers` library; `limit` is how many bytes are read at most, by
        default 64 million, and 8 million of the standard library. `prepared` is where the same text lies as
        `Corpus.save` keeps it; where it does, it is mapped into memory and nothing else is read.
        """
        if prepared is not None and Path(prepared).is_file():
            return cls(Corpus.load(Path(prepared)), length, positions)
        symbols = None if tokenizer == "bytes" else Tokenizer.read(tokenizer)
        if paths:
            corpus = Corpus.read(paths, 64_000_000 if limit is None else limit, symbols)
        else:
            corpus = Corpus.standard_library(8_000_000 if limit is None else limit, symbols)
        return cls(corpus, length, positions)

    @property
    def vocabulary(self) -> int:
        """256 bytes, or the tokens."""
        return self.corpus.vocabulary

    @property
    def classes(self) -> int:
        """One per symbol."""
        return self.corpus.vocabulary

    @property
    def data_hash(self) -> str:
        """Identifies the symbols and their split."""
        return self.corpus.data_hash

    @cached_property
    def chance(self) -> float:
        """Cross-entropy in bits per byte, of the test split under the symbol frequencies of the training split."""
        train, test = (self._part(split).data.long() for split in ("train", "test"))
        seen = train.bincount(minlength=self.vocabulary).double() + 1
        bits = -(seen / seen.sum()).log2()
        return float(bits[test].mean()) / self.bytes_per_symbol("test")

    def bytes_per_symbol(self, split: Split) -> float:
        """How many bytes of a split one of its symbols stands for, on average."""
        part = self._part(split)
        return part.size / len(part.data)

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` windows of one split, drawn from `generator` alone."""
        data, ends, _ = self._part(split)
        # The n-th symbol that has a successor in its document stands n + d symbols into the split, where d counts the
        # documents before its own, each of which has one symbol without.
        nth = torch.randint(len(data) - len(ends), (count, 1), generator=generator)
        document = torch.searchsorted(ends - torch.arange(1, len(ends) + 1), nth, right=True)
        at = nth + document + torch.arange(self.length + 1)
        window = data[at.clamp(max=len(data) - 1)].long()
        counted = at[:, 1:] < ends[document]
        return Examples(window[:, :-1, None], window[:, 1:] * counted, counted)

    def _part(self, split: Split) -> Documents:
        part: Documents = getattr(self.corpus, split)
        return part
