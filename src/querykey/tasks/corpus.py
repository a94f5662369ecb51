"""A corpus: documents in three splits, so that none is both learned from and scored on."""

from __future__ import annotations

import json
import os
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from itertools import accumulate, pairwise
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from jaxtyping import Int, Integer
from torch import Tensor

from querykey.report.files import write_atomically
from querykey.tasks import sources
from querykey.tasks.task import Split, check_size
from querykey.tasks.tokenizer import Tokenizer

SPLITS: tuple[Split, ...] = get_args(Split)
BORDERS = (90, 95)  # train up to 90 %, validation up to 95 %, test the rest
FEWEST_DOCUMENTS = 20  # with fewer, each document is cut instead


class Documents(NamedTuple):
    """The documents of one split end to end, where each of them ends, and how many bytes they are."""

    data: Integer[Tensor, " tokens"]
    ends: Int[Tensor, " documents"]
    size: int

    @property
    def targets(self) -> int:
        """How many tokens have one of the same document before them."""
        return len(self.data) - len(self.ends)


@dataclass(frozen=True)
class Corpus:
    """Documents in three splits, as bytes or as tokens. Equal where `data_hash` is: a SHA-256 of all of them.

    Documents go whole to train, validation and test (90, 5 and 5 per cent) by a hash of their content, so that the
    choice depends on nothing else and a copy never lands in another split; exact copies count once. Where there are
    fewer than 20 documents, or a split would get less than a quarter of its share of the bytes, each document is
    cut into contiguous parts of those sizes instead. `description` says which of the two was done, and with what.
    """

    data_hash: str
    description: str = field(compare=False)
    vocabulary: int = field(compare=False)
    train: Documents = field(compare=False, repr=False)
    validation: Documents = field(compare=False, repr=False)
    test: Documents = field(compare=False, repr=False)

    @classmethod
    def standard_library(cls, limit: int = 8_000_000, tokenizer: Tokenizer | None = None) -> Corpus:
        """The Python sources of the running Python's standard library, without tests and installed packages.

        Of about 12 MB the first `limit` bytes are taken, files in the order of a hash of their names, so that
        reading them costs a fraction of a second. Another version of Python is another corpus.
        """
        check_size("text", "limit", limit, least=1)
        return cls.from_documents(*sources.standard_library(limit), tokenizer)

    @classmethod
    def read(
        cls,
        paths: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
        limit: int = 64_000_000,
        tokenizer: Tokenizer | None = None,
    ) -> Corpus:
        """Files of text, folders (all that is in them but hidden files), globs, and data sets.

        A data set is "hf:NAME" or "hf:NAME:CONFIG" on the Hugging Face hub, or "hf:FOLDER" where it was saved on
        disk; its rows, of all its splits, are the documents. At most `limit` bytes are taken, files in the order of
        a hash of their names.

        Raises:
            ValueError: if there is no text at a path, or it cannot be read, is empty, or is no text.
            MissingExtra: for a data set, if `datasets` is not installed.
        """
        check_size("text", "limit", limit, least=1)
        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        return cls.from_documents(*sources.read(given, limit), tokenizer)

    @classmethod
    def from_documents(cls, documents: Iterable[bytes], source: str, tokenizer: Tokenizer | None = None) -> Corpus:
        """Split documents that are at hand; `source` begins the description."""
        by_digest = {sha256(document).digest(): document for document in documents if document}
        if not by_digest:
            raise ValueError(f"the text is empty: {source}")
        ordered = {digest: by_digest[digest] for digest in sorted(by_digest)}
        parts = _whole(ordered) if len(ordered) >= FEWEST_DOCUMENTS else None
        how = "split by document"
        if parts is None or not _balanced(parts):
            parts, how = _contiguous(ordered.values()), "each document cut into contiguous parts"
        sizes = " / ".join(f"{sum(map(len, part)):,}" for part in parts)
        kind, dtype = (f"{tokenizer.vocabulary} tokens", torch.int32) if tokenizer else ("bytes", torch.uint8)
        encoded = [_encode(part, tokenizer) for part in parts]
        return cls(
            _hash(encoded, kind),
            f"{source}; {how}: {sizes} bytes for train / validation / test, read as {kind}",
            tokenizer.vocabulary if tokenizer else 256,
            *(_join(tokens, part, dtype) for tokens, part in zip(encoded, parts, strict=True)),
        )

    def save(self, path: Path) -> None:
        """Keep the corpus in a safetensors file, whole or not at all; see `load`."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        tensors: dict[str, Tensor] = {}
        sizes: dict[str, int] = {}
        for name in SPLITS:
            part: Documents = getattr(self, name)
            tensors |= {f"{name}.data": part.data, f"{name}.ends": part.ends}
            sizes[name] = part.size
        facts = {"data_hash": self.data_hash, "description": self.description, "vocabulary": self.vocabulary}
        try:
            with write_atomically(path) as partial:
                save_file(tensors, partial, metadata={"corpus": json.dumps(facts | {"sizes": sizes})})
        except SafetensorError as error:
            raise OSError(f"the text cannot be written to {path}: {error}") from None

    @classmethod
    def load(cls, path: Path) -> Corpus:
        """A corpus that was kept. Its tokens stay in the file, mapped into memory: all processes share one copy."""
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["corpus"])
            sizes = facts.pop("sizes")
            parts = [
                Documents(file.get_tensor(f"{name}.data"), file.get_tensor(f"{name}.ends"), sizes[name])
                for name in SPLITS
            ]
        return cls(facts["data_hash"], facts["description"], facts["vocabulary"], *parts)


def _whole(documents: dict[bytes, bytes]) -> list[list[bytes]]:
    """Each document to one split, by the digest of its content."""
    parts: list[list[bytes]] = [[] for _ in SPLITS]
    for digest, document in documents.items():
        place = int.from_bytes(digest[:8], "big") % 100
        parts[sum(place >= border for border in BORDERS)].append(document)
    return parts


def _contiguous(documents: Iterable[bytes]) -> list[list[bytes]]:
    """Each document to all splits: its beginning to train, its end to test."""
    parts: list[list[bytes]] = [[] for _ in SPLITS]
    for document in documents:
        cuts = [0, *(len(document) * border // 100 for border in BORDERS), len(document)]
        for part, (begin, end) in zip(parts, pairwise(cuts), strict=True):
            part.append(document[begin:end])
    return parts


def _balanced(parts: list[list[bytes]]) -> bool:
    """Whether each split holds at least a quarter of its share of the bytes."""
    sizes = [sum(map(len, part)) for part in parts]
    shares = [end - begin for begin, end in pairwise((0, *BORDERS, 100))]
    return all(400 * size >= share * sum(sizes) for size, share in zip(sizes, shares, strict=True))


def _encode(part: list[bytes], tokenizer: Tokenizer | None) -> list[array[int]]:
    """The tokens of each document that has any."""
    if tokenizer is None:
        return [array("B", document) for document in part if document]
    # Where a document is no UTF-8, or was cut within a character, the replacement character stands.
    encoded = (array("i", tokenizer.encode(document.decode(errors="replace"))) for document in part)
    return [tokens for tokens in encoded if tokens]


def _join(encoded: list[array[int]], part: list[bytes], dtype: torch.dtype) -> Documents:
    data = bytearray().join(encoded)
    tokens = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    ends = torch.tensor(list(accumulate(map(len, encoded))), dtype=torch.int64)
    return Documents(tokens, ends, sum(map(len, part)))


def _hash(encoded: list[list[array[int]]], kind: str) -> str:
    digest = sha256(kind.encode())
    for name, documents in zip(SPLITS, encoded, strict=True):
        digest.update(f"{name} {[len(document) for document in documents]}".encode())
        for document in documents:
            digest.update(document)
    return digest.hexdigest()
