"""How a checkpoint is inspected."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Per = Literal["none", "all", "layer", "head"]
CONTEXT, PIECES = 128, 32  # tokens of a piece of text, and number of pieces or images


@dataclass(frozen=True)
class Options:
    """How a checkpoint is inspected. Raises ValueError for options that exclude each other.

    Args:
        text: a file of text for the model to read: how heads behave, what sharing costs.
        inputs: a folder of images (PNG, JPEG) for a vision model, in place of a text.
        calibrate: another text, or folder of images, to fit shared heads to (default: half of what is read).
        forecast: what is replaced on a text or images: all heads at once, also one layer or head after the other,
            which takes longer, or none.
        context: tokens in a piece of text (default: 128).
        pieces: pieces of each text, or images of each folder, to read.
        layers: the model's own numbers of the layers to inspect and to replace, such as 0-5,8 (default: all).
        device: what the model runs on, such as cuda.
        revision: branch, tag or commit, for repositories.
        variant: of the files of weights, such as fp16 for model.fp16.safetensors.
        trust_remote_code: run code that comes with a checkpoint (never done otherwise).
    """

    text: str | Path | None = None
    inputs: str | Path | Mapping[str, Any] | None = None
    calibrate: str | Path | None = None
    forecast: Per = "all"
    context: int | None = None
    pieces: int = PIECES
    layers: Collection[int] | None = None
    device: str = "cpu"
    revision: str | None = None
    variant: str | None = None
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        given = self.text if self.text is not None else self.inputs
        if self.text is not None and self.inputs is not None:
            raise ValueError("a text and inputs were given; a model reads one of them at a time")
        if self.context is not None and self.inputs is not None:
            raise ValueError("a context is for text, and inputs were given; leave one of them out")
        if self.calibrate is not None and given is None:
            raise ValueError("there is something to calibrate on and nothing to measure on; give a text or inputs too")
        least = 2 if self.calibrate is None else 1
        if (self.context or CONTEXT) < 2 or self.pieces < least:
            raise ValueError(
                f"expected a context of at least 2 tokens and {least} pieces, not {self.context or CONTEXT} and "
                f"{self.pieces}"
            )
        both = [Path(one).resolve() for one in (given, self.calibrate) if isinstance(one, str | Path)]
        if len(both) == 2 and both[0] == both[1]:
            raise ValueError(f"{given} is both read and calibrated on; give two, or leave out the calibration")
