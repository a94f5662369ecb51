"""Autoregressive sampling. `step` maps the tokens that it has not seen yet to the logits of the next token."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


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


@torch.no_grad()
def sample(
    step: Callable[[Tensor], Tensor],
    tokens: Int[Tensor, "batch length"],
    steps: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    stop: int | None = None,
) -> Int[Tensor, "batch new"]:
    """Up to `steps` tokens after these.

    Args:
        step: maps the tokens that it has not seen yet, (batch, new), to the logits of the next one, (batch, classes).
        tokens: the prompts.
        steps: the most tokens to generate.
        temperature: logits are divided by it before the softmax; 0 takes the most likely token.
        generator: of the draws.
        stop: a token that ends a row, which is then filled with it; sampling ends when all rows have.
    """
    found = list(_samples(step, tokens, steps, temperature, generator, stop))
    return torch.stack(found, 1) if found else tokens.new_empty(len(tokens), 0)


def _samples(
    step: Callable[[Tensor], Tensor],
    tokens: Tensor,
    steps: int,
    temperature: float,
    generator: torch.Generator | None,
    stop: int | None,
) -> Iterator[Tensor]:
    stopped = torch.zeros(len(tokens), dtype=torch.bool, device=tokens.device)
    for _ in range(steps):
        new = _draw(step(tokens), temperature, generator)
        if stop is not None:
            new = new.masked_fill(stopped, stop)
            stopped |= new == stop
        yield new
        if stop is not None and bool(stopped.all()):
            return
        tokens = new.unsqueeze(1)


def _draw(
    logits: Float[Tensor, "batch classes"], temperature: float, generator: torch.Generator | None
) -> Int[Tensor, " batch"]:
    """A token for each row from softmax(logits / temperature), or the most likely one."""
    if temperature == 0:
        return logits.argmax(-1)
    return torch.multinomial((logits / temperature).softmax(-1), 1, generator=generator).squeeze(-1)
