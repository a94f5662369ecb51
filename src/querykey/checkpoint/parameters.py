"""Rows of a model's parameters, out of the tensors of a checkpoint: found, checked, dequantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querykey.checkpoint.headmap import CheckpointError
from querykey.checkpoint.names import Place
from querykey.checkpoint.storage import Store

SCALES = "_scale_inv"  # what the scales of a weight in blocks of 8-bit floats are called, after its name


class Parameters:
    """The parameters of a model, of given `shapes`, at their `places` in `store`."""

    def __init__(
        self, store: Store, places: Mapping[str, Place], shapes: Mapping[str, tuple[int, ...]], quantization: Any
    ) -> None:
        self.store, self.places, self.shapes = store, places, shapes
        self.quantization = quantization if isinstance(quantization, dict) else {}

    def rows(self, name: str, rows: Int[Tensor, " n"] | None, columns: bool = False) -> Float[Tensor, "n size"]:
        """These rows, ascending (`columns`: columns), of a parameter; None: all. In the type that is stored."""
        place, shape = self.places[name], self.shapes[name]
        rows = torch.arange(shape[1 if columns else 0]) if rows is None else rows
        if place.rows is None:
            self._check(name, place.names[0], shape)
            return self._stored(place.names[0], rows, columns)
        if columns:
            raise CheckpointError(f"{place.names[0]} cannot be read by columns, for {name}")
        return self._collected(name, place, place.rows[rows])

    def lacking(self, missing: list[str], layer: str | None) -> CheckpointError:
        """The error for a checkpoint that lacks some of the parameters of a layer, or (None) all of all layers."""
        if self.quantization:
            return self._quantized(missing[0], "is not there under its name")
        if layer:
            return CheckpointError(f"the checkpoint lacks {', '.join(missing)}, but holds other weights of {layer}")
        held = ", ".join(sorted(self.store.names)[:3])
        found = f"found {held}, …" if held else "and it holds no tensor at all"
        return CheckpointError(f"the checkpoint holds no weights of attention: expected {missing[0]}, {found}")

    def _collected(self, name: str, place: Place, rows: Int[Tensor, " n"]) -> Float[Tensor, "n size"]:
        """Rows, in any order, of several stored tensors that lie below one another."""
        parts, first = [], 0
        for stored in place.names:
            height = self.store.shape(stored)[0]
            self._check(name, stored, (height, *self.shapes[name][1:]))
            mine = ((rows >= first) & (rows < first + height)).nonzero().flatten()
            order = mine[rows[mine].argsort()]
            if len(order):
                parts.append((order, self._stored(stored, rows[order] - first, False)))
            first += height
        back = torch.cat([order for order, _ in parts]).argsort()
        return torch.cat([values for _, values in parts])[back]

    def _check(self, name: str, stored: str, expected: tuple[int, ...]) -> None:
        shape = self.store.shape(stored)
        if shape == expected:
            return
        if self.quantization:
            raise self._quantized(stored, f"has the shape {shape}")
        raise CheckpointError(
            f"{stored} has the shape {shape}, and {expected} by the configuration (there: {name}); "
            "config.json and the weights do not belong together"
        )

    def _stored(self, name: str, rows: Int[Tensor, " n"], columns: bool) -> Float[Tensor, "n size"]:
        """Rows of a stored tensor, as floating-point numbers that are finite."""
        values = self.store.rows(name, rows, columns)
        if not values.is_floating_point():
            raise self._quantized(name, f"holds {str(values.dtype).removeprefix('torch.')}")
        if values.itemsize == 1:
            values = self._dequantized(name, values.float(), rows, columns)
        if not values.sum().isfinite() and not values.isfinite().all():  # the sum alone is quick, but may overflow
            bad = int((~values.isfinite()).sum())
            raise CheckpointError(
                f"{name} holds {bad} values that are NaN or infinite, of {values.numel()} that were read"
            )
        return values

    def _dequantized(
        self, name: str, values: Float[Tensor, "n size"], rows: Int[Tensor, " n"], columns: bool
    ) -> Float[Tensor, "n size"]:
        """8-bit floats times the scale of the block that each lies in."""
        block = self.quantization.get("weight_block_size")
        if not block or name + SCALES not in self.store.names:
            raise self._quantized(name, "holds 8-bit floats without scales per block")
        height, width = self.store.shape(name + SCALES)
        scales = self.store.rows(name + SCALES, torch.arange(height)).view(height, width).float()
        down, across = rows // block[0], torch.arange(values.shape[1]) // block[1]
        if columns:
            down, across = torch.arange(values.shape[1]) // block[0], rows // block[1]
            return values * scales[down[None], across[:, None]]
        return values * scales[down[:, None], across[None]]

    def _quantized(self, name: str, what: str) -> CheckpointError:
        method = self.quantization.get("quant_method", "an unknown method")
        return CheckpointError(
            f"{name} is quantised ({method}: it {what}) in a way that cannot be undone by rows; "
            "dequantise the checkpoint with the library that made it, or give the original"
        )
