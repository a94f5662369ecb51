"""Continuing prompts with a model that has KV caches: the arguments are checked, prompts are padded on the left."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from querykey import sampling
from querykey.attention.cache import KVCache
from querykey.sampling import Choice, Drawn, Step, Stop

Prompts = Sequence[Sequence[int] | Tensor] | Tensor


class Generation(nn.Module):
    """What a `Transformer` has to continue prompts.

    Prompts may have different lengths; rows are independent of one another. Dropout acts in training mode here too:
    call `eval` first.
    """

    embedding: nn.Embedding

    @abstractmethod
    def caches(self, padding: Int[Tensor, " batch"] | None = None) -> list[KVCache]:
        """An empty cache for each layer."""

    @abstractmethod
    def check_length(self, longest: int, steps: int) -> None:
        """Raise ValueError unless the model continues prompts, the longest of this length, by so many tokens."""

    def generate(
        self,
        prompts: Prompts,
        steps: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        seed: int | None = None,
        stop: Stop = None,
        beams: int = 1,
    ) -> Int[Tensor, "batch new"]:
        """Continue each prompt by `steps` tokens, each drawn from the model's distribution of the next one.

        Args:
            prompts: sequences of tokens, at least one token each.
            steps: the most tokens to generate.
            temperature: logits are divided by it before the softmax; 0 takes the most likely token.
            top_k: only this many of the most likely tokens are drawn.
            top_p: only the most likely tokens that together have this probability are drawn.
            generator: of the draws.
            seed: in place of a generator: of one that is made for this call.
            stop: a token, or several tokens and sequences of tokens, each of which ends a row. The row is then filled
                with its last token; generation ends when all rows have.
            beams: more than 1 searches for the most likely continuation, with this many candidates for each prompt,
                and draws nothing.

        Returns:
            The new tokens, (batch, at most steps).

        Raises:
            ValueError: if the model is an encoder, its classes are not its tokens, a prompt is empty or has other
                tokens, prompt and steps are more than the learned positions, or a number is out of range.
        """
        if not isinstance(beams, int) or beams < 1:
            raise ValueError(f"beams must be a whole number from 1, not {beams}")
        choice = Choice(temperature, top_k, top_p, generator, seed, stop)
        if beams > 1 and choice != Choice(stop=stop):
            raise ValueError("beam search draws nothing; leave out temperature, top_k, top_p, generator and seed")
        step, caches, tokens = self._started(prompts, steps, choice)
        if beams == 1:
            return sampling.sample(step, tokens, steps, choice)

        def reorder(rows: Tensor) -> None:
            for cache in caches:
                cache.select(rows)

        return sampling.beam_search(step, reorder, tokens, steps, beams, choice.stops)

    def stream(self, prompts: Prompts, steps: int, **options: Any) -> Iterator[Drawn]:
        """As `generate`, with its options but beams, one token at a time: each with its log-probability."""
        choice = Choice(**options)
        step, _, tokens = self._started(prompts, steps, choice)
        return sampling.stream(step, tokens, steps, choice)

    def _started(self, prompts: Prompts, steps: int, choice: Choice) -> tuple[Step, list[KVCache], Tensor]:
        """The model as a step with caches, the caches, and the prompts as one tensor on its device."""
        if not isinstance(steps, int) or steps < 0:
            raise ValueError(f"steps must be a whole number from 0, not {steps}")
        choice.check_stops(self.embedding.num_embeddings)
        rows = token_rows(prompts, self.embedding.num_embeddings)
        self.check_length(max(map(len, rows)), steps)
        tokens, padding = left_padded(rows)
        caches = self.caches(padding)

        def step(new: Tensor) -> Tensor:
            logits: Tensor = self(new.unsqueeze(-1), caches=caches)[:, -1]
            return logits

        device = self.embedding.weight.device
        return step, caches, tokens if device.type == "meta" else tokens.to(device)  # meta: offloaded between calls


def token_rows(prompts: Any, vocabulary: int) -> list[Int[Tensor, " length"]]:
    """The prompts, one tensor of tokens each.

    Raises:
        ValueError: if they are not several sequences of at least one token from 0 to below `vocabulary`.
    """
    if isinstance(prompts, str | bytes) or not all(isinstance(prompt, Tensor | Sequence) for prompt in prompts):
        raise ValueError("prompts must be several sequences of tokens; a single one goes in brackets: [prompt]")
    if any(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("a prompt must be tokens and not a string; where tokens are bytes: text.encode()")
    rows = [prompt.cpu() if isinstance(prompt, Tensor) else torch.tensor(list(prompt)) for prompt in prompts]
    if not rows or any(row.ndim != 1 or not len(row) for row in rows):
        came = ", ".join(str(tuple(row.shape)) for row in rows) or "none"
        raise ValueError(f"each prompt must be a sequence of at least one token, but the shapes are {came}")
    if any(row.is_floating_point() or row.dtype == torch.bool for row in rows):
        came = ", ".join(sorted({str(row.dtype) for row in rows}))
        raise ValueError(f"tokens must be whole numbers, but the prompts are of {came}")
    rows = [row.long() for row in rows]
    least, most = min(int(row.min()) for row in rows), max(int(row.max()) for row in rows)
    if least < 0 or most >= vocabulary:
        raise ValueError(f"tokens go from 0 to {vocabulary - 1}, but the prompts have some from {least} to {most}")
    return rows


def left_padded(prompts: Sequence[Tensor]) -> tuple[Int[Tensor, "batch length"], Int[Tensor, " batch"] | None]:
    """The prompts as one tensor in which all end together, and the number of padding tokens before each, or None."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    padding = lengths.max() - lengths
    tokens = pad_sequence(list(prompts), batch_first=True, padding_side="left")
    return tokens, padding if bool(padding.any()) else None
