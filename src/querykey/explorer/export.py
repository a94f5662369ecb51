"""The page as one file: its code, and everything that it can ask for.

The text and the model are fixed. Every head can be looked at with every intervention in that head alone; the effect on
the output is there for this head, its layer and all heads. The answers are those of the server, as JSON, deflated and
written in base64: one piece for what is common, and one for each layer, which the page opens when it is asked for.
"""

from __future__ import annotations

import base64
import json
import re
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from querykey.explorer.subjects import Subject
from querykey.explorer.views import Focus, Viewer
from querykey.machine import one_thread

PAGE = Path(__file__).parent / "page"
# fmt: off
MODULES = (  # each after what it needs
    "strings", "data", "draw", "tokens", "walk", "map", "compare", "heads", "controls", "main", "embedded",
)
# fmt: on
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
MOST_BYTES = 50_000_000  # of a file


def exported(
    subject: Subject, name: str, title: str, text: str | None = None, tell: Callable[[str], None] = print
) -> Iterator[str]:
    """The page on this subject and text, as HTML in pieces; `tell` gets its expected size, then each layer.

    Raises ValueError, before any long work, for a text that cannot be read and for a page above `MOST_BYTES`.
    """
    text = subject.example if text is None else text
    viewer = Viewer(subject)
    about = viewer.about()
    with one_thread():
        expected = _expected(viewer, text, about, tell)
    if expected > MOST_BYTES:
        raise ValueError(
            f"the page would take about {expected / 1e6:.0f} MB for {_heads(about)} heads on this text; an exported "
            f"page has at most {MOST_BYTES / 1e6:.0f} MB, so give a shorter text"
        )
    return _pieces(viewer, text, about | {"model": name, "title": title}, tell)


def bundle() -> str:
    """The page's modules as one: in order, without their imports and exports; no two of them share a name."""
    parts = [(PAGE / f"{name}.js").read_text(encoding="utf-8") for name in MODULES]
    code = "\n".join(re.sub(r"^export (?=function|const|let|class|async)", "", part, flags=re.M) for part in parts)
    return _inert(re.sub(r"^import [^;]*;\n", "", code, flags=re.M))


def _pieces(viewer: Viewer, text: str, about: dict[str, Any], tell: Callable[[str], None]) -> Iterator[str]:
    before, after = _frame()
    yield before
    effects: dict[str, Any] = {}
    for layer, shape in enumerate(about["layers"]):
        with one_thread():
            yield _script(f"layer-{layer}", _layer(viewer, text, about, layer, range(shape["heads"]), effects))
        tell(f"layer {layer + 1} of {len(about['layers'])}")
    look = viewer.look(text, Focus())
    del look["head"]
    yield _script("common", {"about": about, "text": text, "look": look, "effects": effects})
    yield after


def _frame() -> tuple[str, str]:
    """The page before and after its answers, with its style and code in it."""
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    style = (PAGE / "style.css").read_text(encoding="utf-8")
    index = index.replace('<link rel="stylesheet" href="page/style.css" />', f"<style>\n{style}</style>")
    charset = '<meta charset="utf-8" />'
    index = index.replace(charset, f'{charset}\n<meta http-equiv="Content-Security-Policy" content="{POLICY}" />')
    before, after = index.split('<script type="module" src="page/live.js"></script>')
    return before, f'<script type="module">\n{bundle()}</script>{after}'


def _layer(
    viewer: Viewer, text: str, about: dict[str, Any], layer: int, heads: Iterable[int], effects: dict[str, Any]
) -> dict[str, Any]:
    """The answers on some heads of a layer; what does not differ from the first head as trained stands once.

    The effect of changing all heads is added to `effects`.
    """
    first = viewer.look(text, Focus(layer), overview=False)["head"]
    found: dict[str, Any] = {"first": first, "heads": {}, "effects": {}}
    for head in heads:
        trained = viewer.look(text, Focus(layer, head), overview=False)["head"]
        found["heads"][f"trained {head}"] = _differing(trained, first)
        for setting in about["settings"][1:]:
            focus = Focus(layer, head, setting)
            look = viewer.look(text, focus, overview=False)["head"]
            found["heads"][f"{setting} {head}"] = _differing(look, trained)
            effect = viewer.effect(text, focus, ["head"] if head else ["head", "layer"])
            found["effects"][f"{setting} {head}"] = effect["head"]
            if head == 0:
                found["effects"][setting] = effect["layer"]
            if setting not in effects:
                effects |= {setting: viewer.effect(text, focus, ["all"])["all"]}
    return found


def _differing(look: dict[str, Any], base: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in look.items() if name not in base or base[name] != value}


def _expected(viewer: Viewer, text: str, about: dict[str, Any], tell: Callable[[str], None]) -> float:
    """The size of the page in bytes, from the first heads of the first layer."""
    start = time.perf_counter()
    tried = range(min(2, about["layers"][0]["heads"]))
    piece = _layer(viewer, text, about, 0, tried, dict.fromkeys(about["settings"]))
    once = len(_script("", {"first": piece["first"]}))
    last = {name: value for name, value in piece["heads"].items() if name.endswith(f" {tried[-1]}")}
    each = len(_script("", last))
    heads = _heads(about)
    size = once * len(about["layers"]) + each * heads
    minutes = (time.perf_counter() - start) / len(tried) * heads / 60
    tell(f"{heads} heads with {len(about['settings'])} settings: about {size / 1e6:.1f} MB, {minutes:.1f} minutes")
    return size


def _heads(about: dict[str, Any]) -> int:
    return sum(shape["heads"] for shape in about["layers"])


def _script(name: str, content: dict[str, Any]) -> str:
    """Data for the page: JSON, deflated, in base64."""
    deflated = zlib.compress(json.dumps(content, separators=(",", ":")).encode(), 9)
    return f'<script type="text/plain" id="{name}">{base64.b64encode(deflated).decode("ascii")}</script>\n'


def _inert(text: str) -> str:
    """Text that HTML does not take for the end of a script."""
    return text.replace("</", "<\\/").replace("<!--", "<\\!--")
