"""Attention whose query, key and value projections are a choice, and the evidence to choose."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from querykey.attention.cache import KVCache
    from querykey.attention.expansion import PlainWeights
    from querykey.attention.functional import attend
    from querykey.attention.layer import SelfAttention
    from querykey.attention.reference import attention_scores, attention_weights
    from querykey.conversion.convert import convert
    from querykey.conversion.save import load
    from querykey.conversion.tie import share, unshare
    from querykey.costs import cost
    from querykey.design import PARTITIONS, Design, DesignError
    from querykey.explorer.open import explore
    from querykey.inspection.inspect import inspect
    from querykey.layout import Layout
    from querykey.positions import Rotary
    from querykey.study.compare import compare

__version__ = "0.2.0"

__all__ = [
    "PARTITIONS",
    "Design",
    "DesignError",
    "KVCache",
    "Layout",
    "PlainWeights",
    "Rotary",
    "SelfAttention",
    "attend",
    "attention_scores",
    "attention_weights",
    "compare",
    "convert",
    "cost",
    "explore",
    "inspect",
    "load",
    "share",
    "unshare",
]

# Each name with its module, and the extra that the module needs; nothing is imported before it is asked for, so that
# the command line checks its arguments without waiting for torch.
_HOME = {
    "PARTITIONS": ("querykey.design", None),
    "Design": ("querykey.design", None),
    "DesignError": ("querykey.design", None),
    "KVCache": ("querykey.attention.cache", None),
    "Layout": ("querykey.layout", None),
    "PlainWeights": ("querykey.attention.expansion", None),
    "Rotary": ("querykey.positions", None),
    "SelfAttention": ("querykey.attention.layer", None),
    "attend": ("querykey.attention.functional", None),
    "attention_scores": ("querykey.attention.reference", None),
    "attention_weights": ("querykey.attention.reference", None),
    "compare": ("querykey.study.compare", "study"),
    "convert": ("querykey.conversion.convert", "convert"),
    "cost": ("querykey.costs", None),
    "explore": ("querykey.explorer.open", "explore"),
    "inspect": ("querykey.inspection.inspect", "inspect"),
    "load": ("querykey.conversion.save", "convert"),
    "share": ("querykey.conversion.tie", "inspect"),
    "unshare": ("querykey.conversion.tie", "inspect"),
}


def __getattr__(name: str) -> Any:
    from querykey.extras import load

    if name not in _HOME:
        raise AttributeError(f"module 'querykey' has no attribute {name!r}")
    module, extra = _HOME[name]
    return getattr(load(module, extra) if extra else import_module(module), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
