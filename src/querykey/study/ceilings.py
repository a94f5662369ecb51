"""Ceilings: the largest share of positions at which one head can give its highest weight to the right position."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

from querykey.design import Design
from querykey.models.native import trace
from querykey.study.config import Config
from querykey.tasks import Ceiling, Relation, argmax_ceiling
from querykey.tasks.ceiling import Scores
from querykey.transformer import Transformer


def kind_of_scores(design: Design) -> Scores:
    """What is known of a design's scores without a mask: see `argmax_ceiling`."""
    if not design.shares("q", "k") or design.core == "full":
        return "general"
    if design.core is not None:
        return "symmetric"
    # a norm with learned gains makes keys of nearly one length, but not exactly: it stays with the general shared head
    return "psd" if design.similarity == "dot" else "equal norms"


def ceiling(task: Relation, design: Design, config: Config) -> Ceiling | None:
    """The ceiling of a design on a relation; None for more than one head or layer, to which it does not apply."""
    if config.heads > 1 or config.layers > 1:
        return None
    return argmax_ceiling(task.kind, task.length, kind_of_scores(design), design.selfmask)


def argmax_share(
    model: Transformer, inputs: Int[Tensor, "count length features"], related: Int[Tensor, "count length"]
) -> float:
    """Share of positions at which the first head gives its highest weight to the related position."""
    model.eval()
    weights = trace(model, inputs).layers[0].weights[:, 0]
    model.train()
    return float((weights.argmax(-1) == related).double().mean())
