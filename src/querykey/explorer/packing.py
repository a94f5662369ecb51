"""Numbers as the page gets them: rounded to the digits that it prints, and no more, in a few bytes.

A packed array is ``{"shape": […], "digits": d, "type": "i1" | "i2" | "i4", "data": …}``: whole numbers, little-endian,
which are 10^d times the values, as base64. So what the page prints is what the model computed, to the last digit shown.
"""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
from jaxtyping import Shaped
from torch import Tensor

Packed = dict[str, Any]

PATTERN_DIGITS = 3  # 12.3 %
SCORE_DIGITS = 2


def packed(values: Tensor, digits: int | None = None) -> Packed:
    """An array for the page; by default with as many digits as make its largest number one of 50 to 500 steps."""
    numbers = values.detach().double().numpy()
    digits = _digits(numbers) if digits is None else digits
    return raw(np.rint(numbers * 10.0**digits), digits)


def raw(numbers: Shaped[np.ndarray, "..."], digits: int = 0) -> Packed:
    """Whole numbers in the smallest type that holds them."""
    largest = float(np.abs(numbers).max(initial=0))
    kind = "i1" if largest < 2**7 else "i2" if largest < 2**15 else "i4"
    data = np.clip(numbers, -(2**31) + 1, 2**31 - 1).astype(f"<{kind}").tobytes()
    return {
        "shape": list(numbers.shape),
        "digits": digits,
        "type": kind,
        "data": base64.b64encode(data).decode("ascii"),
    }


def _digits(numbers: Shaped[np.ndarray, "..."]) -> int:
    largest = float(np.abs(numbers).max(initial=0))
    return int(np.clip(np.floor(np.log10(500 / (largest or 1.0))), 0, 5))
