"""Writing on: symbols are drawn one at a time, and each is read for the next. What gives the scores is a callable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def symbol_rows(prompts: Any, vocabulary: int) -> list[Int[Tensor, " length"]]:
    """The prompts, one tensor of symbols each.

    Raises:
        ValueError: if they are not several sequences of at least one symbol from 0 to below `vocabulary`.
    """
    if isinstance(prompts, str | bytes) or not all(isinstance(prompt, Tensor | Sequence) for prompt in prompts):
        raise ValueError("prompts must be several sequences of symbols; a single one goes in brackets: [prompt]")
    if any(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("a prompt must be symbols and not a string; where symbols are bytes: text.encode()")
    rows = [prompt.cpu() if isinstance(prompt, Tensor) else torch.tensor(list(prompt)) for prompt in prompts]
    if not rows or any(row.ndim != 1 or not len(row) for row in rows):
        came = ", ".join(str(tuple(row.shape)) for row in rows) or "none"
        raise ValueError(f"each prompt must be a sequence of at least one symbol, but the shapes are {came}")
    if any(row.is_floating_point() or row.dtype == torch.bool for row in rows):
        came = ", ".join(sorted({str(row.dtype) for row in rows}))
        raise ValueError(f"symbols must be whole numbers, but the prompts are of {came}")
    rows = [row.long() for row in rows]
    least, most = min(int(row.min()) for row in rows), max(int(row.max()) for row in rows)
    if least < 0 or most >= vocabulary:
        raise ValueError(f"symbols go from 0 to {vocabulary - 1}, but the prompts have some from {least} to {most}")
    return rows


def left_padded(prompts: Sequence[Tensor]) -> tuple[Int[Tensor, "batch length"], Int[Tensor, " batch"] | None]:
    """The prompts as one tensor in which all end together, and the padding before each; None where there is none."""
    lengths = torch.tensor([len(prompt) for prompt in prompts])
    padding = lengths.max() - lengths
    symbols = pad_sequence(list(prompts), batch_first=True, padding_side="left")
    return symbols, padding if bool(padding.any()) else None


@torch.no_grad()
def written(
    step: Callable[[Tensor], Tensor],
    symbols: Int[Tensor, "batch length"],
    steps: int,
    *,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
    stop: int | None = None,
) -> Int[Tensor, "batch new"]:
    """Up to `steps` symbols after these.

    Args:
        step: from the symbols that it has not seen yet, (batch, new), to the scores of the next one, (batch, classes).
        symbols: the prompts.
        steps: how many symbols to write at most.
        temperature: scores are divided by it before the softmax; 0 takes the most likely symbol.
        generator: of the draws.
        stop: a symbol after which a row is finished, and filled with it; all ends when all rows have.
    """
    found = list(_written(step, symbols, steps, temperature, generator, stop))
    return torch.stack(found, 1) if found else symbols.new_empty(len(symbols), 0)


def _written(
    step: Callable[[Tensor], Tensor],
    symbols: Tensor,
    steps: int,
    temperature: float,
    generator: torch.Generator | None,
    stop: int | None,
) -> Iterator[Tensor]:
    stopped = torch.zeros(len(symbols), dtype=torch.bool, device=symbols.device)
    for _ in range(steps):
        new = _drawn(step(symbols), temperature, generator)
        if stop is not None:
            new = new.masked_fill(stopped, stop)
            stopped |= new == stop
        yield new
        if stop is not None and bool(stopped.all()):
            return
        symbols = new.unsqueeze(1)


def _drawn(
    scores: Float[Tensor, "batch classes"], temperature: float, generator: torch.Generator | None
) -> Int[Tensor, " batch"]:
    """A symbol for each row from softmax(scores / temperature), or the most likely one."""
    if temperature == 0:
        return scores.argmax(-1)
    return torch.multinomial((scores / temperature).softmax(-1), 1, generator=generator).squeeze(-1)
