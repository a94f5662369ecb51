"""What a benchmark times: shapes, designs, passes, and where. Loads no torch, which the command line needs."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from querykey.costs import DType
from querykey.design import PARTITIONS, Design
from querykey.spelling import unknown

Pass = Literal["prefill", "training", "decoding"]
Library = Literal["mha", "x-transformers", "hf", "hf-compiled"]

LEAST_ROUNDS = 4  # fewer have no middle half


class Shape(NamedTuple):
    """A batch of sequences, and the layer that reads them."""

    batch: int
    length: int
    dim: int
    heads: int

    @classmethod
    def parse(cls, text: str) -> Shape:
        """The shape that ``"32,64,128,4"`` spells.

        Raises:
            ValueError: if these are not four positive whole numbers, or the heads do not divide dim.
        """
        numbers = text.split(",")
        if len(numbers) != 4 or not all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
            raise ValueError(
                f"a shape is four positive whole numbers, batch,length,dim,heads, such as 32,64,128,4, not {text!r}"
            )
        shape = cls(*map(int, numbers))
        if shape.dim % shape.heads:
            raise ValueError(f"shape {shape}: {shape.heads} heads do not divide dim {shape.dim}; change one of them")
        return shape

    def __str__(self) -> str:
        return ",".join(map(str, self))


@dataclass(frozen=True)
class Config:
    """What a benchmark times. The first design is the baseline.

    Args:
        shapes: batch, length, dim and heads, such as 32,64,128,4.
        designs: designs to time at each shape; the first is the baseline.
        passes: prefill, training, decoding.
        causal: let a position attend to itself and earlier positions only.
        window: with causal, number of last positions that a position attends to, itself included.
        rotary: rotate queries and keys by position.
        dtype: float32, bfloat16, float16 or float64.
        device: cpu, cuda or cuda:N.
        threads: threads of torch on the CPU (default: as torch chooses).
        cached: positions in the cache of a decoding step.
        against: layers of other libraries to time too: mha, x-transformers, hf, or hf-compiled (hf, and its decoding
            step under torch.compile too).
        rounds: rounds in which all variants take turns.

    Raises:
        ValueError: if a value is not valid, or two of them exclude each other.
    """

    shapes: tuple[Shape, ...] = (Shape(32, 64, 128, 4), Shape(8, 128, 256, 4), Shape(4, 512, 512, 8))
    designs: tuple[Design, ...] = tuple(map(Design.parse, PARTITIONS))
    passes: tuple[Pass, ...] = ("prefill", "training", "decoding")
    causal: bool = False
    window: int | None = None
    rotary: bool = False
    dtype: DType = "float32"
    device: str = "cpu"
    threads: int | None = None
    cached: int = 4096
    against: tuple[Library, ...] = ()
    rounds: int = 15

    def __post_init__(self) -> None:
        for name in ("shapes", "designs", "passes"):
            if not getattr(self, name):
                raise ValueError(f"{name} is empty; give at least one")
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        for name, kind in {"passes": Pass, "against": Library}.items():
            for value in getattr(self, name):
                if value not in get_args(kind):
                    raise ValueError(unknown(name, value, get_args(kind)))
        for name, least in {"rounds": LEAST_ROUNDS, "cached": 2, "threads": 1, "window": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if self.threads is not None and self.threads > (most := os.cpu_count() or 1):
            raise ValueError(f"threads must be at most {most}, the cores of this machine, not {self.threads}")
        if self.window is not None and not self.causal:
            raise ValueError("a window needs causal attention; give --causal too")
        if self.window is not None and self.against:
            raise ValueError("layers of other libraries are timed without a window; leave --against or --window out")
