"""Charts: places are those of the numbers, looks tell designs apart, pictures are their values."""

import base64
import io
import math
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from querykey.report import figures, heatmaps
from querykey.report.figures import Curve, Estimate, palette
from querykey.report.picture import picture

LOOKS = palette(["q,k,v", "q=k,v", "q,k=v"])


class Parts(HTMLParser):
    """The elements of a chart as (tag, attributes), and its words."""

    def __init__(self, source):
        super().__init__()
        self.parts, self.words, self.open = [], [], []
        self.feed(source)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.parts.append((tag, dict(attributes)))
        if tag != "img":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.parts.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def styles(self, kind):
        """The style of each element of this class, as numbers by name."""
        found = [a.get("style", "") for _, a in self.parts if kind in a.get("class", "").split()]
        return [{name: float(x) for name, x in re.findall(r"(\w+):([\d.]+)%", style)} for style in found]


def ticks(source, side="left"):
    """The numbers along the axis with their places."""
    found = re.findall(rf'<span style="{side}:([\d.]+)%">([−\d.,]+)</span>', source)
    return [(float(text.replace("−", "-").replace(",", "")), float(place)) for place, text in found]


def place(source, value, side="left"):
    """Where a value lies, by the numbers along the axis."""
    slope, start = np.polyfit(*zip(*ticks(source, side), strict=True), 1)
    return start + slope * np.asarray(value)


def estimate(value, low, high, values=(), margin=0.0):
    return Estimate("q=k,v", LOOKS["q=k,v"], value, low, high, values, margin)


def charts():
    curve = Curve("a & b", LOOKS["q=k,v"], [1.0, 2.0, 3.0], [0.1, 0.5, 0.9], [0.0, 0.4, 0.8], [0.2, 0.6, 1.0])
    points = [estimate(0.3, -math.inf, math.inf, [0.2, 0.4], 0.1), estimate(math.nan, math.nan, math.nan)]
    cells = {"limits": (0.0, 1.0), "x_label": "key", "y_label": "query"}
    return [
        figures.curves("<one>", [curve], x_label="steps", y_label="accuracy", levels={"chance": 0.125, "far": 99.0}),
        figures.intervals("two", points, x_label="difference"),
        figures.bars("three", [("q,k,v", LOOKS["q,k,v"], 1.0), ("q,k=v", LOOKS["q,k=v"], 0.75)], x_label="cache"),
        heatmaps.heatmap("four", np.eye(3), names=["<", "&", "c"], **cells),
        heatmaps.scale("five", limits=(0.0, 0.3), marks={"random": 0.1}),
        figures.marker(LOOKS["q,k=v"]),
    ]


def test_charts_are_well_formed_and_the_same_each_time():
    first, second = charts(), charts()
    assert first == second
    for source in first:
        Parts(source)
        assert not re.search(r"<style|http| id=|\bnan\b", source)
    assert 'aria-label="&lt;one&gt;"' in first[0]
    assert "chance" in Parts(first[0]).words
    assert "far" not in Parts(first[0]).words
    assert {"<", "&", "c"} <= set(Parts(first[3]).words)
    assert len(Parts(first[1]).styles("at")) == 1  # nothing is drawn where there is no number


@pytest.mark.parametrize("turned", [False, True])
def test_better_is_always_on_the_right(turned):
    source = figures.intervals("t", [estimate(0.3, 0.2, 0.4)], x_label="d", lower_is_better=turned)
    places = [place for _, place in sorted(ticks(source))]
    assert len(places) > 2
    assert places == sorted(places, reverse=turned)


@pytest.mark.parametrize("turned", [False, True])
def test_what_is_drawn_lies_where_its_number_does(turned):
    source = figures.intervals("t", [estimate(0.3, 0.2, 0.45, [0.25], 0.05)], x_label="d", lower_is_better=turned)
    chart = Parts(source)
    for kind, value in (("at", 0.3), ("seed", 0.25), ("zero", 0.0)):
        (style,) = chart.styles(kind)
        assert style["left"] == pytest.approx(place(source, value), abs=0.05)
    for kind, ends in (("interval", [0.2, 0.45]), ("band", [-0.05, 0.05])):
        (style,) = chart.styles(kind)
        drawn = [style["left"], style["left"] + style["width"]]
        assert drawn == pytest.approx(sorted(place(source, ends)), abs=0.05)


def test_curves_pass_through_their_points():
    curve = Curve("a", LOOKS["q=k,v"], [10.0, 20.0, 40.0], [0.25, 0.5, 0.75], [0.2, 0.4, 0.7], [0.3, 0.6, 0.8])
    source = figures.curves("t", [curve], x_label="x", y_label="y")
    (line,) = (a["points"] for tag, a in Parts(source).parts if tag == "polyline")
    points = np.array([[float(x) for x in point.split(",")] for point in line.split()])
    np.testing.assert_allclose(points[:, 0], place(source, curve.x), atol=0.05)
    np.testing.assert_allclose(points[:, 1], place(source, curve.y, "top"), atol=0.05)
    assert points[0, 1] > points[-1, 1]  # higher values are further up
    assert '"10":0.25' in source.replace("&quot;", '"')  # for the script that shows values under the pointer


def test_bars_are_as_long_as_their_numbers():
    source = figures.bars("t", [("a", LOOKS["q,k,v"], 1.0), ("b", LOOKS["q=k,v"], 0.5)], x_label="x")
    assert [style["width"] for style in Parts(source).styles("bar")] == pytest.approx(place(source, [1, 0.5]), abs=0.05)
    assert Parts(source).styles("value")[1]["left"] == pytest.approx(place(source, 0.5), abs=0.05)


def test_wide_intervals_do_not_drown_the_points():
    low, high = figures._reach([estimate(0.1, -50.0, 50.0, margin=0.01)])
    assert -0.4 < low < -0.05
    assert 0.15 < high < 0.4
    low, high = figures._reach([estimate(0.1, 0.05, 0.15, margin=0.01)])
    assert low < -0.01
    assert 0.15 < high < 0.2


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-0.37, 0.02), (2.7, 4.3), (0.0, 30000.0), (0.001, 0.0012)])
def test_ticks_are_round_few_and_within_the_axis(low, high):
    found = figures.Axis(low, high).ticks()
    assert 2 <= len(found) <= 8
    assert len({text for _, text in found}) == len(found)
    for tick, text in found:
        value = float(text.replace("−", "-").replace(",", ""))
        assert low - 1e-9 <= value <= high + 1e-9
        assert tick == pytest.approx(100 * (value - low) / (high - low), abs=0.1)


def test_a_design_looks_the_same_in_every_study():
    one = palette(["q,k,v", "q=k,v", "q,k=v"])
    other = palette(["q=k=v", "q,k=v", "q,k,v+cosine", "q,k,v"])
    assert one["q,k=v"] == other["q,k=v"]
    assert one["q,k,v"] == other["q,k,v"]


def test_no_two_designs_of_a_study_look_the_same():
    designs = [*figures._KNOWN, *(f"q,k,v+qkscale={n}" for n in range(2, 62))]
    looks = palette(designs)
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(designs)
    few = palette(["q,k,v", "q=k=x,v", "q=k,v", "q=k,v+qk_dim=32", "q,k,v+selfmask", "q=k,v+cosine", "q,k,v+cosine"])
    assert len({look.colour for look in few.values()}) == len(few)


def pixels(source):
    data = re.search(r"base64,([^\"]*)\"", source)
    assert data is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))))


def test_the_opacity_of_a_heat_map_is_its_value():
    values = np.array([[0.0, 0.5, 1.0], [math.nan, 0.25, 2.0]])
    image = pixels(heatmaps.heatmap("t", values, limits=(0.0, 1.0), x_label="x", y_label="y"))
    assert image.shape == (2, 3, 4)
    assert image[..., 3].tolist() == [[0, 128, 255], [0, 64, 255]]


def test_a_centre_has_no_colour_and_its_sides_have_two():
    values = np.array([[-1.0, 0.2, 0.6]])
    image = pixels(heatmaps.heatmap("t", values, limits=(-1.0, 1.0), x_label="x", y_label="y", centre=0.2))
    assert image[0, :, 3].tolist() == [255, 0, 85]
    assert image[0, 0, :3].tolist() != image[0, 2, :3].tolist()


def test_a_picture_stands_alone_in_light_and_in_dark():
    def draw():
        figure = Figure(figsize=(2, 1))
        figure.add_axes((0.2, 0.2, 0.7, 0.7)).plot([0, 1], color=figures.COLOURS[1].light)
        return figure

    source = picture("<one>", draw)
    assert source == picture("<one>", draw)
    assert source.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert "stroke: var(--d1)" in source
    assert f"--d1:{figures.COLOURS[1].dark}" in source
    assert "prefers-color-scheme:dark" in source
    assert 'aria-label="&lt;one&gt;"' in source
