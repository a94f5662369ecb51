"""Tensors in GGUF files, the format of llama.cpp, row by row: only the rows that are asked for are dequantised.

llama.cpp stores some tensors in another form than transformers: rows of queries and keys in another order, gains with 1
added, matrices transposed. transformers knows how to undo that. Its functions are run here on row numbers, which gives
the place of every row; on vectors, which are short, they are run as they are.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import cache, cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int, Shaped
from torch import Tensor

from querykey.checkpoint.files import first_line
from querykey.checkpoint.headmap import CheckpointError
from querykey.extras import load


class Order(NamedTuple):
    """Row i of a matrix is row `rows[i]` of the stored one, or its column if that is `transposed`."""

    rows: Int[np.ndarray, " n"]
    transposed: bool


class Gguf:
    """A Store over one GGUF file; tensors have the names of the file and the form of transformers."""

    def __init__(self, path: Path) -> None:
        self.path, self.bytes_read, self.size = path, 0, path.stat().st_size
        try:
            self._reader = load("gguf", "gguf").GGUFReader(path)
        except (ValueError, OSError, IndexError, KeyError, UnicodeDecodeError) as error:
            raise CheckpointError(f"{path.name} cannot be read as GGUF: {first_line(error)}") from error
        self.architecture = str(self._reader.fields["general.architecture"].contents())
        self._tensors = {str(tensor.name): tensor for tensor in self._reader.tensors}
        self._form = cache(self._find_form)

    @property
    def names(self) -> Collection[str]:
        """As in Store."""
        return self._tensors.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """As in Store."""
        shape = tuple(reversed([int(size) for size in self._tensors[name].shape]))
        return shape[::-1] if len(shape) == 2 and self._form(name).transposed else shape

    def rows(self, name: str, rows: Int[Tensor, " n"], columns: bool = False) -> Shaped[Tensor, "n size"]:
        """As in Store."""
        if len(self.shape(name)) == 1:
            return self._converted(name, self._read(name, None))[rows.numpy(), None]
        form = self._form(name)
        if form.transposed == columns:
            return self._read(name, form.rows[rows.numpy()])
        values = self._read(name, None if form.transposed else form.rows)
        return values.T[rows].contiguous()

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration of the model, with the names of transformers."""
        library = load("transformers.modeling_gguf_pytorch_utils", "inspect")
        try:
            config: dict[str, Any] = library.load_gguf_checkpoint(str(self.path))["config"]
            return config
        except Exception as error:  # the library raises what it likes
            raise CheckpointError(f"{self.path.name} cannot be used by transformers: {first_line(error)}") from error

    def by_model(self, layers: int) -> Any:
        """The names of the file by those of modules in transformers, as the gguf package has them."""
        gguf = load("gguf", "gguf")
        found = [key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == self.architecture]
        if not found:
            raise CheckpointError(
                f"{self.path.name} is of the architecture '{self.architecture}', which the installed gguf package does "
                "not know; a newer one may"
            )
        return gguf.get_tensor_name_map(found[0], layers)

    def _read(self, name: str, rows: Int[np.ndarray, " n"] | None) -> Shaped[Tensor, "..."]:
        """Rows as they are stored, dequantised."""
        tensor = self._tensors[name]
        data = np.asarray(tensor.data if rows is None else tensor.data[rows])
        self.bytes_read += data.nbytes
        values = data if data.dtype.kind == "f" else load("gguf", "gguf").dequantize(data, tensor.tensor_type)
        return torch.from_numpy(np.array(values))

    def _find_form(self, name: str) -> Order:
        height, width = reversed([int(size) for size in self._tensors[name].shape])
        numbers = np.broadcast_to(np.arange(height, dtype=np.int32)[:, None], (height, width))
        found = np.asarray(self._processor.process(numbers, name).weights)
        transposed = bool((found[0] != found[0, 0]).any())
        rows = found[0] if transposed else found[:, 0]
        if (found != (rows if transposed else rows[:, None])).any() or len(np.unique(rows)) != height:
            raise CheckpointError(f"{self.path.name}: {name} cannot be converted by rows")
        return Order(rows, transposed)

    def _converted(self, name: str, vector: Tensor) -> Tensor:
        return torch.from_numpy(np.array(self._processor.process(vector.numpy(), name).weights))

    @cached_property
    def _processor(self) -> Any:
        """What undoes the changes of llama.cpp."""
        library = load("transformers.modeling_gguf_pytorch_utils", "inspect")
        kind = library.TENSOR_PROCESSORS.get(self.architecture, library.TensorProcessor)
        return kind(config=self.config)
