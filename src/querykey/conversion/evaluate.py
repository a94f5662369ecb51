"""What a conversion costs on text: perplexity, divergence and agreement, paired window by window; and cache bytes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from querykey.conversion.fit import Switch
from querykey.conversion.texts import Text
from querykey.extras import cache_argument, load
from querykey.stats.statistics import t_interval

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from querykey.report.progress import Watch


class Ratio(NamedTuple):
    """A perplexity ratio with its 95 % interval over windows (t distribution, paired)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class TextCost:
    """One text: mean loss of each window in nats, before and after; mean KL divergence and top-1 agreement."""

    name: str
    tokens: int
    before: tuple[float, ...]
    after: tuple[float, ...]
    divergence: float
    agreement: float

    @property
    def perplexity(self) -> tuple[float, float]:
        """Before and after."""
        return exp(_mean(self.before)), exp(_mean(self.after))

    @property
    def ratio(self) -> Ratio:
        """Perplexity after over before."""
        return paired_ratio([a - b for a, b in zip(self.after, self.before, strict=True)])


def paired_ratio(differences: Sequence[float]) -> Ratio:
    """exp of the mean difference of losses, with its interval; from 0 to infinity where there is a single window."""
    low, high = t_interval(np.asarray(differences))
    return Ratio(exp(_mean(differences)), exp(low), exp(high))


def overall(costs: Sequence[TextCost]) -> Ratio:
    """The ratio over all windows of all texts."""
    return paired_ratio([a - b for cost in costs for a, b in zip(cost.after, cost.before, strict=True)])


def evaluate(switch: Switch, texts: Sequence[Text], watch: Watch = lambda what, done, total: None) -> list[TextCost]:
    """Both models on the same windows."""
    return evaluate_each([switch], texts, watch)[0]


def evaluate_each(
    switches: Sequence[Switch], texts: Sequence[Text], watch: Watch = lambda what, done, total: None
) -> list[list[TextCost]]:
    """The costs of several conversions of one model, which is run once on each window; the last one stays applied."""
    total, done = sum(len(text.windows) for text in texts), 0
    found: list[list[TextCost]] = [[] for _ in switches]
    try:
        for text in texts:
            rows = []
            for window in text.windows:
                rows.append(_window(switches, window))
                done += 1
                watch("windows of evaluation text", done, total)
            for costs, each in zip(found, zip(*rows, strict=True), strict=True):
                before, after, divergence, agreement = (tuple(column) for column in zip(*each, strict=True))
                costs.append(TextCost(text.name, text.tokens, before, after, _mean(divergence), _mean(agreement)))
    finally:
        switches[-1].apply()
    return found


def _window(switches: Sequence[Switch], window: Int[Tensor, " length"]) -> list[tuple[float, float, float, float]]:
    """What `_compared` gives for each conversion; the model is the last conversion before and after."""
    switches[-1].restore()
    before = log_probabilities(switches[-1].model, window)
    found = []
    for switch in switches:
        switch.apply()
        found.append(_compared(before, log_probabilities(switch.model, window), window))
        switch.restore()
    return found


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, window: Int[Tensor, " length"]) -> Float[Tensor, "next vocabulary"]:
    """Of each token after the first."""
    logits = model(input_ids=window[None].to(model.device), use_cache=False).logits[0, :-1]
    found: Tensor = logits.float().log_softmax(-1)
    return found


def cache_bytes(model: PreTrainedModel, length: int = 16) -> float:
    """Bytes per token that a real cache of this model holds, counted after `length` tokens; without windows' limits."""
    cache = load("transformers", "convert").DynamicCache()
    ids = torch.arange(length)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        model(input_ids=ids.to(model.device), use_cache=True, **{cache_argument(model.forward): cache})
    held = [tensor for layer in cache.layers for tensor in (layer.keys, layer.values) if tensor is not None]
    return float(sum(tensor.nbytes for tensor in held)) / length


def _compared(before: Tensor, after: Tensor, window: Tensor) -> tuple[float, float, float, float]:
    """Loss before and after, KL(before ‖ after), and how often both find the same token likeliest."""
    labels = window[1:, None].to(before.device)
    first, second = (-float(each.gather(-1, labels).mean()) for each in (before, after))
    divergence = float((before.exp() * (before - after)).sum(-1).mean())
    return (first, second, divergence, float((before.argmax(-1) == after.argmax(-1)).float().mean()))


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
