"""Matching designs before they are compared: at equal width, equal parameters, equal FLOPs or an equal cache.

What sharing saves is given back to the model, so that a difference comes from the design and not from its size. Saved
parameters and FLOPs go into the MLP's hidden width or, where there is no MLP, into the head size. Saved cache goes into
the head size (of queries, keys and values alike). Counted are the blocks, attention and MLP; embeddings and norms are
the same for all designs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import get_args

from querykey.design import Design, DesignError
from querykey.study.config import Config, Match, PlanError

TOLERANCE = 0.02


def matched(config: Config, design: Design, baseline: Design, rule: Match, length: int) -> Config:
    """The config in which a design costs what the baseline costs in the given one.

    Args:
        config: of the baseline.
        design: the design to be matched.
        baseline: the design that it is matched to.
        rule: "width" leaves the config as it is; "parameters", "flops" and "cache" (bytes per token) change its sizes.
        length: positions of the task, for FLOPs.

    Raises:
        PlanError: if the rule is unknown, or if no whole size comes within 2 %; the message has the nearest.
        DesignError: if the design is impossible at these sizes.
    """
    if rule not in get_args(Match):
        raise PlanError(f"match must be one of {', '.join(get_args(Match))}, not {rule!r}")
    if rule == "width" or design == baseline:
        return config
    target = cost(config, baseline, rule, length)
    resized = _resize_mlp if config.mlp and rule != "cache" else _resize_heads
    best, miss = config, abs(cost(config, design, rule, length) / target - 1)
    for candidate in resized(config, design, lambda one: cost(one, design, rule, length) - target):
        off = abs(cost(candidate, design, rule, length) / target - 1)
        if off < miss:
            best, miss = candidate, off
    if miss > TOLERANCE:
        nearest = f"a head size of {best.layout(design).head_dim}"
        if resized is _resize_mlp:
            nearest = f"an MLP of {best.hidden}"
        raise PlanError(
            f"design {design} cannot be matched to {baseline} in {rule} within {TOLERANCE:.0%}: the nearest is "
            f"{nearest}, {miss:.1%} off; take other sizes, or another rule"
        )
    return best


def cost(config: Config, design: Design, rule: Match, length: int) -> int:
    """Parameters of all blocks, FLOPs of their matrix products in one forward pass, or cached bytes per token.

    FLOPs are counted over `length` positions, bytes in float32.
    """
    layout = config.layout(design)
    mlp = 2 * config.dim * config.hidden
    if rule == "flops":
        return config.layers * (layout.flops(length) + 2 * length * mlp)
    return config.layers * (layout.cache_bytes() if rule == "cache" else layout.parameters + mlp)


def _resize_mlp(config: Config, design: Design, excess: Callable[[Config], int]) -> list[Config]:
    """The two hidden widths around the exact one: the cost is linear in the width."""
    here = excess(config)
    wider = _with_hidden(config, config.hidden + 1)
    exact = config.hidden - here / (excess(wider) - here)
    return [_with_hidden(config, max(1, int(exact) + more)) for more in (0, 1)]


def _with_hidden(config: Config, hidden: int) -> Config:
    return dataclasses.replace(config, mlp=hidden / config.dim)


def _resize_heads(config: Config, design: Design, excess: Callable[[Config], int]) -> list[Config]:
    """Head sizes upwards and downwards until the cost has passed the target, without those that the design refuses."""
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
