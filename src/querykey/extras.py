"""Optional dependencies. A missing one raises an error that names the extra to install."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
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


def cache_argument(forward: Callable[..., Any]) -> str:
    """What a function of transformers calls the cache that it takes: `cache` since 5.24, `past_key_values` before."""
    return "cache" if "cache" in signature(forward).parameters else "past_key_values"


def load(module: str, extra: str) -> Any:
    """The module of that name, which belongs to an extra; raises `MissingExtra` as `needs` does."""
    with needs(extra):
        return import_module(module)
