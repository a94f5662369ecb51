"""What comes out of a model on a text, reduced to what the page shows, and the difference between two such outcomes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from querykey.explorer.measures import number
from querykey.models.trace import Trace

LIKELIEST = 5  # answers that are shown for each token
ROWS = 64  # positions whose logits are worked on at once


class Answers(NamedTuple):
    """The likeliest answers at each token, and how good they are.

    `loss` is in bits, NaN where the correct answer is not known; `right` says where it is the likeliest one.
    """

    best: Int[Tensor, "length likeliest"]
    probabilities: Float[Tensor, "length likeliest"]
    loss: Float[Tensor, " length"]
    right: Bool[Tensor, " length"]


class Outcome(NamedTuple):
    """What comes out: the mean of the hidden states, and the answers of a model that has some."""

    mean: Float[Tensor, " dim"]
    answers: Answers | None


def outcome(trace: Trace, targets: Int[Tensor, " length"] | None) -> Outcome:
    """The outcome of a forward pass on one text; `targets` are the correct answers, −1 where they are not known."""
    mean = trace.hidden[0].mean(0)
    if trace.logits is None:
        return Outcome(mean, None)
    logits = trace.logits[0]
    targets = torch.full(logits.shape[:1], -1) if targets is None else targets
    parts = [_answers(rows, wanted) for rows, wanted in zip(logits.split(ROWS), targets.split(ROWS), strict=True)]
    return Outcome(mean, Answers(*(torch.cat(part) for part in zip(*parts, strict=True))))


def difference(before: Outcome, after: Outcome) -> dict[str, Any]:
    """Of two outcomes on one text: the cosine of the mean vectors, or what became of the answers."""
    if before.answers is None or after.answers is None:
        return {"cosine": number(F.cosine_similarity(before.mean, after.mean, dim=0))}
    same = before.answers.best[:, 0] == after.answers.best[:, 0]
    found: dict[str, Any] = {"same": number(same.double().mean())}
    for name, answers in (("before", before.answers), ("after", after.answers)):
        known = ~answers.loss.isnan()
        if known.any():
            right = answers.right[known].double().mean()
            found[name] = {"bits": number(answers.loss[known].mean()), "right": number(right)}
    return found


def _answers(logits: Float[Tensor, "rows classes"], targets: Int[Tensor, " rows"]) -> Answers:
    likely = logits.log_softmax(-1)
    best = likely.topk(min(LIKELIEST, likely.shape[-1]), -1)
    loss = F.nll_loss(likely, targets.clamp(min=0), reduction="none") / np.log(2)
    return Answers(
        best.indices, best.values.exp(), loss.masked_fill(targets < 0, torch.nan), best.indices[:, 0] == targets
    )
