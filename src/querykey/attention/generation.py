"""Writing on: symbols are drawn one at a time, and each is read for the next. What gives the scores is a callable."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


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
