"""Text: predict the next byte of files, split so that no document is both learned from and scored on.

Symbols are bytes, so any file will do and losses need no tokenizer: bits per byte.
"""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from itertools import accumulate, pairwise
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple, NoReturn, get_args

import torch
from jaxtyping import Int, UInt8
from torch import Tensor

from querykey.tasks.task import Examples, Positions, Split, check_choice, check_size

SPLITS: tuple[Split, ...] = get_args(Split)
BORDERS = (90, 95)  # train up to 90 %, validation up to 95 %, test the rest
FEWEST_DOCUMENTS = 20  # with fewer, each document is cut instead

PathLike = str | os.PathLike[str]


class Documents(NamedTuple):
    """The documents of one split, end to end, and where each of them ends."""

    data: UInt8[Tensor, " bytes"]
    ends: Int[Tensor, " documents"]

    @property
    def targets(self) -> int:
        """How many bytes have a byte of the same document before them."""
        return len(self.data) - len(self.ends)


@dataclass(frozen=True)
class Corpus:
    """Documents in three splits. Equal where `data_hash` is: a SHA-256 of every split's documents.

    Documents go whole to train, validation and test (90, 5 and 5 per cent) by a hash of their content, so that the
    choice depends on nothing else and a copy never lands in another split; exact copies count once. Where there are
    fewer than 20 documents, or a split would get less than a quarter of its share of the bytes, each document is
    cut into contiguous parts of those sizes instead. `description` says which of the two was done, and with what.
    """

    data_hash: str
    description: str = field(compare=False)
    train: Documents = field(compare=False, repr=False)
    validation: Documents = field(compare=False, repr=False)
    test: Documents = field(compare=False, repr=False)

    @classmethod
    def standard_library(cls, limit: int = 8_000_000) -> Corpus:
        """The Python sources of the running Python's standard library, without tests and installed packages.

        Of about 12 MB the first `limit` bytes are taken, files in the order of a hash of their names, so that
        reading them costs a fraction of a second. Another version of Python is another corpus.
        """
        root = Path(sysconfig.get_path("stdlib"))
        skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
        files = {
            str(path): path.relative_to(root).as_posix()
            for path in root.rglob("*.py")
            if not skipped & set(path.relative_to(root).parts)
            and not path.name.startswith("_sysconfigdata")  # describes the machine that built this Python
        }
        if not files:
            raise ValueError(f"this Python has no sources in {root}; give other text, as files or folders")
        return _read(files, limit, "Python's standard library")

    @classmethod
    def read(cls, paths: PathLike | Sequence[PathLike], limit: int = 64_000_000) -> Corpus:
        """Files, folders (all that is in them but hidden files) and globs; each file is a document of any bytes.

        At most `limit` bytes are taken, files in the order of a hash of their names.
        """
        given = [paths] if isinstance(paths, str | os.PathLike) else list(paths)
        if not given:
            raise ValueError("no text was given; give files, folders or globs")
        source = ", ".join(os.fspath(path) for path in given)
        files = {file: name for path in given for file, name in _find(os.path.expanduser(path)).items()}
        if not files:
            raise ValueError(f"{source} holds no files (hidden ones are skipped); give files, folders or globs")
        return _read(files, limit, source)

    @classmethod
    def from_documents(cls, documents: Iterable[bytes], source: str) -> Corpus:
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
        description = f"{source}; {how}: {sizes} bytes for train / validation / test"
        return cls(_hash(parts), description, *(_join(part) for part in parts))


@dataclass(frozen=True)
class Text:
    """Byte-level language modelling: the next byte, given those before it in the window.

    A window is `length` + 1 bytes in a row from one split, its start drawn uniformly from the bytes that have
    another one after them in their document; inputs are the first `length`, targets the last. Where a document ends
    within the window, what follows is not counted, so no target lies in another document than its context. For
    example, with length = 8, of a document that ends in "...return x\\n":

        input     e   t   u   r   n   _   x  \\n
        target    t   u   r   n   _   x  \\n   -

    The metric is bits per byte. `chance` is the cross-entropy of the test split under the frequencies of single bytes
    in the training split (add-one smoothed, so that a byte never seen costs a finite number of bits). `best` is 0,
    a bound that no model reaches: the entropy of the text is not known. It has no `level`.
    """

    name: ClassVar[str] = "text"

    corpus: Corpus
    length: int = 64
    positions: Positions = "rotary"

    vocabulary: ClassVar[int] = 256
    features: ClassVar[int] = 1
    classes: ClassVar[int] = 256
    causal: ClassVar[bool] = True
    metric: ClassVar[Literal["bits per byte"]] = "bits per byte"
    best: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        check_size(self.name, "length", self.length, least=1)
        check_choice(self.name, "positions", self.positions, get_args(Positions))
        for split in SPLITS:
            part: Documents = getattr(self.corpus, split)
            if part.targets < self.length:
                raise ValueError(
                    f"the text is too short for length {self.length}: the {split} split needs "
                    f"{self.length + 1} bytes, {len(part.data)} came ({self.corpus.description}); give more text "
                    f"(from about {20 * (self.length + 1)} bytes on) or a shorter length"
                )

    @classmethod
    def read(cls, paths: PathLike | Sequence[PathLike] = (), length: int = 64, positions: Positions = "rotary") -> Text:
        """The text at `paths` (see `Corpus.read`), or Python's standard library where none are given."""
        return cls(Corpus.read(paths) if paths else Corpus.standard_library(), length, positions)

    @property
    def data_hash(self) -> str:
        """Identifies the bytes and their split."""
        return self.corpus.data_hash

    @cached_property
    def chance(self) -> float:
        """Cross-entropy in bits per byte, of the test split under the byte frequencies of the training split."""
        seen = torch.bincount(self.corpus.train.data.long(), minlength=256).double() + 1
        met = torch.bincount(self.corpus.test.data.long(), minlength=256).double()
        return float(-(met / met.sum()) @ (seen / seen.sum()).log2())

    def sample(self, count: int, generator: torch.Generator, split: Split = "train") -> Examples:
        """`count` windows of one split, drawn from `generator` alone."""
        data, ends = getattr(self.corpus, split)
        # The n-th byte that has a successor in its document stands n + d bytes into the split, where d counts the
        # documents before its own, each of which has one byte without.
        nth = torch.randint(len(data) - len(ends), (count, 1), generator=generator)
        document = torch.searchsorted(ends - torch.arange(1, len(ends) + 1), nth, right=True)
        at = nth + document + torch.arange(self.length + 1)
        window = data[at.clamp(max=len(data) - 1)].long()
        counted = at[:, 1:] < ends[document]
        return Examples(window[:, :-1, None], window[:, 1:] * counted, counted)


def _find(path: str) -> dict[str, str]:
    """The files that one argument means, and their names: those do not depend on where the files lie."""
    if os.path.isdir(path):
        return _walk(path)
    if os.path.exists(path):
        return {os.path.realpath(path): os.path.basename(path)}
    if not glob.has_magic(path):
        raise ValueError(f"there is no text at {path}; give files, folders or globs that exist")
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        raise ValueError(f"the glob {path} matches nothing; give files, folders or globs that exist")
    return {file: name for match in matches for file, name in _find(match).items()}


def _walk(folder: str) -> dict[str, str]:
    files: dict[str, str] = {}
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = (name for name in folders if not name.startswith("."))
        for name in names:
            path = os.path.join(parent, name)
            if not name.startswith(".") and os.path.isfile(path):
                files[os.path.realpath(path)] = Path(path).relative_to(folder).as_posix()
    return files


def _read(files: dict[str, str], limit: int, source: str) -> Corpus:
    """The first `limit` bytes of the files, which are given with their names."""
    check_size("text", "limit", limit, least=1)
    documents: list[bytes] = []
    room = limit
    for path in sorted(files, key=lambda path: (sha256(files[path].encode()).digest(), path)):
        documents.append(_read_file(path, room))
        room -= len(documents[-1])
        if not room:
            break
    size = f"{limit - room:,} bytes" + ("" if room else f" (the limit; {len(files)} files were given)")
    return Corpus.from_documents(documents, f"{source}: {len(documents)} files, {size}")


def _read_file(path: str, size: int) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read(size)
    except OSError as error:
        error.filename = path  # of a failure after opening, the system does not say it
        _refuse(error)


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(f"the text {error.filename} cannot be read: {error.strerror}") from error


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


def _join(part: list[bytes]) -> Documents:
    kept = [document for document in part if document]  # a part of a very short document may be empty
    data = torch.frombuffer(bytearray(b"".join(kept)), dtype=torch.uint8) if kept else torch.empty(0).byte()
    return Documents(data, torch.tensor(list(accumulate(map(len, kept))), dtype=torch.int64))


def _hash(parts: list[list[bytes]]) -> str:
    digest = sha256()
    for split, part in zip(SPLITS, parts, strict=True):
        digest.update(f"{split} {[len(document) for document in part]}".encode())
        digest.update(b"".join(part))
    return digest.hexdigest()
