"""The report of compare in a real browser: tables sort, curves show their values, and everybody can read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from browsing import CONTRAST, browser
from querykey.study.report import Report
from studied import GONE, keep, near

__all__ = ["browser"]  # a fixture
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")  # of the browser's own pipes
DESIGNS = ("q,k,v", "q=k,v", "q=k,v+selfmask", "q,k=v")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Report:
    scores = dict(zip(DESIGNS, (near(0.9), near(0.3), near(0.5), [GONE] * 6), strict=True))
    curves = {"q,k,v": [0.25, 0.5, 0.9], "q=k,v": [0.125, 0.25, 0.3], "q=k,v+selfmask": [0.2, 0.3, 0.5]}
    found = keep(tmp_path_factory.mktemp("run"), scores, question="Which?", curves=curves)
    found.write_html()
    return found


@pytest.fixture
def opened(browser: Any, report: Report) -> Iterator[Any]:
    contexts = []

    def new(width: int = 1280, scheme: str = "light") -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.goto((report.folder.absolute() / "report.html").as_uri())
        return page

    faults: list[str] = []
    yield new
    assert faults == []
    for context in contexts:
        context.close()


def test_tables_sort_by_a_click_and_what_has_no_number_stays_last(opened: Any) -> None:
    page = opened()
    table = page.locator("section[aria-labelledby=task-1] table").first
    head = table.locator("thead th", has_text="mean")
    orders = []
    for _ in range(2):
        head.locator("button").click()
        orders.append((head.get_attribute("aria-sort"), table.locator("tbody tr").all_inner_texts()))
    (up, rising), (down, falling) = orders
    assert (up, down) == ("ascending", "descending")
    assert [row.split()[0] for row in rising] == ["q=k,v", "q=k,v+selfmask", "q,k,v", "q,k=v"]
    assert [row.split()[0] for row in falling] == ["q,k,v", "q=k,v+selfmask", "q=k,v", "q,k=v"]


def test_a_curve_shows_its_values_under_the_pointer(opened: Any) -> None:
    page = opened()
    plot = page.locator("[data-curves]").first
    plot.scroll_into_view_if_needed()
    box = plot.bounding_box()
    for share, values in ((0.02, "0.25 0.125 0.2"), (0.98, "0.9 0.3 0.5")):
        page.mouse.move(box["x"] + share * box["width"], box["y"] + 40)
        shown = [text.split()[-1] for text in page.locator(".tip span").all_inner_texts()]
        assert [float(text) for text in shown] == [float(text) for text in values.split()]
    page.mouse.move(0, 0)
    assert page.locator(".tip").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_report_fits_a_telephone_and_can_be_read(opened: Any, scheme: str) -> None:
    page = opened(360, scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    verdicts = page.locator(".tile.worse b").all()
    assert len(verdicts) == 2
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 360 for box in (one.bounding_box() for one in verdicts))
    for ratio, text in page.evaluate(CONTRAST):
        assert ratio >= 4.5, f"{text!r} in {scheme}"
