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
from querykey.study.config import Config, PlanError

Match = Literal["width", "parameters", "flops"]
TOLERANCE = 0.02


def matched(config: Config, design: Design, baseline: Design, rule: Match, length: int) -> Config:
    """The config in which a design costs what the baseline costs in the given one.

    Args:
        config: of the baseline.
        design: whose config is wanted.
        baseline: what it is matched to.
        rule: "width" leaves the config as it is.
        length: positions of the task, for FLOPs.

    Raises:
        PlanError: if the rule is unknown, or no whole size comes within 2 %, with the nearest.
        DesignError: if the design cannot be at these sizes.
    """
    if rule not in get_args(Match):
        raise PlanError(f"match must be one of {', '.join(get_args(Match))}, not {rule!r}")
    if rule == "width" or design == baseline:
        return config
    target = cost(config, baseline, rule, length)
    resized = _resize_mlp if config.mlp else _resize_heads
    best, miss = config, abs(cost(config, design, rule, length) / target - 1)
    for candidate in resized(config, design, lambda one: cost(one, design, rule, length) - target):
        off = abs(cost(candidate, design, rule, length) / target - 1)
        if off < miss:
            best, miss = candidate, off
    if miss > TOLERANCE:
        raise PlanError(
            f"design {design} cannot be matched to {baseline} in {rule} within {TOLERANCE:.0%}: the nearest is "
            f"{_named(best, design)}, {miss:.1%} off; take a larger dim, or another rule"
        )
    return best


def cost(config: Config, design: Design, rule: Match, length: int) -> int:
    """Parameters of all blocks, or the FLOPs of their matrix products in one forward pass over `length` positions."""
    layout = config.layout(design)
    mlp = 2 * config.dim * config.hidden
    if rule == "flops":
        return config.layers * (layout.flops(length) + 2 * length * mlp)
    return config.layers * (layout.parameters + mlp)


def _resize_mlp(config: Config, design: Design, excess: Callable[[Config], int]) -> list[Config]:
    """The two hidden widths around the exact one: the cost is linear in the width."""
    here = excess(config)
    wider = _with_hidden(config, config.hidden + 1)
    exact = config.hidden - here / (excess(wider) - here)
    return [_with_hidden(config, max(1, int(exact) + more)) for more in (0, 1)]


def _with_hidden(config: Config, hidden: int) -> Config:
    return dataclasses.replace(config, mlp=hidden / config.dim)


def _resize_heads(config: Config, design: Design, excess: Callable[[Config], int]) -> list[Config]:
    """Head sizes upwards and downwards until the cost has passed the target; a design may refuse some of them."""
    start = config.layout(design).head_dim
    found = []
    for step in (1, -1):
        size = start
        while 0 < (size := size + step) <= 4 * start:
            candidate = dataclasses.replace(config, head_dim=size)
            try:
                over = excess(candidate)
            except DesignError:
                continue
            found.append(candidate)
            if over * step > 0:
                break
    return found


def _named(config: Config, design: Design) -> str:
    return f"an MLP of {config.hidden}" if config.mlp else f"a head size of {config.layout(design).head_dim}"
