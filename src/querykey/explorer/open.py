"""The three ways in: a page in the browser, a page as one file, and a page in a notebook."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from pathlib import Path

from rich.console import Console

from querykey.explorer.export import exported
from querykey.explorer.subjects import Offer, Subject, offers
from querykey.extras import needs
from querykey.report.files import write_atomically
from querykey.report.progress import Progress

STEPS = {"train": "training (the first time only)", "load": "reading weights", "sample": "running a sample text"}


def show(
    model: str | Path | None = None,
    text: str | None = None,
    port: int = 8420,
    browse: bool = True,
    revision: str | None = None,
    trust_remote_code: bool = False,
    against: str | None = None,
) -> None:
    """Serve the page until it is stopped; `against` is the original of a converted model.

    Raises ValueError for a model that cannot be opened.
    """
    with needs("explore"):
        from querykey.explorer.server import serve

    found = offers(model, revision, trust_remote_code, against)
    first = next(iter(found))
    if model is not None:
        with Progress(Console(stderr=True), f"opening {found[first].title}") as progress:
            _opened(found[first], progress)  # an error is shown here, and not on a page
    serve(found, {"model": first} | ({} if text is None else {"text": text}), port, browse)


def export(
    model: str | Path | None,
    path: str | Path,
    text: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    against: str | None = None,
) -> Path:
    """Write the page as one file that needs no server and no network, whole or not at all.

    Raises ValueError as `show` does, and for a page that would be too large.
    """
    console = Console(stderr=True)
    with (
        write_atomically(Path(path)) as partial,
        partial.open("w", encoding="utf-8") as file,
        Progress(console) as progress,
    ):
        file.writelines(_page(model, text, revision, trust_remote_code, against, progress))
    return Path(path)


class Explorer:
    """A page for notebooks: what Jupyter, VS Code and Colab show; `html` is the page itself."""

    def __init__(self, html: str) -> None:
        self.html = html

    def _repr_html_(self) -> str:
        return (
            f'<iframe srcdoc="{escape(self.html)}" style="width:100%;height:52rem;border:0" '
            'sandbox="allow-scripts allow-popups" title="querykey explore"></iframe>'
        )


def explore(
    model: str | Path | None = None,
    text: str | None = None,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    against: str | None = None,
) -> Explorer:
    """The explorer's page on a model and a text, for a notebook; what `querykey explore --export` writes.

    `model` is a run of `compare`, a checkpoint folder, a repository on the Hub, or one of "minilm", "cycle",
    "cycle-tied" and "bytes"; None is "cycle". The last three are trained on first use. `against` is the original of a
    converted model, by default the one that its config.json names, if it is still there. Raises ValueError for a model
    or a text that cannot be shown.
    """
    return Explorer("".join(_page(model, text, revision, trust_remote_code, against, Progress(Console(quiet=True)))))


def _page(
    model: str | Path | None,
    text: str | None,
    revision: str | None,
    trust: bool,
    against: str | None,
    progress: Progress,
) -> Iterator[str]:
    found = offers(model, revision, trust, against)
    first = next(iter(found))
    return exported(_opened(found[first], progress), first, found[first].title, text, progress)


def _opened(offer: Offer, progress: Progress) -> Subject:
    """The subject; `progress` shows what is done."""

    def watch(step: str, done: int, total: int) -> None:
        if done:
            progress(STEPS[step], done, total)

    return offer.open(watch)
