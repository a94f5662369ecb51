"""Messages for names that are not known: the nearest known name, and the list of all of them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def hint(given: str, known: Iterable[str]) -> str:
    """ " (did you mean 'cycle'?)" for the nearest known name, "" where none is near."""
    nearest = get_close_matches(given, list(known), n=1)
    return f" (did you mean {nearest[0]!r}?)" if nearest else ""


def unknown(kind: str, given: str, known: Iterable[str]) -> str:
    """The message for a name that is none of the known ones: "unknown task 'cicle' (did you mean 'cycle'?); ..."."""
    names = list(known)
    return f"unknown {kind} {given!r}{hint(given, names)}; known are {', '.join(names)}"
