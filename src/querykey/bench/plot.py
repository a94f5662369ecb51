"""One picture of a benchmark: time of each design relative to the first, the predicted ratio, and the lower bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from querykey.bench.bench import Bench, Row
from querykey.bench.config import Shape
from querykey.report.figures import COLOURS, Look, palette
from querykey.report.picture import INK, picture

_WIDTH = 760  # units of the drawing, as wide as a page shows it
_ROW = 19
_LEFT = 122
_TOP, _BOTTOM = 56, 44
_GAP = 18  # between panels

Place = tuple[Shape, str]  # a shape and a design


def as_svg(result: Bench) -> str:
    """An SVG file: panels are passes, rows are the designs at each shape; layers of other libraries are left out."""
    first = result.config.designs[0]
    title = f"Time of each design relative to {first}, with the predicted ratio and the lower bound: {result.machine}"
    return picture(title, lambda: _figure(result))


def _figure(result: Bench) -> Figure:
    rows = [row for row in result.rows if row.name in map(str, result.config.designs)]
    places = _places(rows)
    passes = list(dict.fromkeys(row.what for row in rows))
    height = _TOP + _BOTTOM + round(_ROW * (max(places.values()) + 1))
    figure = Figure(figsize=(_WIDTH / 72, height / 72))
    wide = (_WIDTH - _LEFT - 14 - _GAP * (len(passes) - 1)) / len(passes)
    looks = palette(row.name for row in rows)
    for number, what in enumerate(passes):
        left = (_LEFT + number * (wide + _GAP)) / _WIDTH
        axes = figure.add_axes((left, _BOTTOM / height, wide / _WIDTH, 1 - (_TOP + _BOTTOM) / height))
        shown = [row for row in rows if row.what == what]
        _panel(axes, shown, places, looks, _limit(shown))
        cached = f", {result.config.cached:,} positions cached" if what == "decoding" else ""
        axes.set_title(what + cached, fontsize=10, loc="left", pad=6)
        axes.set_xlabel(f"time relative to {rows[0].name}", fontsize=9)
        if number == 0:
            _names(axes, places)
    _legend(figure, height)
    return figure


def _places(rows: Sequence[Row]) -> dict[Place, int]:
    """The line of each design at each shape, with a line for the name of each shape before it."""
    found: dict[Place, int] = {}
    line = 0
    for shape in dict.fromkeys(row.shape for row in rows):
        line += 1
        for design in dict.fromkeys(row.name for row in rows if row.shape == shape):
            found[shape, design] = line
            line += 1
    return found


def _limit(rows: Sequence[Row]) -> float:
    """The end of the axes: past all medians, and past intervals up to 1.25 × the largest median."""
    most = max(row.to_baseline.median for row in rows)
    return 1.04 * max(min(max(row.to_baseline.high for row in rows), 1.25 * most), 1.0)


def _panel(
    axes: Axes, rows: Sequence[Row], places: Mapping[Place, int], looks: Mapping[str, Look], limit: float
) -> None:
    axes.set(xlim=(0, limit), ylim=(max(places.values()) + 0.6, -0.4), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="x", labelsize=9, length=3)
    axes.locator_params(axis="x", nbins=5)
    axes.grid(axis="x", color=INK, alpha=0.12, lw=0.6)
    axes.set_axisbelow(True)
    axes.axvline(1, color=INK, lw=0.7, zorder=1)
    baselines = {row.shape: row for row in rows if row.name == row.compared}
    for row in rows:
        line = places[row.shape, row.name]
        look = looks[row.name]
        colour, marker = COLOURS[look.colour].light, look.marker
        bound = row.bound_seconds.median / baselines[row.shape].seconds.median
        axes.plot([bound], [line], "|", color=INK, markersize=9, markeredgewidth=1, alpha=0.55, zorder=2)
        if row.predicted is not None:
            axes.plot([row.predicted], [line], "o", color="none", markeredgecolor=INK, markersize=9.5, zorder=2)
        axes.hlines(line, row.to_baseline.low, min(row.to_baseline.high, limit), color=colour, lw=1.6)
        axes.plot([row.to_baseline.median], [line], marker, color=colour, markersize=5)


def _names(axes: Axes, places: Mapping[Place, int]) -> None:
    """Designs to the left of their lines, and shapes over theirs."""
    named = dict[Shape, int]()
    for (shape, design), line in places.items():
        named.setdefault(shape, line - 1)
        axes.annotate(design, (0, line), (-8, 0), textcoords="offset points", ha="right", va="center", fontsize=9.5)
    for shape, line in named.items():
        text = f"batch {shape.batch}, length {shape.length}, dim {shape.dim}, {shape.heads} heads"
        start = (-_LEFT + 4, 0)
        axes.annotate(
            text, (0, line), start, textcoords="offset points", ha="left", va="center", fontsize=9, weight="bold"
        )


def _legend(figure: Figure, height: float) -> None:
    axes = figure.add_axes((0, 1 - 30 / height, 1, 30 / height), xlim=(0, _WIDTH), ylim=(0, 30))
    axes.set_axis_off()
    axes.hlines(17, 8, 24, color=INK, lw=1.6)
    axes.plot([16], [17], "o", color=INK, markersize=5)
    axes.plot([240], [17], "o", color="none", markeredgecolor=INK, markersize=9.5)
    axes.plot([488], [17], "|", color=INK, markersize=9, markeredgewidth=1, alpha=0.55)
    texts = {
        31: "measured, with the middle half of rounds",
        252: "predicted: FLOPs, or bytes of a decoding step",
        497: "lower bound: bare products and kernel",
    }
    for x, text in texts.items():
        axes.text(x, 17, text, va="center_baseline", fontsize=9)
