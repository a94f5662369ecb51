"""The few pieces of plotting that the reports share: curves, intervals, bars and heat maps, each as inline SVG.

A figure is a string that goes into a page as it is. Text and axes take the colour of the page's text, so that it
reads in light and in dark; text stays text, in the page's font. The same data give the same bytes.

What stands for the same thing in several figures has the same number there: its colour (Okabe and Ito 2008), its marker
and its line all follow from that number, so that nothing is said by colour alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from html import escape
from io import StringIO
from math import isfinite
from typing import Any, NamedTuple, ParamSpec

import matplotlib
import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.colors import CenteredNorm, Normalize
from matplotlib.figure import Figure
from matplotlib.markers import MarkerStyle
from matplotlib.patches import PathPatch
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import Affine2D

_INK = "#010203"  # stands for the page's text colour while matplotlib draws
_COLOURS = (_INK, "#0072b2", "#d55e00", "#009e73", "#cc79a7")  # all that have contrast 3 on white and on near-black
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":")
_WIDTH = 360  # units of the drawing: what a telephone shows as pixels
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "querykey",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
} | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), _INK)
_Arguments = ParamSpec("_Arguments")


class Look(NamedTuple):
    """How a series is drawn everywhere."""

    colour: str
    marker: str
    line: str


@dataclass(frozen=True)
class Curve:
    """A line with a band around it; `number` decides its look."""

    label: str
    number: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class Estimate:
    """A point with its interval, which may be infinite, and the single values that it sums up."""

    label: str
    number: int
    value: float
    low: float
    high: float
    values: Sequence[float] = ()


def look(number: int) -> Look:
    """The look of the series with this number; 0 has the colour of text."""
    kinds = len(_COLOURS)
    return Look(_COLOURS[number % kinds], _MARKERS[number % len(_MARKERS)], _LINES[number // kinds % len(_LINES)])


def _drawing(draw: Callable[_Arguments, Figure]) -> Callable[_Arguments, str]:
    """From a function that gives a matplotlib figure to one that gives inline SVG, titled by its first argument."""

    @wraps(draw)
    def drawn(*args: _Arguments.args, **kwargs: _Arguments.kwargs) -> str:
        with _style():
            written = StringIO()
            draw(*args, **kwargs).savefig(written, format="svg", transparent=True)
        return _inline(written.getvalue(), str(args[0]))

    return drawn


@_drawing
def curves(
    title: str, lines: Sequence[Curve], *, x_label: str, y_label: str, levels: Mapping[str, float] | None = None
) -> Figure:
    """Lines with bands over a common x axis, and named horizontal levels such as chance; `marker` is for the legend.

    A level far outside of what the lines span is left out, for it would flatten them.
    """
    figure, axes = _figure(height=220, left=48)
    for line in lines:
        colour, shape, dash = look(line.number)
        every = max(1, len(line.x) // 10)
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(line.x, line.y, dash, color=colour, marker=shape, markersize=4, markevery=every, lw=1.4)
    low, high = axes.get_ylim()
    for name, level in (levels or {}).items():
        if low - 0.2 * (high - low) <= level <= high + 0.2 * (high - low):
            axes.axhline(level, color=_INK, lw=0.7, ls=(0, (2, 3)), zorder=0)
            axes.annotate(name, (1, level), xycoords=("axes fraction", "data"), ha="right", va="bottom", fontsize=8)
    axes.set(xlabel=x_label, ylabel=y_label)
    return figure


@_drawing
def intervals(
    title: str,
    estimates: Sequence[Estimate],
    *,
    x_label: str,
    margins: Sequence[float] | None = None,
    lower_is_better: bool = False,
) -> Figure:
    """Estimates below each other, against 0; better is on the right.

    Args:
        title: said to those who cannot see the figure.
        estimates: from top to bottom; one that is not finite is left empty.
        x_label: what is estimated, with its unit.
        margins: for each the half width of the band around 0 that counts as no difference.
        lower_is_better: turns the axis around.
    """
    figure, axes = _rows([estimate.label for estimate in estimates], height=24, x_label=x_label)
    reach = _reach(estimates, margins or ())
    axes.set_xlim(*((reach[1], reach[0]) if lower_is_better else reach))
    axes.axvline(0, color=_INK, lw=0.7, zorder=0)
    if margins:
        widths = 2 * np.asarray(margins, dtype=float)
        axes.barh(range(len(margins)), widths, left=-widths / 2, height=1.0, color=_INK, alpha=0.1, lw=0)
    for row, estimate in enumerate(estimates):
        colour, shape, _ = look(estimate.number)
        axes.vlines(estimate.values, row + 0.17, row + 0.37, color=colour, lw=0.9, alpha=0.8)
        if isfinite(estimate.low) and isfinite(estimate.high):
            axes.hlines(row, estimate.low, estimate.high, color=colour, lw=1.6)
        if isfinite(estimate.value):
            axes.plot([estimate.value], [row], shape, color=colour, markersize=6)
    return figure


@_drawing
def bars(title: str, labels: Sequence[str], values: Sequence[float], *, x_label: str) -> Figure:
    """Horizontal bars from 0, numbered from top to bottom, each with its value at the end."""
    figure, axes = _rows(labels, height=22, x_label=x_label)
    for row, value in enumerate(values):
        if isfinite(value):
            axes.barh(row, value, height=0.65, color=look(row).colour)
            axes.annotate(
                f"{value:.3g}", (value, row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=9
            )
    axes.set_xlim(0, 1.25 * max((value for value in values if isfinite(value)), default=0) or 1)
    return figure


@_drawing
def heatmap(
    title: str,
    values: Float[np.ndarray, "rows columns"],
    *,
    limits: tuple[float, float],
    x_label: str,
    y_label: str,
    x_names: Sequence[str] | None = None,
    y_names: Sequence[str] | None = None,
    palette: str = "viridis",
    centre: float | None = None,
) -> Figure:
    """A matrix, row 0 on top; without names rows and columns are numbered from 0. See `scale` for the colours.

    Cells that are NaN stay empty. With a `centre`, that value has the middle colour of the palette.
    """
    height, width = values.shape
    tall = min(2.0, max(0.2, height / width)) * 147 + 36  # of 180 wide; the cells are square unless there are too many
    figure = Figure(figsize=(180 / 72, tall / 72))
    axes = figure.add_axes((0.17, 32 / tall, 0.815, 1 - 36 / tall))
    axes.imshow(values, cmap=palette, norm=_norm(limits, centre), interpolation="none", aspect="auto")
    size = 9.0 if x_names is None and y_names is None else 6.0  # what has names is shown larger
    axes.set_xlabel(x_label, fontsize=size, labelpad=2)
    axes.set_ylabel(y_label, fontsize=size, labelpad=2)
    for axis, names in ((axes.xaxis, x_names), (axes.yaxis, y_names)):
        if names is None:
            axis.set_major_locator(MaxNLocator(7, integer=True))
            axis.set_tick_params(labelsize=9, length=2, pad=2)
        else:
            axis.set_ticks(range(len(names)), names, fontsize=min(9.0, 148 / max(1, len(names))))
            axis.set_tick_params(length=0, pad=2)
    axes.spines[:].set_visible(False)
    return figure


@_drawing
def scale(
    title: str,
    *,
    limits: tuple[float, float],
    palette: str = "viridis",
    centre: float | None = None,
    marks: Mapping[str, float] | None = None,
) -> Figure:
    """The colours of a heat map and what they stand for; `marks` are named values, pointed at from above."""
    tall = 58 if marks else 44
    figure = Figure(figsize=(220 / 72, tall / 72))
    axes = figure.add_axes((0.05, 33 / tall, 0.9, 9.7 / tall))
    values = np.linspace(*limits, 128)[None]
    axes.imshow(values, cmap=palette, norm=_norm(limits, centre), aspect="auto", extent=(*limits, 0, 1))
    for name, value in (marks or {}).items():
        place = (value - limits[0]) / (limits[1] - limits[0])
        side = "left" if place < 0.15 else "right" if place > 0.85 else "center"
        axes.plot([value], [1.25], "v", color=_INK, markersize=4.5, clip_on=False, transform=axes.get_xaxis_transform())
        axes.annotate(name, (place, 1.5), xycoords="axes fraction", ha=side, va="bottom", fontsize=8)
    axes.set(yticks=[], xlabel=title, xlim=limits)
    axes.locator_params(axis="x", nbins=5)
    axes.spines[:].set_visible(False)
    return figure


def picture(title: str, draw: Callable[[], Figure]) -> str:
    """A figure of whatever kind as an SVG file that stands alone: with a page under it, in light and in dark."""
    svg = _drawing(lambda title: draw())(title)
    opening, _, body = svg.partition(">")
    opening = opening.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(' class="figure"', "")
    style = (
        "svg{color:#1f2328;font-family:system-ui,'Segoe UI',Helvetica,Arial,sans-serif}.page{fill:#fff}"
        "@media(prefers-color-scheme:dark){svg{color:#e6edf3}.page{fill:#0d1117}}"
    )
    return f'{opening}>\n<style>{style}</style>\n<rect class="page" width="100%" height="100%"/>{body}\n'


def _norm(limits: tuple[float, float], centre: float | None) -> Normalize:
    """How values become colours: as much on either side of a centre."""
    return Normalize(*limits) if centre is None else CenteredNorm(centre, max(abs(end - centre) for end in limits))


def marker(number: int) -> str:
    """The marker of a series on a piece of its line, for legends outside of figures."""
    return _marker(f"marker {number % (len(_COLOURS) * len(_MARKERS))}", number)


@_drawing
def _marker(title: str, number: int) -> Figure:
    colour, shape, dash = look(number)
    figure = Figure(figsize=(30 / 72, 12 / 72))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 30), ylim=(0, 12))
    axes.plot([1, 29], [6, 6], dash, color=colour, lw=1.4, clip_on=False)
    style = MarkerStyle(shape)
    placed = style.get_path().transformed(style.get_transform() + Affine2D().scale(5.5).translate(15, 6))
    axes.add_patch(PathPatch(placed, color=colour, lw=0, clip_on=False))  # no ids, so that it may stand in many places
    axes.set_axis_off()
    return figure


@contextmanager
def _style() -> Iterator[None]:
    with matplotlib.rc_context(_STYLE):
        yield


def _figure(height: float, left: float) -> tuple[Figure, Axes]:
    """A figure with room for labels: `left` of the axes, and below them. Its sizes are units of the drawing."""
    figure = Figure(figsize=(_WIDTH / 72, height / 72))
    axes = figure.add_axes((left / _WIDTH, 38 / height, 1 - (left + 12) / _WIDTH, 1 - 46 / height))
    axes.grid(color=_INK, alpha=0.12, lw=0.6)
    axes.set_axisbelow(True)
    return figure, axes


def _rows(labels: Sequence[str], *, height: float, x_label: str) -> tuple[Figure, Axes]:
    """A figure with a row of this height for each label, from top to bottom."""
    names = [_wrapped(label) for label in labels]
    longest = max((len(line) for name in names for line in name.split("\n")), default=0)
    figure, axes = _figure(height=46 + height * max(1, len(labels)), left=min(0.6 * _WIDTH, 8 + 6.2 * longest))
    axes.set(ylim=(len(labels) - 0.5, -0.5), xlabel=x_label)
    axes.set_yticks(range(len(labels)), names)
    axes.tick_params(axis="y", length=0)
    axes.locator_params(axis="x", nbins=6)
    axes.spines["left"].set_visible(False)
    return figure, axes


def _reach(estimates: Sequence[Estimate], margins: Sequence[float]) -> tuple[float, float]:
    """The x axis: all points, values and margins, and of intervals so much that they do not drown these."""
    points = [x for e in estimates for x in (e.value, *e.values) if isfinite(x)] + [0.0]
    points += [side * margin for margin in margins for side in (-1, 1)]
    span = max(points) - min(points) or 1.0
    low, high = min(points) - span, max(points) + span
    ends = [min(max(x, low), high) for e in estimates for x in (e.low, e.high) if isfinite(x)]
    least, most = min(points + ends), max(points + ends)
    return least - 0.06 * (most - least or 1), most + 0.06 * (most - least or 1)


def _wrapped(label: str, width: int = 17) -> str:
    """A design's word over several lines, broken before a plus sign."""
    lines = [""]
    for piece in re.split(r"(?=\+)", label):
        if lines[-1] and len(lines[-1] + piece) > width:
            lines.append("")
        lines[-1] += piece
    return "\n".join(lines)


def _inline(svg: str, title: str) -> str:
    """Without prolog, metadata, style sheet and needless ids; the ids that are left belong to this figure alone."""
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    body = svg[svg.index(">", box.end()) + 1 :]
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = body.replace("xlink:href", "href").replace(_INK, "currentColor")
    body = re.sub(r" font-family: [^;\"]*;?", "", body)  # that of the page
    prefix = f"f{hashlib.sha256((title + body).encode()).hexdigest()[:8]}-"
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", body)
    body = re.sub(r'( d="[^"]*")', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[1]), body)
    style = "stroke-linejoin:round;stroke-linecap:butt"
    opening = f'<svg {box[0]} class="figure" role="img" aria-label="{escape(title)}" style="{style}">'
    return opening + re.sub(r"\s*\n\s*", "\n", body).strip()
