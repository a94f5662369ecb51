"""Rows of a model's parameters, read from the tensors of a checkpoint: found, checked, dequantised."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querykey.checkpoint.adapter import LowRank
from querykey.checkpoint.headmap import CheckpointError
from querykey.checkpoint.names import Place
from querykey.checkpoint.storage import Store

SCALES = {"weight_scale_inv": 1.0, "weight_scale": 1.0, "SCB": 127.0}  # tensors beside `weight`, with their divisors
ZEROS = "weight_zero_point"


class Parameters:
    """The parameters of a model, of given `shapes`, at their `places` in `store`, with the `changes` of an adapter."""

    def __init__(
        self,
        store: Store,
        places: Mapping[str, Place],
        shapes: Mapping[str, tuple[int, ...]],
        quantization: Any = None,
        changes: Mapping[str, LowRank] | None = None,
    ) -> None:
        self.store, self.places, self.shapes, self.changes = store, places, shapes, changes or {}
        self.quantization = quantization if isinstance(quantization, dict) else {}

    def rows(self, name: str, rows: Int[Tensor, " n"] | None, columns: bool = False) -> Float[Tensor, "n size"]:
        """These rows, ascending (`columns`: columns), of a parameter, in the type that is stored; None: all.

        Rows that an adapter changes are float32 at least.
        """
        rows = torch.arange(self.shapes[name][1 if columns else 0]) if rows is None else rows
        values = self._unchanged(name, rows, columns)
        change = self.changes.get(name)
        return values if change is None else change.rows(rows, columns) + values

    def _unchanged(self, name: str, rows: Int[Tensor, " n"], columns: bool) -> Float[Tensor, "n size"]:
        place, shape = self.places[name], self.shapes[name]
        if place.rows is None:
            self._check(name, place.names[0], shape)
            return self._stored(place.names[0], rows, columns)
        if columns:
            raise CheckpointError(f"{place.names[0]} cannot be read by columns, for {name}")
        return self._collected(name, place, place.rows[rows])

    def lacking(self, missing: list[str], layer: str | None) -> CheckpointError:
        """The error for a checkpoint without some of the parameters of a layer, or (None) without all of all layers."""
        if self.quantization:
            return self._quantized(missing[0], "is not there under its name")
        if layer:
            return CheckpointError(f"the checkpoint lacks {', '.join(missing)}, but holds other weights of {layer}")
        held = ", ".join(sorted(self.store.names)[:3])
        found = f"found {held}, …" if held else "and it holds no tensor at all"
        return CheckpointError(f"the checkpoint holds no weights of attention: expected {missing[0]}, {found}")

    def _collected(self, name: str, place: Place, rows: Int[Tensor, " n"]) -> Float[Tensor, "n size"]:
        """Rows, in any order, of several stored tensors that are concatenated."""
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
        if values.itemsize == 1:
            values = self._dequantized(name, values, rows, columns)
        if not values.is_floating_point():
            raise self._quantized(name, f"holds {str(values.dtype).removeprefix('torch.')}")
        if not values.sum().isfinite() and not values.isfinite().all():  # the sum alone is quick, but may overflow
            bad = int((~values.isfinite()).sum())
            raise CheckpointError(
                f"{name} holds {bad} values that are NaN or infinite, of {values.numel()} that were read"
            )
        return values

    def _dequantized(self, name: str, values: Tensor, rows: Int[Tensor, " n"], columns: bool) -> Tensor:
        """8-bit floats or integers times their scales: one for all, for each row, or for each block."""
        around = name.removesuffix("weight")
        found = [(around + end, divisor) for end, divisor in SCALES.items() if around + end in self.store.names]
        if not found or values.dtype not in (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2):
            raise self._quantized(
                name, f"holds {str(values.dtype).removeprefix('torch.')} without scales that are known"
            )
        (scale, divisor), values = found[0], values.float()
        if around + ZEROS in self.store.names:
            values = values - self._spread(name, around + ZEROS, rows, columns, values)
        return values * self._spread(name, scale, rows, columns, values) / divisor

    def _spread(
        self, name: str, scale: str, rows: Int[Tensor, " n"], columns: bool, values: Float[Tensor, "n size"]
    ) -> Float[Tensor, "#n #size"]:
        """The scale of each of `values`: a number, one number for each row, or a matrix with one for each block."""
        shape = self.store.shape(scale)
        if len(shape) > 2:
            raise self._quantized(name, f"has scales of the shape {shape}")
        height, width = (*shape, 1, 1)[:2]
        scales = self.store.rows(scale, torch.arange(height)).view(height, width).float()
        sizes = self.store.shape(name)
        blocks = [-(-size // count) for size, count in zip(sizes, (height, width), strict=True)]
        if len(shape) == 2 and 1 not in shape:
            blocks = self.quantization.get("weight_block_size") or blocks
        others = torch.arange(values.shape[1])
        down, across = (others, rows) if columns else (rows, others)
        found = scales[down // blocks[0]][:, across // blocks[1]]
        return found.T if columns else found

    def _quantized(self, name: str, what: str) -> CheckpointError:
        method = self.quantization.get("quant_method", "an unknown method")
        return CheckpointError(
            f"{name} is quantised ({method}: it {what}) in a way that is not known here; "
            "dequantise the checkpoint with the library that made it, or give the original"
        )
