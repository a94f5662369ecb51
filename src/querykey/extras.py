"""Optional dependencies. A missing one raises an error that names the extra to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any


class MissingExtra(ImportError):  # noqa: N818 - the name says what is missing
    """An optional dependency that is not installed."""


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Imports in this block belong to an extra.

    Raises:
        MissingExtra: if one of them is not installed, with the command that installs the extra.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "querykey").partition(".")[0]
        if package == "querykey":
            raise
        raise MissingExtra(
            f"this needs {package}, which is not installed; it comes with: pip install 'querykey[{extra}]'"
        ) from error


def load(module: str, extra: str) -> Any:
    """The module of that name, which belongs to an extra; raises `MissingExtra` as `needs` does."""
    with needs(extra):
        return import_module(module)
