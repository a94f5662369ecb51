"""The tensors of a checkpoint, row by row.

A safetensors file is eight bytes of length, a JSON header that gives type, shape and place of every tensor, and the
tensors. So any row of any tensor is a range of bytes, and only such ranges are read. (The library that defines the
format reads slices of local files only, and through mapped memory.)
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from querykey.checkpoint.files import File, Source, torn
from querykey.checkpoint.headmap import CheckpointError

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
LONGEST_HEADER = 100_000_000  # bytes, as in the safetensors library


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file: type and shape as the header gives them, and its bytes `start … stop`."""

    type: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def dtype(self) -> torch.dtype:
        """The type as torch knows it."""
        if self.type not in DTYPES:
            raise CheckpointError(f"tensors of type {self.type} cannot be read; expected one of {', '.join(DTYPES)}")
        return DTYPES[self.type]


@runtime_checkable
class Store(Protocol):
    """The tensors of one checkpoint; `bytes_read` is what has been read of its files so far."""

    bytes_read: int

    @property
    def size(self) -> int:
        """Bytes of all files."""
        ...

    @property
    def names(self) -> Collection[str]:
        """All tensors."""
        ...

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of one of them."""
        ...

    def rows(self, name: str, rows: Int[Tensor, " n"], columns: bool = False) -> Shaped[Tensor, "n size"]:
        """These rows, in ascending order, of a matrix (`columns`: its columns) or a vector, in the type stored."""
        ...


def open_store(source: Source) -> Store:
    """The tensors in `source`: safetensors before pickles, an index before a single file."""
    for name, store in (("model.safetensors", Safetensors), ("pytorch_model.bin", Pickles)):
        if f"{name}.index.json" in source.names:
            return store(source, _weight_map(source, f"{name}.index.json"))
        if name in source.names:
            return store(source, name)
    held = ", ".join(sorted(source.names)) or "nothing"
    raise CheckpointError(
        f"'{source.place}' holds no weights: expected model.safetensors or pytorch_model.bin, whole or in shards "
        f"with an index; found {held}"
    )


class Safetensors:
    """A Store over safetensors files: one, by its name, or the shard of each tensor."""

    def __init__(self, source: Source, where: str | Mapping[str, str]) -> None:
        self.source = source
        self.bytes_read = 0
        self.headers: dict[str, dict[str, Stored]] = {}
        self.files: dict[str, File] = {}
        self.where = dict.fromkeys(self._header(where), where) if isinstance(where, str) else dict(where)

    @property
    def size(self) -> int:
        """As in Store."""
        return sum(self.source.file(shard).size for shard in set(self.where.values()))

    @property
    def names(self) -> Collection[str]:
        """As in Store."""
        return self.where.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """As in Store."""
        return self._stored(name).shape

    def rows(self, name: str, rows: Int[Tensor, " n"], columns: bool = False) -> Shaped[Tensor, "n size"]:
        """As in Store."""
        stored = self._stored(name)
        height, width = stored.shape if len(stored.shape) == 2 else (stored.shape[0], 1)
        runs = list(_runs(rows))
        if columns:
            spans = [(line * width + first, line * width + last) for line in range(height) for first, last in runs]
        else:
            spans = [(first * width, last * width) for first, last in runs]
        size = stored.dtype.itemsize
        content = self._read(self.where[name], [(stored.start + a * size, stored.start + b * size) for a, b in spans])
        values = torch.frombuffer(content, dtype=stored.dtype)
        return values.view(height, len(rows)).T if columns else values.view(len(rows), width)

    def _read(self, shard: str, spans: list[tuple[int, int]]) -> bytearray:
        """These bytes of a shard, one span after the other."""
        file = self.files[shard]
        content = bytearray(sum(stop - start for start, stop in spans))
        target, at = memoryview(content), 0
        for group in _near(spans, file.gap):
            start, stop = group[0][0], group[-1][1]
            self.bytes_read += stop - start
            if len(group) == 1:
                file.read_into(start, target[at : at + stop - start])
                at += stop - start
                continue
            whole = bytearray(stop - start)
            file.read_into(start, memoryview(whole))
            for first, last in group:
                target[at : at + last - first] = whole[first - start : last - start]
                at += last - first
        return content

    def _stored(self, name: str) -> Stored:
        shard = self.where[name]
        if name not in self._header(shard):
            raise CheckpointError(f"the index places {name} in {shard}, which does not hold it; download both again")
        return self._header(shard)[name]

    def _header(self, shard: str) -> dict[str, Stored]:
        if shard not in self.headers:
            file = self.files[shard] = self.source.file(shard)
            length = self._number(shard)
            if length > LONGEST_HEADER:
                raise CheckpointError(f"{shard} is not a safetensors file: its header would have {length} bytes")
            if 8 + length > file.size:
                raise torn(shard, 8 + length, file.size)
            text = bytes(self._read(shard, [(8, 8 + length)]))
            self.headers[shard] = _header(text, 8 + length, file)
        return self.headers[shard]

    def _number(self, shard: str) -> int:
        if self.files[shard].size < 8:
            raise torn(shard, 8, self.files[shard].size)
        return int.from_bytes(self._read(shard, [(0, 8)]), "little")


class Pickles:
    """A Store over files of torch.save, mapped into memory and read without running what they may contain."""

    def __init__(self, source: Source, where: str | Mapping[str, str]) -> None:
        self.bytes_read, self.size = 0, 0
        self.tensors: dict[str, Tensor] = {}
        for shard in [where] if isinstance(where, str) else sorted(set(where.values())):
            self.tensors |= _load(source, shard)
            self.size += source.file(shard).size

    @property
    def names(self) -> Collection[str]:
        """As in Store."""
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """As in Store."""
        return tuple(self.tensors[name].shape)

    def rows(self, name: str, rows: Int[Tensor, " n"], columns: bool = False) -> Shaped[Tensor, "n size"]:
        """As in Store."""
        tensor = self.tensors[name]
        picked = tensor.T[rows] if columns else tensor[rows].reshape(len(rows), -1)
        self.bytes_read += picked.numel() * picked.itemsize
        return picked


def _load(source: Source, shard: str) -> dict[str, Tensor]:
    """The tensors of one pickled file of a folder."""
    if source.revision:
        raise CheckpointError(
            f"'{source.place}' holds {shard} only, which cannot be read in parts from afar; download it and give "
            "its folder"
        )
    try:
        content = torch.load(source.path(shard), map_location="cpu", mmap=True, weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        reason = str(error).strip().splitlines()[0]
        raise CheckpointError(f"{shard} cannot be read as weights alone: {reason}; save it again") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{shard} holds a {type(content).__name__}, expected a dictionary of tensors")
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _weight_map(source: Source, index: str) -> dict[str, str]:
    """The shard of each tensor, by the index."""
    try:
        weight_map = {str(k): str(v) for k, v in json.loads(source.path(index).read_bytes())["weight_map"].items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({error!r}); download or save it again") from error
    missing = sorted(set(weight_map.values()) - source.names)
    if missing:
        raise CheckpointError(
            f"{index} names {', '.join(missing)}, which '{source.place}' does not hold; download it again"
        )
    return weight_map


def _header(text: bytes, start: int, file: File) -> dict[str, Stored]:
    """What a header says, checked against the size of the file; tensors lie from byte `start`."""
    header: dict[str, Stored] = {}
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        for name, entry in entries.items():
            first, last = (start + offset for offset in entry["data_offsets"])
            header[name] = Stored(entry["dtype"], tuple(entry["shape"]), first, last)
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(
            f"{file.name} has no readable safetensors header ({error!r}); download it again"
        ) from error
    for name, stored in header.items():
        if stored.stop - stored.start != math.prod(stored.shape) * stored.dtype.itemsize:
            raise CheckpointError(
                f"{file.name}: {name} has {stored.stop - stored.start} bytes, not what its shape needs"
            )
    end = max((stored.stop for stored in header.values()), default=start)
    if end > file.size:
        raise torn(file.name, end, file.size)
    return header


def _runs(rows: Int[Tensor, " n"]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as (first, one after the last) of each stretch without a gap."""
    breaks = (rows.diff() != 1).nonzero().flatten() + 1
    edges = [0, *breaks.tolist(), len(rows)]
    for a, b in pairwise(edges):
        yield int(rows[a]), int(rows[b - 1]) + 1


def _near(spans: Iterable[tuple[int, int]], gap: int) -> Iterator[list[tuple[int, int]]]:
    """Ascending spans, in groups of those that touch or lie less than `gap` apart."""
    group: list[tuple[int, int]] = []
    for span in spans:
        if group and span[0] - group[-1][1] > gap:
            yield group
            group = []
        group.append(span)
    if group:
        yield group
