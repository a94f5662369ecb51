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
]


def __getattr__(name: str) -> Any:
    """`compare` needs more than torch, and is imported when it is asked for."""
    if name == "compare":
        from querykey.extras import needs

        with needs("study"):
            from querykey.study.compare import compare
        return compare
    raise AttributeError(f"module 'querykey' has no attribute {name!r}")
