"""Forward passes that start in the middle of a model: its blocks return what they returned in an earlier pass.

A block is an element of the outermost `ModuleList` that an attention layer lies in. An intervention in layer l changes
nothing in the blocks before that of l, so their outputs need not be computed again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from querykey.models.intervention import Interventions
from querykey.models.trace import LayerTrace, Trace


@dataclass(eq=False)
class Start:
    """One forward pass from which others can start: the `outputs` of its blocks in the order of running.

    `layers` has for each attention layer the number of the block in which it ran.
    """

    outputs: list[Any] = field(default_factory=list)
    layers: list[int] = field(default_factory=list)


class Counter:
    """One pass through `blocks`. It records `start` if that is empty, and otherwise skips the blocks before `layer`."""

    def __init__(self, start: Start, blocks: Iterable[nn.Module], layer: int = 0) -> None:
        self.start, self.blocks = start, list(blocks)
        self.records = bool(self.blocks) and not start.outputs
        first = start.layers[layer] if layer < len(start.layers) else len(start.outputs)
        self.skipped = 0 if self.records else first
        self.ran = 0

    @property
    def layers_skipped(self) -> int:
        """How many attention layers lie in the blocks that are skipped."""
        return sum(block < self.skipped for block in self.start.layers)

    def ran_layer(self) -> None:
        """To be called after each attention layer."""
        if self.records:
            self.start.layers.append(self.ran)

    def forwards(self) -> dict[nn.Module, Callable[..., Any]]:
        """What the blocks are to run in place of their forward functions."""
        return {block: self._forward(block.forward) for block in self.blocks}

    def _forward(self, own: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            output = self.start.outputs[self.ran] if self.ran < self.skipped else own(*args, **kwargs)
            if self.records:
                self.start.outputs.append(output)
            self.ran += 1
            return output

        return run


@dataclass(eq=False)
class Pass:
    """One forward pass of a model: its interventions, which blocks it runs, and what has been recorded."""

    interventions: Interventions = field(default_factory=dict)
    blocks: Counter | None = None
    see: Callable[[LayerTrace], None] = lambda layer: None
    layer: int = 0  # that runs next
    x: Tensor | None = None  # the input of the attention module that runs
    hidden: Tensor | None = None
    logits: Tensor | None = None
    names: list[str] = field(default_factory=list)
    layers: list[LayerTrace] = field(default_factory=list)

    @property
    def trace(self) -> Trace:
        """What has been recorded."""
        assert self.hidden is not None
        return Trace(self.hidden, self.logits, tuple(self.layers))


def find_blocks(model: nn.Module, attentions: Iterable[str]) -> list[nn.Module]:
    """The blocks of the attention modules of these names, and those beside them in the same lists."""
    found: dict[nn.Module, None] = {}
    for name in attentions:
        parts = name.split(".")
        parents = (model.get_submodule(".".join(parts[:depth])) for depth in range(1, len(parts)))
        blocks = next((parent for parent in parents if isinstance(parent, nn.ModuleList)), ())
        found |= dict.fromkeys(blocks)
    return list(found)
