"""What all reports are made of: one table value, files written whole, numbers in words, one progress display."""

import io
import math
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from querykey.report import numbers
from querykey.report.files import write_atomically
from querykey.report.progress import Progress
from querykey.report.table import Cell, Column, Table

COLUMNS = [
    Column("design", "left", wrap=True),
    Column("difference", detail="95 % interval", about="to the baseline"),
    Column("rank", rank=1),
    Column("late", rank=2),
]
ROWS = [
    [Cell("q=k,v", style="code"), Cell("−0.60", "[−0.61, −0.59]", "bad", value=-0.6), "3", "4"],
    ["a|b <i>", Cell("+1.25", "[0, 2]", "good"), Cell("5", style="muted"), "6"],
]
TABLE = Table(COLUMNS, ROWS, caption="cycle <accuracy>", notes=["one & only"])


def printed(value, width=100, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    console.print(value)
    return console.file.getvalue()


class Cells(HTMLParser):
    """The texts of a table by the tag around them, and the attributes of every tag."""

    def __init__(self, source):
        super().__init__()
        self.path, self.found, self.attributes = [], [], []
        self.feed(source)
        assert self.path == []

    def handle_starttag(self, tag, attributes):
        self.path.append(tag)
        self.attributes.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.path.pop() == tag

    def handle_data(self, data):
        self.found.append((self.path[-1] if self.path else "", data.strip()))


def test_details_stand_beside_the_text_where_there_is_room_and_below_it_elsewhere():
    wide = printed(TABLE, 100).splitlines()
    assert re.search(r"q=k,v +−0\.60  \[−0\.61, −0\.59\] +3 +4", "\n".join(wide))
    narrow = printed(TABLE, 40)
    assert "−0.60 " in narrow
    assert re.search(r"\n +\[−0\.61, −0\.59\]", narrow)


@pytest.mark.parametrize(("width", "kept"), [(100, {"rank", "late"}), (29, {"rank"}), (24, set())])
def test_a_terminal_without_room_drops_the_columns_of_highest_rank(width, kept):
    text = printed(TABLE, width)
    assert {title for title in ("rank", "late") if title in text} == kept
    assert "design" in text
    assert max(map(len, text.splitlines())) <= width


def test_a_terminal_shows_styles_and_a_pipe_does_not():
    assert "\x1b[31m−0.60" in printed(TABLE, force_terminal=True, color_system="standard")
    assert "\x1b" not in printed(TABLE)
    assert "[red]x[/red]" in printed(Table([Column("a")], [["[red]x[/red]"]]))


def test_markdown_keeps_the_columns_apart():
    lines = TABLE.markdown().splitlines()
    assert lines[2] == "| design | difference 95 % interval | rank | late |"
    assert lines[3] == "| --- | --: | --: | --: |"
    assert lines[4] == "| `q=k,v` | −0.60 [−0.61, −0.59] | 3 | 4 |"
    assert lines[5].startswith(r"| a\|b <i> |")
    assert lines[-1] == "- one & only"
    assert "- **difference 95 % interval**: to the baseline" in lines


def test_html_escapes_and_sorts_by_the_value():
    found = Cells(TABLE.__html__())
    assert ("code", "q=k,v") in found.found
    assert ("th", "a|b <i>") in found.found
    assert ("small", "[−0.61, −0.59]") in found.found
    assert ("caption", "cycle <accuracy>") in found.found
    assert ("td", {"class": "bad", "data-sort": "-0.6"}) in found.attributes
    assert [a["scope"] for tag, a in found.attributes if tag == "th"] == ["col"] * 4 + ["row"] * 2
    assert ("dd", "to the baseline") in found.found


def test_a_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match="2 cells, but the table 1 columns"):
        Table([Column("a")], [["1", "2"]])


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "report.html"
    with write_atomically(path) as partial:
        partial.write_text("first")
        assert not path.exists()
    with pytest.raises(UnicodeEncodeError), write_atomically(path) as partial:
        partial.write_text("second ∞", encoding="ascii")
    assert path.read_text() == "first"
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]


@pytest.mark.parametrize(
    ("shown", "text"),
    [
        (numbers.number(-0.004), "0.00"),
        (numbers.number(-12345.678, 1), "−12,345.7"),
        (numbers.number(math.nan), "–"),
        (numbers.signed(0.1234), "+0.123"),
        (numbers.signed(-0.0004), "0.000"),
        (numbers.signed(math.nan), "–"),
        (numbers.mean_and_sd(0.5, math.nan), ("0.500", "")),
        (numbers.probability(0.00001), "<0.0001"),
        (numbers.percent(0.316), "32 %"),
        (numbers.ratio(0.75), "0.75×"),
        (numbers.perplexity(31480.4), "31,480"),
        (numbers.amount(41943040), "41.94 M"),
        (numbers.amount(1200), "1,200"),
        (numbers.size(1.61e9), "1.61 GB"),
        (numbers.size(640), "640 B"),
        (numbers.duration(7500), "2 h 05 min"),
        (numbers.duration(200), "3 min"),
        (numbers.plural(1, "head"), "1 head"),
    ],
)
def test_numbers_in_words(shown, text):
    assert shown == text


def test_progress_is_a_line_for_each_tenth_where_there_is_no_terminal():
    console = Console(file=io.StringIO(), width=40)
    clock = iter(range(10000))
    with Progress(console) as progress:
        progress._bar.get_time = lambda: float(next(clock))
        for done in range(1, 101):
            progress("cells", done, 100, note="2 diverged" if done == 50 else "")
        progress("[b]", 1, 3)
    lines = console.file.getvalue().splitlines()
    assert len(lines) == 12  # the first, ten tenths, and the first of another kind
    assert lines[0].startswith("cells: 1 of 100")
    assert lines[5].endswith(", 2 diverged")
    assert lines[10] == "cells: 100 of 100"
    assert lines[11].startswith("[b]: 1 of 3")


def test_short_jobs_are_told_in_two_lines():
    console = Console(file=io.StringIO())
    with Progress(console) as progress:
        progress._bar.get_time = lambda: 0.0
        for done in range(1, 101):
            progress("layers", done, 100)
    assert console.file.getvalue().splitlines() == ["layers: 1 of 100", "layers: 100 of 100"]


def test_time_left_counts_only_what_this_run_has_done():
    progress = Progress(Console(file=io.StringIO()))
    clock = iter(range(1000))
    progress._bar.get_time = lambda: float(next(clock))
    for done in (901, 902, 903):  # 900 were there before
        progress("cells", done, 1000)
    task = progress._bar.tasks[0]
    assert task.time_remaining >= 97
    progress("pieces", 1, 1000)
    assert task.time_remaining is None  # another job


def test_a_terminal_shows_the_bar_and_what_stands_above_it():
    console = Console(file=io.StringIO(), width=60, force_terminal=True)
    with Progress(console) as progress:
        progress("cells", 3, 8, above="means so far")
    shown = console.file.getvalue()
    assert "means so far" in shown
    assert "3/8" in shown
