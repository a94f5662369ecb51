"""The names of the models that are one click away; nothing here imports torch."""

from __future__ import annotations

from pathlib import Path

from querykey.spelling import existing_or_repository, hint

NAMES = ("cycle", "cycle-tied", "minilm", "bytes")  # the first one is shown where none is asked for


def known_or_elsewhere(model: str) -> str:
    """The same text: a name, a path or a repository of the Hub.

    Raises:
        ValueError: for a misspelt name, and for a path at which nothing is.
    """
    near = "" if model in NAMES or "/" in model or Path(model).exists() else hint(model, NAMES)
    if near:
        raise ValueError(f"there is no model {model!r}{near}")
    return existing_or_repository(model)
