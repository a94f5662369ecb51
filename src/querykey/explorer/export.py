"""The page as one file: its code, and everything that it can ask for, packed.

The text and the model are fixed; every head can be looked at in every setting, with the change in that head alone, and
the effect on the output is there for this head, its layer and all heads. Numbers have the digits that are printed and
no more (see `packing`), arrays that are equal are stored once, and all is deflated.
"""

from __future__ import annotations

import base64
import json
import re
import zlib
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from querykey.explorer.subjects import Subject
from querykey.explorer.views import Focus, Viewer
from querykey.machine import one_thread
from querykey.models.replacements import Scope

PAGE = Path(__file__).parent / "page"
# fmt: off
MODULES = (  # each after what it needs
    "strings", "data", "draw", "tokens", "walk", "map", "compare", "heads", "controls", "main", "embedded",
)
# fmt: on
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'"
MOST_TOKENS = 128  # with every head in every setting, more would be tens of megabytes


@one_thread()
def exported(
    subject: Subject, name: str, title: str, text: str | None = None, tell: Callable[[str], None] = print
) -> str:
    """The page on this subject and text, as HTML. Raises ValueError for a text that is too long or cannot be read."""
    text = subject.example if text is None else text
    length = len(subject.notation.encode(text).tokens)
    if length > MOST_TOKENS:
        raise ValueError(
            f"a text of {length} tokens; an exported page takes at most {MOST_TOKENS}, so give a shorter one"
        )
    content, blob = _answers(Viewer(subject), text, tell)
    content |= {"model": name, "title": title, "text": text}
    index = (PAGE / "index.html").read_text(encoding="utf-8")
    style = (PAGE / "style.css").read_text(encoding="utf-8")
    answers = json.dumps(content, separators=(",", ":")).encode()
    data = "".join(
        f'<script type="text/plain" id="{name}">{_ascii(_deflated(part))}</script>\n    '
        for name, part in (("answers", answers), ("arrays", blob))
    )
    index = index.replace('<link rel="stylesheet" href="page/style.css" />', f"<style>\n{style}</style>")
    index = index.replace(
        '<meta charset="utf-8" />',
        f'<meta charset="utf-8" />\n    <meta http-equiv="Content-Security-Policy" content="{POLICY}" />',
    )
    script = f'{data}<script type="module">\n{bundle()}</script>'
    return index.replace('<script type="module" src="page/live.js"></script>', script)


def bundle() -> str:
    """The page's modules as one: in order, without their imports and exports; no two of them share a name."""
    parts = [(PAGE / f"{name}.js").read_text(encoding="utf-8") for name in MODULES]
    code = "\n".join(re.sub(r"^export (?=function|const|let|class|async)", "", part, flags=re.M) for part in parts)
    return _inert(re.sub(r"^import [^;]*;\n", "", code, flags=re.M))


def _answers(viewer: Viewer, text: str, tell: Callable[[str], None]) -> tuple[dict[str, Any], bytes]:
    """All answers that the page may want, and the arrays in them."""
    about = viewer.about()
    arrays = Arrays()
    heads = [(layer, head) for layer, shape in enumerate(about["layers"]) for head in range(shape["heads"])]
    look = viewer.look(text, Focus())
    content: dict[str, Any] = {"about": about, "looks": {}, "effects": {}}
    content["common"] = {key: value for key, value in look.items() if key not in ("head", "overview")}
    content["overview"] = arrays.kept(look["overview"])
    for done, setting in enumerate(about["settings"], start=1):
        for layer, head in heads:
            focus = Focus(layer, head, setting)
            found = viewer.look(text, focus, overview=False)["head"]
            content["looks"][f"{setting} {layer} {head}"] = arrays.kept(found, signed=setting == "signed")
            if setting != "trained":
                keys: dict[Scope, str] = {"head": f"{setting} {layer} {head}"}
                keys |= {"layer": f"{setting} {layer}"} if head == 0 else {}
                keys |= {"all": setting} if (layer, head) == (0, 0) else {}
                effect = viewer.effect(text, focus, list(keys))
                content["effects"] |= {key: effect[scope] for scope, key in keys.items()}
        tell(f"{setting}: {done} of {len(about['settings'])} settings")
    content["arrays"] = arrays.index
    return content, arrays.packed()


class Arrays:
    """Packed arrays (see `packing`) in one place, each once; in an answer stands its number instead."""

    def __init__(self) -> None:
        self.index: list[dict[str, Any]] = []
        self._contents: list[bytes] = []
        self._known: dict[bytes, int] = {}

    def kept(self, values: dict[str, Any], signed: bool = False) -> dict[str, Any]:
        """The answer with a number for each array; `signed`: its queries are its keys, some with a minus sign."""
        if signed and (signs := self._signs(values["q"], values["k"])):
            values = values | {"q": {"signs": signs}}
        return {name: {"array": self._add(v)} if _is_packed(v) else v for name, v in values.items()}

    def packed(self) -> bytes:
        """All arrays: those of each size together, all first bytes before all second ones."""
        by_size: dict[int, list[bytes]] = {size: [] for size in (1, 2, 4)}
        for entry, content in zip(self.index, self._contents, strict=True):
            by_size[int(entry["type"][1])].append(content)
        planes = []
        for size, contents in by_size.items():
            whole = np.frombuffer(b"".join(contents), np.uint8).reshape(-1, size)
            planes.append(whole.T.tobytes())
        return b"".join(planes)

    def _add(self, array: dict[str, Any]) -> int:
        content = base64.b64decode(array["data"])
        entry = {key: value for key, value in array.items() if key != "data"}
        key = sha256(json.dumps(entry).encode() + content).digest()
        if key not in self._known:
            self._known[key] = len(self.index)
            self.index.append(entry)
            self._contents.append(content)
        return self._known[key]

    @staticmethod
    def _signs(query: dict[str, Any], key: dict[str, Any]) -> list[int] | None:
        """The sign of each channel by which queries come of keys; None if they do not."""
        if any(query[name] != key[name] for name in ("shape", "digits", "type")):
            return None
        q, k = (np.frombuffer(base64.b64decode(a["data"]), f"<{a['type']}").reshape(a["shape"]) for a in (query, key))
        signs = np.where((q == k).all(0), 1, -1)
        return signs.tolist() if (q == k * signs).all() else None


def _is_packed(value: Any) -> bool:
    return isinstance(value, dict) and "data" in value


def _deflated(content: bytes) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    return deflater.compress(content) + deflater.flush()


def _ascii(content: bytes) -> str:
    """Base 85, which adds a quarter; with a comma for the one sign that HTML could take for a tag."""
    return base64.b85encode(content).decode("ascii").replace("<", ",")


def _inert(text: str) -> str:
    """Text that HTML does not take for the end of a script."""
    return text.replace("</", "<\\/").replace("<!--", "<\\!--")
