"""Heat maps and their colour scales as HTML: a value is the opacity of a colour, so that a map fits any page.

Without a centre there is one colour, and the opacity is the share of the way from the lower limit to the upper. With a
centre this has no colour, and values above and below it have two, which `flipped` exchanges. NaN has no colour either.
"""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Mapping, Sequence
from html import escape
from math import ceil

import numpy as np
from jaxtyping import Float, UInt8

from querykey.report.figures import Axis, labels

_AMOUNT, _ABOVE, _BELOW = (112, 74, 190), (213, 94, 0), (0, 114, 178)


def heatmap(
    title: str,
    values: Float[np.ndarray, "rows columns"],
    *,
    limits: tuple[float, float],
    x_label: str,
    y_label: str,
    names: Sequence[str] | None = None,
    rows: Sequence[str] | None = None,
    centre: float | None = None,
    flipped: bool = False,
) -> str:
    """A matrix, row 0 on top. Without names, of its rows and columns alike, these are numbered from 0.

    `rows` are the numbers of the rows where they are others.

    `scale` shows what the colours stand for.
    """
    height, width = values.shape
    wide = min(2.0, max(0.2, height / width))
    labelled = "named" if names else "numbered"
    across, down = _cells(names, width), _cells(names, height, rows)
    pixels = _png(_pixels(values, limits, centre, flipped))
    return (
        f'<div class="map {labelled}" role="img" aria-label="{escape(title)}" data-shape="{height},{width}">'
        f'<span class="down">{escape(y_label)}</span><div class="ys">{labels(down, "top")}</div>'
        f'<img alt="" style="aspect-ratio:{1 / wide:.3f}" src="data:image/png;base64,{pixels}">'
        f'<div class="xs">{labels(across, "left")}</div><span class="across">{escape(x_label)}</span></div>'
    )


def scale(
    title: str,
    *,
    limits: tuple[float, float],
    centre: float | None = None,
    flipped: bool = False,
    marks: Mapping[str, float] | None = None,
) -> str:
    """The colours of a heat map and what they stand for; `marks` are named values."""
    axis = Axis(*limits)
    values = np.linspace(*limits, 256)[None]
    pixels = _png(_pixels(values, limits, centre, flipped))
    named = "".join(
        f'<span style="--at:{axis.place(x):.2f}%">{escape(name)}</span>' for name, x in (marks or {}).items()
    )
    return (
        f'<div class="scale" role="img" aria-label="{escape(title)}"><div class="marks">{named}</div>'
        f'<img alt="" src="data:image/png;base64,{pixels}"><div class="xs">{labels(axis.ticks(), "left")}</div>'
        f'<span class="across">{escape(title)}</span></div>'
    )


def _cells(names: Sequence[str] | None, cells: int, numbers: Sequence[str] | None = None) -> list[tuple[float, str]]:
    """The middle of each cell with its name, or of about seven with their numbers."""
    every, called = 1 if names else ceil(cells / 7), names or numbers
    return [(100 * (n + 0.5) / cells, called[n] if called else str(n)) for n in range(0, cells, every)]


def _pixels(
    values: Float[np.ndarray, "rows columns"], limits: tuple[float, float], centre: float | None, flipped: bool
) -> UInt8[np.ndarray, "rows columns 4"]:
    """Red, green, blue and opacity of each value."""
    low, high = limits
    pixels = np.zeros((*values.shape, 4), np.uint8)
    if centre is None:
        share = (values - low) / (high - low)
        pixels[..., :3] = _AMOUNT
    else:
        share = (values - centre) / max(abs(low - centre), abs(high - centre))
        pixels[..., :3] = np.where(((share > 0) != flipped)[..., None], _ABOVE, _BELOW)
        share = np.abs(share)
    pixels[..., 3] = np.nan_to_num(255 * np.clip(share, 0, 1)).round()
    return pixels


def _png(pixels: UInt8[np.ndarray, "rows columns 4"]) -> str:
    """A PNG file with an alpha channel, as base64."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = struct.pack(">IIBBBBB", width, height, 8, 6, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 9)) + chunk(b"IEND", b"")
    return base64.b64encode(file).decode()
