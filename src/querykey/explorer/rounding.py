"""Numbers as the page gets them: rounded to the digits that it prints.

A rounded array is ``{"shape": […], "digits": d, "values": […]}``: whole numbers, row by row, which are 10^d times the
values; null where there is none. So what the page prints is what the model computed, to the last digit shown.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool
from torch import Tensor

Rounded = dict[str, Any]

WEIGHT_DIGITS = 3  # 12.3 %
SCORE_DIGITS = 2


def rounded(values: Tensor, digits: int | None = None, allowed: Bool[Tensor, "..."] | None = None) -> Rounded:
    """An array for the page: by default with as many digits as make its largest number one of 50 to 500 steps.

    Values that are not `allowed` become null.
    """
    numbers = values.detach().double().numpy()
    digits = _digits(float(np.abs(numbers).max(initial=0))) if digits is None else digits
    whole: list[Any] = np.rint(numbers * 10.0**digits).astype(np.int64).flatten().tolist()
    if allowed is not None:
        whole = [value if here else None for value, here in zip(whole, allowed.flatten().tolist(), strict=True)]
    return {"shape": list(numbers.shape), "digits": digits, "values": whole}


def _digits(largest: float) -> int:
    return int(np.clip(np.floor(np.log10(500 / (largest or 1.0))), 0, 5))
