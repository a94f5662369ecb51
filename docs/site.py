"""MkDocs hook: README is the first page, and links that leave docs/ lead to copies of the files that they name.

A link to a folder outside of docs/ becomes plain text. So the same documents work on a code host and as a site.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
FIRST = {"README.md": "index.md", "README.zh-CN.md": "index.zh-CN.md"}
LINK = re.compile(r"(?P<text>!?\[(?:[^\]\[]|\[[^\]]*\])*\])\((?!\w+:|#)(?P<path>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")
SOURCE = re.compile(r'(?P<name>src|srcset)="(?!\w+:)(?P<path>[^"]+)"')


def on_files(files: Files, config: Any) -> Files:
    """Add the first pages, and every file outside of docs/ that a page links to."""
    waiting = [*FIRST, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            files.append(File.generated(config, _uri(path), abs_src_path=str(ROOT / path)))
        if path.endswith(".md"):
            new = {found for found in _targets(path) if (ROOT / found).is_file()} - seen
            waiting += [found for found in new if not found.startswith("docs/")]
            seen |= new
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Links as the site has them."""
    path = _path(page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        target = _resolved(path, found["path"])
        if not (ROOT / target).is_file():
            return found["text"].removeprefix("[").removesuffix("]")
        return f"{found['text']}({_relative(path, target)}{found['anchor'] or ''})"

    def source(found: re.Match[str]) -> str:
        return f'{found["name"]}="{_relative(path, _resolved(path, found["path"]))}"'

    return SOURCE.sub(source, LINK.sub(link, markdown))


def _targets(path: str) -> set[str]:
    """The files that a document links to, by their paths in the repository."""
    text = (ROOT / path).read_text(encoding="utf-8")
    return {_resolved(path, found["path"]) for pattern in (LINK, SOURCE) for found in pattern.finditer(text)}


def _resolved(path: str, link: str) -> str:
    return os.path.normpath(PurePosixPath(path).parent / link)


def _relative(path: str, target: str) -> str:
    return os.path.relpath(_uri(target), PurePosixPath(_uri(path)).parent)


def _uri(path: str) -> str:
    """The place in the site of a file of the repository."""
    return FIRST.get(path, path.removeprefix("docs/"))


def _path(uri: str) -> str:
    """The path in the repository of a file of the site."""
    first = {place: path for path, place in FIRST.items()}
    return first.get(uri) or (f"docs/{uri}" if (ROOT / "docs" / uri).is_file() else uri)
