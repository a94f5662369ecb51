"""Charts of reports as HTML: full width at any size of screen, in one size of type, with values on hover.

A chart is a string that goes into a page with `style.css`. Places are percentages of its width, so that nothing is
scaled: rows of estimates and bars are plain elements, curves are one stretched SVG.

Each design has one look, its colour, marker and dashes, in every report: see `palette`. Colours come in a shade for
light and one for dark pages, as the variables ``--d0`` to ``--d9`` of the style sheet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import chain, count
from math import ceil, isfinite, log10
from typing import NamedTuple

from querykey.report.numbers import number


class Colour(NamedTuple):
    """A shade with contrast 3 or more on white, and one on near-black."""

    light: str
    dark: str


class Look(NamedTuple):
    """How a design is drawn: the number of its colour, its marker (a letter, as matplotlib has them) and its dashes."""

    colour: int
    marker: str
    dashes: str


class Axis(NamedTuple):
    """From values to places in percent; `turned` counts from the high end."""

    low: float
    high: float
    turned: bool = False

    def place(self, value: float) -> float:
        """The place of a value; what lies beyond an end is there."""
        share = (value - self.low) / (self.high - self.low)
        return 100 * min(1.0, max(0.0, 1 - share if self.turned else share))

    def ticks(self) -> list[tuple[float, str]]:
        """About five round values with their texts."""
        raw = (self.high - self.low) / 5
        size = 10.0 ** math.floor(log10(raw))
        step = size * next(factor for factor in (1, 2, 5, 10) if factor * size >= raw * 0.999)
        digits = max(0, -math.floor(log10(step)))
        first = ceil(self.low / step - 1e-9)
        values = [n * step for n in range(first, math.floor(self.high / step + 1e-9) + 1)]
        return [(self.place(value), number(value, digits)) for value in values]


@dataclass(frozen=True)
class Curve:
    """A line with a band around it."""

    label: str
    look: Look
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Estimate:
    """A point with its interval, which may be infinite, the single values that it sums up, and what counts as zero."""

    label: str
    look: Look
    value: float
    low: float
    high: float
    values: Sequence[float] = ()
    margin: float = 0.0


COLOURS = (
    Colour("#1b1d22", "#e8e8e4"), Colour("#0072b2", "#56b4e9"), Colour("#d55e00", "#ff9a5c"),
    Colour("#008a63", "#35c99a"), Colour("#b8508a", "#e79ac6"), Colour("#7440b8", "#b79cf5"),
    Colour("#8a6100", "#d8b24a"), Colour("#0b7f95", "#6fd3e6"), Colour("#667300", "#bccb52"),
    Colour("#a32a2a", "#f28b82"),
)  # fmt: skip
# Designs that studies have most often; any other takes the next look that is free.
_KNOWN = ("q,k,v", "q=k,v", "q,k=v", "q=v,k", "q=k=v", "q=k,v+core=full", "q=k,v+selfmask", "q=k,v+core=signed")
_MARKERS = {
    "o": "M6 1.6a4.4 4.4 0 1 0 .01 0Z",
    "s": "M2 2h8v8H2Z",
    "^": "M6 1.2 11 10.2H1Z",
    "D": "M6 .6 11.4 6 6 11.4.6 6Z",
    "v": "M6 10.8 1 1.8H11Z",
    "P": "M4.3 1h3.4v3.3H11v3.4H7.7V11H4.3V7.7H1V4.3h3.3Z",
    "X": "M3.4 1 6 3.6 8.6 1 11 3.4 8.4 6 11 8.6 8.6 11 6 8.4 3.4 11 1 8.6 3.6 6 1 3.4Z",
}
_DASHES = ("", "7 3", "2 3", "9 3 2 3")


def palette(designs: Iterable[str]) -> dict[str, Look]:
    """The look of each design: that of its own for the usual ones, the next free ones for others, in this order."""
    names = list(dict.fromkeys(designs))
    taken = {_KNOWN.index(name) for name in names if name in _KNOWN}
    left = (n for n in range(len(_KNOWN)) if n not in taken)
    free = chain(range(len(_KNOWN), len(COLOURS)), left, count(len(COLOURS)))
    return {name: _look(_KNOWN.index(name) if name in _KNOWN else next(free)) for name in names}


def _look(n: int) -> Look:
    markers = tuple(_MARKERS)
    return Look(n % len(COLOURS), markers[n % len(markers)], _DASHES[n % len(_DASHES)])


def marker(look: Look) -> str:
    """The marker of a design, for legends and tables."""
    path = f'<path d="{_MARKERS[look.marker]}"/>'
    return f'<svg class="mark d{look.colour}" viewBox="0 0 12 12" aria-hidden="true">{path}</svg>'


def intervals(title: str, estimates: Sequence[Estimate], *, x_label: str, lower_is_better: bool = False) -> str:
    """Estimates below each other, against 0, each with its interval and the band of its margin; better is right.

    Args:
        title: read to those who cannot see the chart.
        estimates: from top to bottom; one that is not finite has an empty row.
        x_label: what is estimated, with its unit.
        lower_is_better: turns the axis around.
    """
    low, high = _reach(estimates)
    axis = Axis(low, high, turned=lower_is_better)
    rows = [_row(marker(e.look), e.label, _estimate(e, axis), _told(e)) for e in estimates]
    return _chart(title, rows, axis, x_label)


def bars(title: str, bars: Sequence[tuple[str, Look, float]], *, x_label: str) -> str:
    """Horizontal bars from 0, each with its value."""
    most = max((value for *_, value in bars if isfinite(value)), default=0.0) or 1.0
    axis = Axis(0.0, 1.18 * most)
    rows = []
    for label, look, value in bars:
        shown = number(value)
        width = axis.place(value) if isfinite(value) else 0.0
        drawn = f'<i class="bar d{look.colour}" style="width:{width:.2f}%"></i>'
        drawn += f'<b class="value" style="left:{width:.2f}%">{shown}</b>'
        rows.append(_row(marker(look), label, drawn, f"{label}: {shown}"))
    return _chart(title, rows, axis, x_label)


def curves(
    title: str, lines: Sequence[Curve], *, x_label: str, y_label: str, levels: Mapping[str, float] | None = None
) -> str:
    """Lines with bands over a common x axis, and named horizontal levels such as chance.

    A level far outside of what the lines span is left out, for it would flatten them.
    """
    xs, ys = [x for c in lines for x in c.x], [y for c in lines for y in (*c.low, *c.high)]
    pad = 0.06 * (max(ys) - min(ys)) or 0.5
    low, high = min(ys) - pad, max(ys) + pad
    near = {name: y for name, y in (levels or {}).items() if low - 3 * pad <= y <= high + 3 * pad}
    x_axis = Axis(min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1)
    y_axis = Axis(min([low, *near.values()]), max([high, *near.values()]), turned=True)
    drawn = [
        f'<line class="level" x1="0" x2="100" y1="{y_axis.place(y):.2f}" y2="{y_axis.place(y):.2f}"/>'
        for y in near.values()
    ]
    drawn += [_line(curve, x_axis, y_axis) for curve in lines]
    named = "".join(
        f'<span class="named" style="top:{y_axis.place(y):.2f}%">{escape(name)}</span>' for name, y in near.items()
    )
    ends = "".join(_end(curve, x_axis, y_axis) for curve in lines if curve.x)
    data = {
        "x": sorted({_whole(x) for x in xs}),
        "lines": [
            [c.label, c.look.colour, {_whole(x): float(f"{y:.4g}") for x, y in zip(c.x, c.y, strict=True)}]
            for c in lines
        ],
    }
    return (
        f'<div class="chart" role="img" aria-label="{escape(title)}"><p class="unit">{escape(y_label)}</p>'
        f'<div class="area"><div class="ys">{labels(y_axis.ticks(), "top")}</div>'
        f"<div class=\"plot\" data-curves='{escape(json.dumps(data, separators=(',', ':')))}'>{_grid(y_axis, 'top')}"
        f'<svg viewBox="0 0 100 100" preserveAspectRatio="none">{"".join(drawn)}</svg>{ends}{named}</div>'
        f'<div class="xs">{labels(x_axis.ticks(), "left")}</div></div><p class="unit">{escape(x_label)}</p></div>'
    )


def labels(ticks: Iterable[tuple[float, str]], side: str) -> str:
    """Texts at places in percent of a side, "left" or "top"."""
    return "".join(f'<span style="{side}:{place:.2f}%">{escape(text)}</span>' for place, text in ticks)


def _chart(title: str, rows: Sequence[tuple[str, str, str]], axis: Axis, x_label: str) -> str:
    """Rows of (name, drawing, text on hover) over a common axis."""
    grid = _grid(axis, "left")
    body = "".join(
        f'<div class="name">{name}</div><div class="track" title="{escape(told)}">{grid}{drawn}</div>'
        for name, drawn, told in rows
    )
    return (
        f'<div class="chart rows" role="img" aria-label="{escape(title)}">{body}'
        f'<span></span><div class="xs">{labels(axis.ticks(), "left")}</div>'
        f'<span></span><p class="unit">{escape(x_label)}</p></div>'
    )


def _row(mark: str, label: str, drawn: str, told: str) -> tuple[str, str, str]:
    return f"{mark}<code>{escape(label)}</code>", drawn, told


def _estimate(e: Estimate, axis: Axis) -> str:
    parts = [_span("band", axis, -e.margin, e.margin)] if e.margin else []
    parts.append(f'<i class="zero" style="left:{axis.place(0):.2f}%"></i>')
    parts += [f'<i class="seed d{e.look.colour}" style="left:{axis.place(x):.2f}%"></i>' for x in e.values]
    if isfinite(e.low) and isfinite(e.high):
        parts.append(_span(f"interval d{e.look.colour}", axis, e.low, e.high))
    if isfinite(e.value):
        parts.append(f'<b class="at" style="left:{axis.place(e.value):.2f}%">{marker(e.look)}</b>')
    return "".join(parts)


def _span(kind: str, axis: Axis, low: float, high: float) -> str:
    left, right = sorted((axis.place(low), axis.place(high)))
    return f'<i class="{kind}" style="left:{left:.2f}%;width:{right - left:.2f}%"></i>'


def _told(e: Estimate) -> str:
    interval = f" [{number(e.low, 3)}, {number(e.high, 3)}]" if isfinite(e.low) else ""
    return f"{e.label}: {number(e.value, 3)}{interval}"


def _reach(estimates: Sequence[Estimate]) -> tuple[float, float]:
    """The x axis: all points, values and margins, and of intervals so much that they do not drown these."""
    points = [x for e in estimates for x in (e.value, *e.values, -e.margin, e.margin) if isfinite(x)] + [0.0]
    span = max(points) - min(points) or 1.0
    low, high = min(points) - span, max(points) + span
    ends = [min(max(x, low), high) for e in estimates for x in (e.low, e.high) if isfinite(x)]
    least, most = min(points + ends), max(points + ends)
    return least - 0.06 * (most - least or 1), most + 0.06 * (most - least or 1)


def _line(curve: Curve, x_axis: Axis, y_axis: Axis) -> str:
    def path(ys: Iterable[float], xs: Sequence[float]) -> str:
        return " ".join(f"{x_axis.place(x):.2f},{y_axis.place(y):.2f}" for x, y in zip(xs, ys, strict=True))

    around = path([*curve.high, *reversed(curve.low)], [*curve.x, *reversed(curve.x)])
    kind, dashes = f"d{curve.look.colour}", f' stroke-dasharray="{curve.look.dashes}"' if curve.look.dashes else ""
    line = path(curve.y, curve.x)
    return f'<polygon class="{kind}" points="{around}"/><polyline class="{kind}" points="{line}"{dashes}/>'


def _end(curve: Curve, x_axis: Axis, y_axis: Axis) -> str:
    """The marker at the last point of a line."""
    x, y = x_axis.place(curve.x[-1]), y_axis.place(curve.y[-1])
    told = escape(f"{curve.label}: {number(curve.y[-1], 3)}")
    return f'<b class="at" style="left:{x:.2f}%;top:{y:.2f}%" title="{told}">{marker(curve.look)}</b>'


def _grid(axis: Axis, side: str) -> str:
    return "".join(f'<i class="grid" style="{side}:{place:.2f}%"></i>' for place, _ in axis.ticks())


def _whole(x: float) -> float:
    return int(x) if x == int(x) else x
