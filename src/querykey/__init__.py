"""Attention whose query, key and value projections are a choice, and the evidence to choose."""

from querykey.attention.cache import KVCache
from querykey.attention.functional import attend
from querykey.attention.layer import SelfAttention
from querykey.attention.reference import attention_scores, attention_weights
from querykey.design import PARTITIONS, Design, DesignError
from querykey.layout import Layout, PlainWeights

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
]
