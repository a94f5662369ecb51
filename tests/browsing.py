"""A real browser for the tests of pages, and what a page must be for everybody."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from explored import needed

CHROMIUM = needed("chromium", "chromium-browser", "google-chrome")
playwright = pytest.importorskip("playwright.sync_api", reason="pages are tested with playwright: pip install it")
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as run:
        found = run.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


# The contrast (WCAG 2.2) of every text on the page with what is behind it.
CONTRAST = """() => {
  const parse = colour => {
    const [r, g, b, a = 1] = colour.startsWith("color(")
      ? colour.match(/[\\d.]+/g).slice(colour.includes("srgb") ? 0 : 0).map((x, n) => n < 3 ? 255 * x : Number(x))
      : colour.match(/[\\d.]+/g).map(Number);
    return [r, g, b, a];
  };
  const light = ([r, g, b]) => [r, g, b].map(x => x / 255)
    .map(x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4)
    .reduce((sum, x, n) => sum + x * [0.2126, 0.7152, 0.0722][n], 0);
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const found = parse(getComputedStyle(e).backgroundColor);
      if (found[3] === 1) return found;
    }
    return [255, 255, 255, 1];
  };
  const out = [];
  for (const element of document.querySelectorAll("body *")) {
    const own = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
    if (!own || element.closest("[hidden], option") || !element.getClientRects().length) continue;
    const style = getComputedStyle(element);
    const colour = element instanceof SVGElement ? style.fill : style.color;
    const [a, b] = [light(parse(colour)), light(behind(element))].sort((x, y) => y - x);
    out.push([(a + 0.05) / (b + 0.05), element.textContent.slice(0, 40)]);
  }
  return out;
}"""
