"""The project's documents as pages, which the explorer links to.

They stand in ``docs/`` beside the sources; an installed package brings them under ``share/doc/querykey``.
"""

from __future__ import annotations

import re
from functools import cache
from html import escape
from importlib import metadata
from pathlib import Path

from markdown_it import MarkdownIt

SOURCES = Path(__file__).parents[3] / "docs"
PAGE = """<!doctype html>
<html lang="{language}">
  <head>
    <meta charset="utf-8" />
    <meta name="viewport" content="width=device-width, initial-scale=1" />
    <link rel="icon" href="data:," />
    <title>{title}</title>
    <link rel="stylesheet" href="../page/base.css" />
    <link rel="stylesheet" href="../page/document.css" />
  </head>
  <body>{body}</body>
</html>
"""


@cache
def documents() -> dict[str, Path]:
    """The documents that are here, by file name."""
    found = list(SOURCES.glob("*.md"))
    if not found:
        files = metadata.files("querykey") or []
        found = [Path(str(file.locate())) for file in files if file.match("doc/querykey/*.md")]
    return {path.name: path for path in found}


@cache
def rendered(name: str) -> str | None:
    """A document as an HTML page; None where there is none of that name."""
    if name not in documents():
        return None
    text = documents()[name].read_text(encoding="utf-8")
    body = MarkdownIt("commonmark", {"html": True}).enable("table").render(text)
    body = re.sub(r'<img src="[^"]*" alt="([^"]*)"[^>]*>', r"\1", body)
    body = re.sub(r'<a href="([^"]*)">(.*?)</a>', _link, body, flags=re.S)
    body = re.sub(r"<(h\d)>(.*?)</", lambda found: f'<{found[1]} id="{_slug(found[2])}">{found[2]}</', body)
    title = re.search(r"^# (.*)", text, re.M)
    language = "zh-Hans" if ".zh" in name else "en"
    return PAGE.format(language=language, title=escape(title[1] if title else name), body=body)


def _link(found: re.Match[str]) -> str:
    """A link, or only its text where it leads to a file that is not here."""
    target, text = found.groups()
    here = target.startswith(("#", "http")) or target.partition("#")[0] in documents()
    return found[0] if here else text


def _slug(heading: str) -> str:
    """A heading as links name it: lower case, without punctuation, hyphens for spaces."""
    words = re.sub(r"<[^>]*>|&\w+;", "", heading).lower()
    return re.sub(r"[^\w\- ]", "", words).replace(" ", "-")
