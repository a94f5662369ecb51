"""The page as one file: its code, and everything that it can ask for.

The text and the model are fixed. Every head can be looked at with every intervention in that head alone; the effect on
the output is there for this head, its layer and all heads. The answers are those of the server, as JSON, deflated and
written in base64: one piece for what is common, and one for each layer, which the page opens when it is asked for.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from querykey.explorer.builtin import Progress
from querykey.explorer.subjects import Shown, Subject
from querykey.explorer.views import Focus, Viewer
from querykey.machine import one_thread
from querykey.report.numbers import size

PAGE = Path(__file__).parent / "page"
# fmt: off
MODULES = (  # each after what it needs
    "strings", "data", "state", "draw", "graph", "tokens", "predictions", "results", "walk", "theorem", "map",
    "compare", "heads", "controls", "main", "embedded",
)
# fmt: on
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
MOST_BYTES = 50_000_000  # of a file


def exported(
    subject: Subject, name: str, title: str, text: str | None = None, progress: Progress = lambda *step: None
) -> Iterator[str]:
    """The page on this subject and text, as HTML in pieces; `progress` is told each layer that is done.

    Raises ValueError, before any long work, for a text that cannot be read and for a page above `MOST_BYTES`.
    """
    text = subject.example if text is None else text
    viewer = Viewer(subject)
    about = viewer.about()
    with one_thread():
        expected = _expected(viewer, text, about)
    if expected > MOST_BYTES:
        raise ValueError(
            f"the page would take about {size(expected)} for {_heads(about)} heads on this text; an exported "
            f"page has at most {size(MOST_BYTES)}, so give a shorter text"
        )
    return _pieces(viewer, text, about | {"model": name, "title": title}, progress, expected)


def bundle() -> str:
    """The page's modules as one: in order, without their imports and exports; no two of them share a name."""
    parts = [(PAGE / f"{name}.js").read_text(encoding="utf-8") for name in MODULES]
    code = "\n".join(re.sub(r"^export (?=function|const|let|class|async)", "", part, flags=re.M) for part in parts)
    return _inert(re.sub(r"^import [^;]*;\n", "", code, flags=re.M))


def _pieces(viewer: Viewer, text: str, about: dict[str, Any], progress: Progress, expected: float) -> Iterator[str]:
    step = f"layers of a page of about {size(expected)}"
    progress(step, 0, len(about["layers"]))
    before, after = _frame()
    yield before
    effects: dict[str, Any] = {}
    for layer, shape in enumerate(about["layers"]):
        with one_thread():
            yield _script(f"layer-{layer}", _layer(viewer, text, about, layer, range(shape["heads"]), effects))
        progress(step, layer + 1, len(about["layers"]))
    look = viewer.look(text, Focus(), glance=True)
    del look["head"]
    yield _script("common", {"about": about, "text": text, "look": look, "effects": effects})
    yield after


def _frame() -> tuple[str, str]:
    """The page before and after its answers, with its styles and code in it."""
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    index = re.sub(
        r'<link rel="stylesheet" href="page/(.*?)" />',
        lambda found: f"<style>\n{(PAGE / found[1]).read_text(encoding='utf-8')}</style>",
        index,
    )
    charset = '<meta charset="utf-8" />'
    index = index.replace(charset, f'{charset}\n<meta http-equiv="Content-Security-Policy" content="{POLICY}" />')
    before, after = index.split('<script type="module" src="page/live.js"></script>')
    return before, f'<script type="module">\n{bundle()}</script>{after}'


def _layer(
    viewer: Viewer, text: str, about: dict[str, Any], layer: int, heads: Iterable[int], effects: dict[str, Any]
) -> dict[str, Any]:
    """The answers on some heads of a layer; what does not differ from the first head as trained stands once.

    The effect of an intervention in all heads is added to `effects`.
    """
    first = viewer.look(text, Focus(layer))["head"]
    found: dict[str, Any] = {"first": first, "heads": {}, "effects": {}, "tied": {}}
    for head in heads:
        found["tied"][head] = viewer.tied(text, Focus(layer, head))
        trained = viewer.look(text, Focus(layer, head))["head"]
        for intervention in _names(about):
            focus = Focus(layer, head, intervention)
            look = viewer.look(text, focus)["head"]
            name = f"{intervention} {head}"
            found["heads"][name] = _differing(look, first if intervention == "trained" else trained)
            if about["causal"]:
                unmasked = viewer.look(text, replace(focus, masked=False))["head"]
                found["heads"][f"{name} unmasked"] = _differing(unmasked, look)
            if intervention == "trained":
                continue
            if intervention not in effects:
                effects[intervention] = viewer.effect(text, replace(focus, scope="all"))
            if intervention == "converted":  # in all heads
                continue
            found["effects"][name] = viewer.effect(text, focus)
            if head == 0:
                found["effects"][intervention] = viewer.effect(text, replace(focus, scope="layer"))
    return found


def _differing(look: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in look.items() if name not in base or base[name] != value}


def _expected(viewer: Viewer, text: str, about: dict[str, Any]) -> float:
    """The size of the page in bytes, from the first heads of the first layer."""
    tried = range(min(2, about["layers"][0]["heads"]))
    piece = _layer(viewer, text, about, 0, tried, dict.fromkeys(_names(about)))
    once = len(_script("", {"first": piece["first"]}))
    last = {name: value for name, value in piece["heads"].items() if f" {tried[-1]}" in name}
    return once * len(about["layers"]) + len(_script("", last)) * _heads(about)


def _names(about: dict[str, Any]) -> list[Shown]:
    return [one["name"] for one in about["interventions"]]


def _heads(about: dict[str, Any]) -> int:
    return sum(shape["heads"] for shape in about["layers"])


def _script(name: str, content: dict[str, Any]) -> str:
    """Data for the page: JSON, deflated, in base64."""
    deflated = zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9)
    return f'<script type="text/plain" id="{name}">{base64.b64encode(deflated).decode("ascii")}</script>\n'


def _inert(text: str) -> str:
    """Text that HTML does not take for the end of a script."""
    return text.replace("</", "<\\/").replace("<!--", "<\\!--")
