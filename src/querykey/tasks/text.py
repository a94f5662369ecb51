"""Text: predict the next byte, or hidden bytes, of files, in bits per byte."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from querykey.tasks import ngrams
from querykey.tasks.corpus import SPLITS, Corpus, Documents
from querykey.tasks.task import Examples, Positions, Split, Task, check_choice, check_size
from querykey.tasks.tokenizer import Tokenizer

Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
HIDDEN = 0.15  # of the tokens of a window, as in BERT (Devlin et al. 2018, arXiv 1810.04805)
CHUNK = 1024  # windows that an n-gram model reads at once


@dataclass(frozen=True)
class Text(Task):
    """Language modelling: the next token, a byte by default, given those before it in the window.

    A window is `length` + 1 tokens in a row from one split. Its start is drawn uniformly from the tokens that another
    one of their document follows. Inputs are the first `length` tokens, targets the last. Where a document ends within
    the window, what follows is not counted, so no target lies in another document than its context. For example,
    with length = 8, of a document that ends in "...return x\\n":

        input     e   t   u   r   n   _   x  \\n
        target    t   u   r   n   _   x  \\n   -

    The metric is bits per byte: bits per token, divided by `bytes_per_token` (1 for bytes), so that tokenizers
    compare. `chance` is the cross-entropy of the test split under the frequencies of single tokens in the training
    split (add-one smoothed, so that a token never seen costs a finite number of bits). `best` is 0, a bound that no
    model reaches: the entropy of the text is not known. `yardsticks` are the levels of counting n-grams.
    """

    name = "text"

    corpus: Corpus
    length: int = 64
    positions: Positions = "rotary"

    causal = True
    metric = "bits per byte"
    best = 0.0

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
        paths: Paths = (),
        length: int = 64,
        positions: Positions = "rotary",
        tokenizer: str | os.PathLike[str] = "bytes",
        limit: int | None = None,
        prepared: str | os.PathLike[str] | None = None,
    ) -> Text:
        """The text at `paths` (see `Corpus.read`), or Python's standard library where none are given.

        Args:
            paths: files, folders, globs or data sets.
            length: tokens of a window.
            positions: "rotary", "learned" or "none".
            tokenizer: "bytes", or a file of the `tokenizers` library.
            limit: how many bytes are read at most: by default 64 million, and 8 million of the standard library.
            prepared: a file written by `prepare`. If it exists it is mapped into memory, and nothing else is read.
        """
        return cls(_corpus(paths, tokenizer, limit, prepared), length, positions)

    @property
    def vocabulary(self) -> int:
        """256 bytes, or the tokens."""
        return self.corpus.vocabulary

    @property
    def data_hash(self) -> str:
        """Identifies the tokens and their split."""
        return self.corpus.data_hash

    @property
    def options(self) -> dict[str, Any]:
        """All options but those that say where the text is, which `data_hash` stands for."""
        return {name: value for name, value in super().options.items() if name != "corpus"}

    @cached_property
    def chance(self) -> float:
        """Cross-entropy in bits per byte, of the test split under the token frequencies of the training split."""
        train, test = (self._part(split).data.long() for split in ("train", "test"))
        seen = train.bincount(minlength=self.vocabulary).double() + 1
        bits = -(seen / seen.sum()).log2()
        return float(bits[test].mean()) / self.bytes_per_token("test")

    def bytes_per_token(self, split: Split) -> float:
        """How many bytes of a split one of its tokens stands for, on average."""
        part = self._part(split)
        return part.size / len(part.data)

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` windows of one split, drawn from `generator` alone."""
        data, ends, _ = self._part(split)
        # The n-th token that has a successor in its document stands n + d tokens into the split, where d counts the
        # documents before its own, each of which has one token without.
        nth = torch.randint(len(data) - len(ends), (count,), generator=generator)
        document = torch.searchsorted(ends - torch.arange(1, len(ends) + 1), nth, right=True)
        return self._examples(nth + document, generator, split)

    def score(
        self, logits: Float[Tensor, "targets classes"], targets: Int[Tensor, " targets"], split: Split
    ) -> Float[Tensor, " targets"]:
        """Bits per byte."""
        nats = F.cross_entropy(logits, targets, reduction="none")
        return nats.double() / math.log(2) / self.bytes_per_token(split)

    def prepare(self, folder: Path) -> dict[str, Any]:
        """Keep the corpus in `folder`, so that all workers map the same file."""
        path = (folder / f"{self.data_hash[:16]}.safetensors").absolute()
        if not path.is_file():
            self.corpus.save(path)
        return {"prepared": str(path)}

    def yardsticks(self, examples: int, generator: torch.Generator, scored: Iterable[Examples]) -> dict[str, float]:
        """Bits per byte of n-gram models (Witten-Bell) that see none to four of the tokens nearest to the target.

        They count `examples` windows, or all of the training split once where these would read more than it holds.
        """
        size = len(self._part("train").data)
        if examples * self.length < size:
            chunks = [min(CHUNK, examples - start) for start in range(0, examples, CHUNK)]
            parts = (self.sample(chunk, generator) for chunk in chunks)
        else:
            starts = torch.arange(0, size - self.length + 1, self.length).split(CHUNK)
            parts = (self._examples(chunk, generator, "train") for chunk in starts)
        read, asked = (ngrams.Events.of(some, self._nearest) for some in (map(self._shown, parts), scored))
        bits = ngrams.bits(read, asked, self.classes)
        return {name: bits[order - 1] / self.bytes_per_token("test") for name, order in ngrams.ORDERS.items()}

    @property
    def _nearest(self) -> tuple[int, ...]:
        """Offsets from a target's position to the inputs that an n-gram model sees, the nearest first."""
        return 0, -1, -2, -3

    def _shown(self, read: Examples) -> Examples:
        """What an n-gram model counts."""
        return read

    def _examples(self, starts: Int[Tensor, " count"], generator: torch.Generator, split: Split) -> Examples:
        """The windows that begin at these tokens."""
        window, inside = self._windows(starts, self.length + 1, split)
        return Examples(window[:, :-1, None], window[:, 1:] * inside[:, 1:], inside[:, 1:])

    def _windows(
        self, starts: Int[Tensor, " count"], width: int, split: Split
    ) -> tuple[Int[Tensor, "count width"], Bool[Tensor, "count width"]]:
        """Tokens in a row, and which of them belong to the document of the first."""
        data, ends, _ = self._part(split)
        end = ends[torch.searchsorted(ends, starts, right=True)]
        at = starts[:, None] + torch.arange(width)
        return data[at.clamp(max=len(data) - 1)].long(), at < end[:, None]

    def _part(self, split: Split) -> Documents:
        part: Documents = getattr(self.corpus, split)
        return part


@dataclass(frozen=True)
class MaskedText(Text):
    """Masked language modelling: the hidden tokens of a window, given the others.

    A window is `length` tokens in a row, its start drawn as in `Text`. Of the tokens that belong to the document of
    the first, 15 % are hidden, at least one: the input holds the mask token in their place, the last of the vocabulary.
    For example, with length = 8 and M for the mask token:

        input     e   t   M   r   n   _   M  \\n
        target    -   -   u   -   -   -   x   -

    The metric is bits per byte, of the hidden bytes alone. A model sees both sides, or with `causal` only the tokens
    before the hidden one. The n-gram models of `yardsticks` see the nearest tokens on the same sides.
    """

    name = "masked-text"

    causal: bool = False

    @classmethod
    def read(
        cls,
        paths: Paths = (),
        length: int = 64,
        positions: Positions = "rotary",
        tokenizer: str | os.PathLike[str] = "bytes",
        limit: int | None = None,
        prepared: str | os.PathLike[str] | None = None,
        causal: bool = False,
    ) -> MaskedText:
        """As `Text.read`; `causal` for a model that sees only the tokens before a hidden one."""
        return cls(_corpus(paths, tokenizer, limit, prepared), length, positions, causal)

    @property
    def vocabulary(self) -> int:
        """The tokens of the text, then the mask token."""
        return self.corpus.vocabulary + 1

    @property
    def classes(self) -> int:
        """One per token of the text."""
        return self.corpus.vocabulary

    def _examples(self, starts: Int[Tensor, " count"], generator: torch.Generator, split: Split) -> Examples:
        """The windows that begin at these tokens, some of which are hidden."""
        window, inside = self._windows(starts, self.length, split)
        order = (torch.rand(window.shape, generator=generator) + ~inside).argsort(dim=1).argsort(dim=1)
        hidden = order < (HIDDEN * inside.sum(dim=1, keepdim=True)).round().clamp(min=1)
        return Examples(window.masked_fill(hidden, self.classes).unsqueeze(-1), window * hidden, hidden)

    @property
    def _nearest(self) -> tuple[int, ...]:
        return (-1, -2, -3, -4) if self.causal else (-1, 1, -2, 2)

    def _shown(self, read: Examples) -> Examples:
        """The window with nothing hidden, and each of its tokens a target."""
        shown = torch.where(read.counted, read.targets, read.inputs.squeeze(-1))
        return Examples(shown.unsqueeze(-1), shown, torch.ones_like(read.counted))


def _corpus(
    paths: Paths,
    tokenizer: str | os.PathLike[str],
    limit: int | None,
    prepared: str | os.PathLike[str] | None,
) -> Corpus:
    """See `Text.read`."""
    if prepared is not None and Path(prepared).is_file():
        return Corpus.load(Path(prepared))
    tokens = None if tokenizer == "bytes" else Tokenizer.read(tokenizer)
    if paths:
        return Corpus.read(paths, 64_000_000 if limit is None else limit, tokens)
    return Corpus.standard_library(8_000_000 if limit is None else limit, tokens)
