"""Autoregressive sampling and beam search over a function `step`, which maps tokens to the logits of the next one.

p(token) ∝ exp(logits / temperature), among the `top_k` most likely tokens and the `top_p` of the probability
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Step = Callable[[Tensor], Tensor]
"""Maps the tokens that it has not seen yet, (batch, new), to the logits of the next one, (batch, classes)."""

Stop = int | bytes | Sequence[int | Sequence[int]] | None
"""A token, or several tokens and sequences of tokens, each of which ends a row."""


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen.

    Args:
        temperature: logits are divided by it before the softmax; 0 takes the most likely token.
        top_k: only this many of the most likely tokens are drawn.
        top_p: only the most likely tokens that together have this probability are drawn (nucleus sampling, 1904.09751).
        generator: of the draws.
        seed: in place of a generator: of one that is made when sampling starts.
        stop: a token, or several tokens and sequences of tokens, each of which ends a row.

    Raises:
        ValueError: if a number is out of range, or both generator and seed are given.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    generator: torch.Generator | None = None
    seed: int | None = None
    stop: Stop = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 or more, not {self.temperature}")
        if self.top_k is not None and (not isinstance(self.top_k, int) or self.top_k < 1):
            raise ValueError(f"top_k must be a whole number of tokens from 1, not {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be a probability above 0, not {self.top_p}")
        if self.seed is not None and self.generator is not None:
            raise ValueError("a generator has a seed of its own; give generator or seed, not both")

    @property
    def stops(self) -> list[tuple[int, ...]]:
        """Each stop as a sequence of tokens."""
        given = [] if self.stop is None else [self.stop] if isinstance(self.stop, int | bytes) else self.stop
        return [(one,) if isinstance(one, int) else tuple(one) for one in given]

    def check_stops(self, vocabulary: int) -> None:
        """Raise ValueError if a stop is empty or has other tokens than those from 0 to below `vocabulary`."""
        for stop in self.stops:
            if not stop or not all(isinstance(token, int) and 0 <= token < vocabulary for token in stop):
                raise ValueError(f"a stop must be tokens from 0 to {vocabulary - 1}, at least one, not {list(stop)}")

    def draw(self, logits: Float[Tensor, "batch classes"], generator: torch.Generator | None) -> Int[Tensor, " batch"]:
        """A token for each row."""
        if self.temperature == 0:
            return logits.argmax(-1)
        probabilities, order = (logits / self.temperature).softmax(-1).sort(descending=True)
        if self.top_k is not None:
            probabilities[:, self.top_k :] = 0.0
        if self.top_p is not None:
            before = probabilities.cumsum(-1) - probabilities
            probabilities[before >= self.top_p * probabilities.sum(-1, keepdim=True)] = 0.0
        drawn = torch.multinomial(probabilities, 1, generator=generator)
        return order.gather(-1, drawn).squeeze(-1)


class Drawn(NamedTuple):
    """The next token of each row, and its log-probability under the model; 0 where the row has ended."""

    tokens: Int[Tensor, " batch"]
    log_probabilities: Float[Tensor, " batch"]


@torch.no_grad()
def stream(step: Step, tokens: Int[Tensor, "batch length"], steps: int, choice: Choice) -> Iterator[Drawn]:
    """Up to `steps` tokens after these, one for each row at a time; a row that has ended repeats its last token."""
    generator, stops = choice.generator, choice.stops
    if choice.seed is not None:
        generator = torch.Generator(tokens.device).manual_seed(choice.seed)
    ended = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    found = tokens[:, :0]
    for _ in range(steps):
        logits = step(tokens)
        new = choice.draw(logits, generator)
        if found.shape[1]:
            new = torch.where(ended, found[:, -1], new)
        chosen = logits.log_softmax(-1).gather(-1, new.unsqueeze(-1)).squeeze(-1)
        yield Drawn(new, chosen.masked_fill(ended, 0.0))
        if stops:
            found = torch.cat([found, new.unsqueeze(1)], 1)
            ended = ended | _ends(found, stops)
            if bool(ended.all()):
                return
        tokens = new.unsqueeze(1)


def sample(step: Step, tokens: Int[Tensor, "batch length"], steps: int, choice: Choice) -> Int[Tensor, "batch new"]:
    """The tokens of `stream`, side by side."""
    found = [drawn.tokens for drawn in stream(step, tokens, steps, choice)]
    return torch.stack(found, 1) if found else tokens.new_empty(len(tokens), 0)


@torch.no_grad()
def beam_search(
    step: Step,
    reorder: Callable[[Tensor], None],
    tokens: Int[Tensor, "batch length"],
    steps: int,
    beams: int,
    stops: Sequence[Sequence[int]] = (),
) -> Int[Tensor, "batch new"]:
    """The continuation with the highest sum of log-probabilities among those that `beams` candidates per row find.

    Args:
        step: see `Step`; after `reorder` it gets as many rows as that has named.
        reorder: continues row i from what row ``rows[i]`` has seen.
        tokens: the prompts.
        steps: the most tokens.
        beams: number of candidates that are kept for each row.
        stops: sequences of tokens that end a candidate, which then repeats its last token.
    """
    batch, device = len(tokens), tokens.device
    first = torch.arange(batch, device=device).unsqueeze(1) * beams
    found, parents = tokens.new_empty(batch * beams, 0), torch.arange(batch, device=device).repeat_interleave(beams)
    ended = torch.zeros(batch * beams, dtype=torch.bool, device=device)
    scores = torch.full((batch, beams), -torch.inf, device=device).index_fill(1, first[0], 0.0)
    for number in range(steps):
        logits = step(tokens)[parents] if number == 0 else step(tokens)
        if number == 0:
            reorder(parents)
        log = logits.log_softmax(-1)
        if number:
            kept = torch.full_like(log, -torch.inf).scatter(1, found[:, -1:], 0.0)
            log = torch.where(ended.unsqueeze(1), kept, log)
        scores, best = (scores.view(-1, 1) + log).view(batch, -1).topk(beams)
        parents, new = (best // log.shape[1] + first).flatten(), (best % log.shape[1]).flatten()
        found = torch.cat([found[parents], new.unsqueeze(1)], 1)
        ended = ended[parents] | _ends(found, stops)
        if bool(ended.all()):
            break
        reorder(parents)
        tokens = new.unsqueeze(1)
    return found.view(batch, beams, -1)[:, 0]


def _ends(found: Int[Tensor, "rows new"], stops: Sequence[Sequence[int]]) -> Bool[Tensor, " rows"]:
    """Which rows end with one of the stops."""
    ended = torch.zeros(len(found), dtype=torch.bool, device=found.device)
    for stop in stops:
        if len(stop) <= found.shape[1]:
            ended |= (found[:, -len(stop) :] == torch.tensor(stop, device=found.device)).all(1)
    return ended
