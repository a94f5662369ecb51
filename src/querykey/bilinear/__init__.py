"""The bilinear form W_Q W_Kᵀ of attention heads: its measures and the closest shared heads. Mathematics only."""

from querykey.bilinear.argmax import argmax_cycles
from querykey.bilinear.closed_form import (
    SharedHead,
    best_core,
    best_signed,
    best_tied,
    copied_queries,
    core_on_keys,
    shared_bias,
)
from querykey.bilinear.closed_form_rotary import best_signed_rotary, best_tied_rotary
from querykey.bilinear.form import METRICS, BilinearForm
from querykey.bilinear.key_value import SharedKeyValue, best_key_value
from querykey.bilinear.nulls import Null, null, random_heads
from querykey.bilinear.rotary import ROTARY_METRICS, RotaryForm
from querykey.bilinear.rotation import Rotation

__all__ = [
    "METRICS",
    "ROTARY_METRICS",
    "BilinearForm",
    "Null",
    "RotaryForm",
    "Rotation",
    "SharedHead",
    "SharedKeyValue",
    "argmax_cycles",
    "best_core",
    "best_key_value",
    "best_signed",
    "best_signed_rotary",
    "best_tied",
    "best_tied_rotary",
    "copied_queries",
    "core_on_keys",
    "null",
    "random_heads",
    "shared_bias",
]
