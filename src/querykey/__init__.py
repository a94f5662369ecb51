"""Attention whose query, key and value projections are a choice, and the evidence to choose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from querykey.attention.cache import KVCache
from querykey.attention.functional import attend
from querykey.attention.layer import SelfAttention
from querykey.attention.reference import attention_scores, attention_weights
from querykey.design import PARTITIONS, Design, DesignError
from querykey.layout import Layout, PlainWeights

if TYPE_CHECKING:
    from querykey.explorer.open import explore
    from querykey.inspection.inspect import inspect
    from querykey.study.compare import compare

__version__ = "0.1.0"

__all__ = [
    "PARTITIONS",
    "Design",
    "DesignError",
    "KVCache",
    "Layout",
    "PlainWeights",
    "SelfAttention",
    "attend",
    "attention_scores",
    "attention_weights",
    "compare",
    "explore",
    "inspect",
]


def __getattr__(name: str) -> Any:
    """`compare`, `inspect` and `explore` need more than torch, and are imported when they are asked for."""
    from querykey.extras import needs

    if name == "compare":
        with needs("study"):
            from querykey.study.compare import compare
        return compare
    if name == "inspect":
        with needs("inspect"):
            from querykey.inspection.inspect import inspect
        return inspect
    if name == "explore":
        with needs("explore"):
            from querykey.explorer.open import explore
        return explore
    raise AttributeError(f"module 'querykey' has no attribute {name!r}")
