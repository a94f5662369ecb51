"""The tensors of a checkpoint, row by row: one protocol for all kinds of files, and which files hold the weights."""

from __future__ import annotations

import json
from collections.abc import Collection
from pathlib import PurePath
from typing import Protocol, runtime_checkable

from jaxtyping import Int, Shaped
from torch import Tensor

from querykey.checkpoint.files import Source
from querykey.checkpoint.gguf_file import Gguf
from querykey.checkpoint.headmap import CheckpointError
from querykey.checkpoint.pickle_file import open_pickles
from querykey.checkpoint.safetensors_file import Safetensors

WEIGHTS = ("model.safetensors", "pytorch_model.bin")
SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf")  # of files that can be given alone


@runtime_checkable
class Store(Protocol):
    """The tensors of one checkpoint; `bytes_read` counts what has been read of its files so far."""

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
        """The shape of one tensor."""
        ...

    def rows(self, name: str, rows: Int[Tensor, " n"], columns: bool = False) -> Shaped[Tensor, "n size"]:
        """These rows, in ascending order, of a matrix (`columns`: its columns) or a vector, in the type stored."""
        ...


def open_store(source: Source, variant: str | None = None) -> Store:
    """The tensors in `source`."""
    first, where = weight_files(source, variant)
    if first.endswith(".gguf"):
        return Gguf(source.path(first))
    if first.endswith(".safetensors"):
        return Safetensors(source, where or first)
    return open_pickles(source, where.values() if where else [first])


def weight_files(source: Source, variant: str | None = None) -> tuple[str, dict[str, str] | None]:
    """The file with the weights, or the first of its shards with the shard of each tensor.

    In the order in which transformers looks for them, so that tables and running models read the same files:
    safetensors before pickles, a whole file before an index. Raises CheckpointError if there is none.
    """
    if source.only:
        return source.only, None
    for name in WEIGHTS:
        whole, index = with_variant(name, variant), with_variant(f"{name}.index.json", variant)
        if whole in source.names:
            return whole, None
        if index in source.names:
            where = _weight_map(source, index)
            return min(where.values()), where
    raise _none(source, variant)


def with_variant(name: str, variant: str | None) -> str:
    """`model.fp16.safetensors` for the variant fp16 of `model.safetensors`."""
    path = PurePath(name)
    return name if variant is None else f"{path.stem}.{variant}{path.suffix}"


def _none(source: Source, variant: str | None) -> CheckpointError:
    """The error for a checkpoint without weights: what is there in their place."""
    expected = " or ".join(with_variant(name, variant) for name in WEIGHTS)
    single = sorted(name for name in source.names if name.endswith(SUFFIXES) and "-of-" not in name)
    advice = f"; to read another file, give its path, for example {single[0]}" if single else ""
    rest = sorted(source.names.difference(single))
    found = [*single[:4], *rest[: 4 - len(single[:4])], *["…"] * (len(source.names) > 4)]
    held = ", ".join(found) or "nothing"
    return CheckpointError(
        f"'{source.place}' holds no weights: expected {expected}, whole or in shards with an index; found {held}"
        f"{advice}"
    )


def _weight_map(source: Source, index: str) -> dict[str, str]:
    """The shard of each tensor, by the index."""
    try:
        weight_map = {str(k): str(v) for k, v in json.loads(source.path(index).read_bytes())["weight_map"].items()}
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{index} is not an index of shards ({error!r}); download or save it again") from error
    missing = sorted(set(weight_map.values()) - source.names)
    if missing or not weight_map:
        raise CheckpointError(
            f"{index} names {', '.join(missing) or 'no tensor'}, which '{source.place}' does not hold; download it "
            "again"
        )
    return weight_map
