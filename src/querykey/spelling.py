"""Messages for names that are not known: the nearest known name, the list of all of them, paths that lead nowhere."""

from __future__ import annotations

import re
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path

REPOSITORY = re.compile(r"\w[\w.-]*(/[\w.-]+)?")  # a name on the Hub


def hint(given: str, known: Iterable[str]) -> str:
    """ " (did you mean 'cycle'?)" for the nearest known name, "" where none is near."""
    nearest = get_close_matches(given, list(known), n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """The message for a name that is none of the known ones: "unknown task 'cicle' (did you mean 'cycle'?); ..."."""
    names = list(known)
    return f"unknown {kind} {given!r}{hint(given, names)}; known are {', '.join(names)}"


def existing_or_repository(place: str) -> str:
    """The same place: a path that exists, or a name that a repository can have.

    Raises:
        ValueError: if it is neither.
    """
    if Path(place).exists() or (REPOSITORY.fullmatch(place) and not place.endswith(".gguf")):
        return place
    raise ValueError(f"there is no file or folder at '{place}'; give a path that exists, or a repository as owner/name")
