"""Tensors in safetensors files, row by row.

A safetensors file is eight bytes of length, a JSON header with the type, shape and place of every tensor, and the
tensors. So every row of a tensor is a range of bytes, and only such ranges are read. (The library that defines the
format reads slices of local files only, and through mapped memory.)
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

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
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
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
        if stored.type not in DTYPES:
            raise CheckpointError(f"{name} is of type {stored.type}; expected one of {', '.join(DTYPES)}")
        dtype = DTYPES[stored.type]
        height, width = stored.shape if len(stored.shape) == 2 else (math.prod(stored.shape[:1]), 1)
        runs = list(_runs(rows))
        if columns:
            spans = [(line * width + first, line * width + last) for line in range(height) for first, last in runs]
        else:
            spans = [(first * width, last * width) for first, last in runs]
        size = dtype.itemsize
        content = self._read(self.where[name], [(stored.start + a * size, stored.start + b * size) for a, b in spans])
        values = torch.frombuffer(content, dtype=dtype)
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
            length = self._length(shard)
            if length > LONGEST_HEADER:
                raise CheckpointError(f"{shard} is not a safetensors file: its header would have {length} bytes")
            if 8 + length > file.size:
                raise torn(shard, 8 + length, file.size)
            text = bytes(self._read(shard, [(8, 8 + length)]))
            self.headers[shard] = _parsed(text, 8 + length, file)
        return self.headers[shard]

    def _length(self, shard: str) -> int:
        if self.files[shard].size < 8:
            raise torn(shard, 8, self.files[shard].size)
        return int.from_bytes(self._read(shard, [(0, 8)]), "little")


def _parsed(text: bytes, start: int, file: File) -> dict[str, Stored]:
    """The content of a header, checked against the size of the file; tensors begin at byte `start`."""
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
        dtype = DTYPES.get(stored.type)  # only sizes of known types can be checked
        if dtype and stored.stop - stored.start != math.prod(stored.shape) * dtype.itemsize:
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
