"""Matching designs before they are compared: at equal width, equal parameters or equal FLOPs.

What sharing saves is given back to the model, so that a difference is of the design and not of its size. It goes into
the MLP's hidden width where there is an MLP, and else into the head size (of queries, keys and values alike). Counted
are the blocks, attention and MLP: embeddings and norms are the same for all.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, get_args

from querykey.design import Design, DesignError
from querykey.study.config import PlanError, Setting

Match = Literal["width", "parameters", "flops"]
TOLERANCE = 0.02


def matched(setting: Setting, design: Design, baseline: Design, rule: Match, length: int) -> Setting:
    """The setting in which a design costs what the baseline costs in the given one.

    Args:
        setting: of the baseline.
        design: whose setting is wanted.
        baseline: what it is matched to.
        rule: "width" leaves the setting as it is.
        length: positions of the task, for FLOPs.

    Raises:
        PlanError: if the rule is unknown, or no whole size comes within 2 %, with the nearest.
        DesignError: if the design cannot be at these sizes.
    """
    if rule not in get_args(Match):
        raise PlanError(f"match must be one of {', '.join(get_args(Match))}, not {rule!r}")
    if rule == "width" or design == baseline:
        return setting
    target = cost(setting, baseline, rule, length)
    resized = _resize_mlp if setting.mlp else _resize_heads
    best, miss = setting, abs(cost(setting, design, rule, length) / target - 1)
    for candidate in resized(setting, design, lambda one: cost(one, design, rule, length) - target):
        off = abs(cost(candidate, design, rule, length) / target - 1)
        if off < miss:
            best, miss = candidate, off
    if miss > TOLERANCE:
        raise PlanError(
            f"design {design} cannot be matched to {baseline} in {rule} within {TOLERANCE:.0%}: the nearest is "
            f"{_named(best, design)}, {miss:.1%} off; take a larger dim, or another rule"
        )
    return best


def cost(setting: Setting, design: Design, rule: Match, length: int) -> int:
    """Parameters of all blocks, or the FLOPs of their matrix products in one forward pass over `length` positions."""
    layout = setting.layout(design)
    mlp = 2 * setting.dim * setting.hidden
    if rule == "flops":
        return setting.layers * (layout.flops(length) + 2 * length * mlp)
    return setting.layers * (layout.parameters + mlp)


def _resize_mlp(setting: Setting, design: Design, excess: Callable[[Setting], int]) -> list[Setting]:
    """The two hidden widths around the exact one: the cost is linear in the width."""
    here = excess(setting)
    wider = _with_hidden(setting, setting.hidden + 1)
    exact = setting.hidden - here / (excess(wider) - here)
    return [_with_hidden(setting, max(1, int(exact) + more)) for more in (0, 1)]


def _with_hidden(setting: Setting, hidden: int) -> Setting:
    return dataclasses.replace(setting, mlp=hidden / setting.dim)


def _resize_heads(setting: Setting, design: Design, excess: Callable[[Setting], int]) -> list[Setting]:
    """Head sizes upwards and downwards until the cost has passed the target; a design may refuse some of them."""
    start = setting.layout(design).head_dim
    found = []
    for step in (1, -1):
        size = start
        while 0 < (size := size + step) <= 4 * start:
            candidate = dataclasses.replace(setting, head_dim=size)
            try:
                over = excess(candidate)
            except DesignError:
                continue
            found.append(candidate)
            if over * step > 0:
                break
    return found


def _named(setting: Setting, design: Design) -> str:
    return f"an MLP of {setting.hidden}" if setting.mlp else f"a head size of {setting.layout(design).head_dim}"
