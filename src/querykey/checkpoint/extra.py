"""The packages that reading checkpoints needs beyond torch, imported when they are used."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def extra(module: str) -> Any:
    """The module of that name; where its package is missing, an ImportError that says what to install."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        package = module.partition(".")[0]
        if error.name and error.name.partition(".")[0] != package:
            raise  # the package is there, something else is not
        raise ImportError(f'reading checkpoints needs {package}: pip install "querykey[inspect]"') from error
