"""What is heavier is an extra; whoever lacks one is told which."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class MissingExtra(ImportError):  # noqa: N818 - it names what is missing
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
        if error.name is None or error.name.partition(".")[0] == "querykey":
            raise
        raise MissingExtra(
            f"this needs {error.name}, which is not installed; it comes with: pip install 'querykey[{extra}]'"
        ) from error
