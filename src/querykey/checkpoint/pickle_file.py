"""Tensors in files of torch.save, mapped into memory and read without running code that they may contain."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from querykey.checkpoint.files import RemoteFile, Source, first_line
from querykey.checkpoint.headmap import CheckpointError

WRAPPERS = ("state_dict", "model_state_dict", "model", "module")  # keys of training checkpoints that hold the weights


class Tensors:
    """A Store over tensors in memory, or mapped into it; `size` is the number of bytes of all of them."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.tensors, self.bytes_read = tensors, 0
        self.size = sum(tensor.nbytes for tensor in tensors.values())

    @property
    def names(self) -> Collection[str]:
        """As in Store."""
        return self.tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """As in Store."""
        return tuple(self.tensors[name].shape)

    def rows(self, name: str, rows: Int[Tensor, " n"], columns: bool = False) -> Shaped[Tensor, "n size"]:
        """As in Store."""
        tensor = self.tensors[name].detach()
        rows = rows.to(tensor.device)
        picked = (tensor.T[rows] if columns else tensor[rows].reshape(len(rows), -1)).cpu()
        self.bytes_read += picked.nbytes
        return picked


def open_pickles(source: Source, shards: Iterable[str]) -> Tensors:
    """The tensors of these files."""
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(shards)):
        if isinstance(source.file(shard), RemoteFile):
            raise CheckpointError(
                f"'{source.place}' holds {shard} only, which cannot be read in parts from the Hub; download it and "
                "give its folder"
            )
        tensors |= _loaded(source.path(shard))
    return Tensors(tensors)


def _loaded(path: Path) -> dict[str, Tensor]:
    """The tensors of one file, from the dictionary that holds the weights."""
    content = _unpickled(path)
    for key in WRAPPERS:
        inner = content.get(key) if isinstance(content, dict) else None
        if isinstance(inner, dict) and any(isinstance(value, Tensor) for value in inner.values()):
            content = inner
            break
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path.name} holds a {type(content).__name__}; expected a dictionary of tensors, as state_dict() gives it"
        )
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}


def _unpickled(path: Path) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"):  # advice on old formats, printed for each file
            return torch.load(path, map_location="cpu", mmap=is_zipfile(path), weights_only=True)
    except Exception as error:  # torch raises many types on a file that is damaged or something else
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found:
            raise CheckpointError(
                f"{path.name} holds a Python object ({found[1]}), not only tensors; load it where that class is "
                "defined, and save its state_dict() instead"
            ) from error
        reason = first_line(RuntimeError(str(error).rpartition("WeightsUnpickler error:")[2]))
        raise CheckpointError(f"{path.name} cannot be read as weights alone: {reason}; save it again") from error
