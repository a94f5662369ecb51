"""What is to be timed: shapes, designs, passes, and where."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.bench.timing import LEAST_ROUNDS
from querykey.design import PARTITIONS, Design
from querykey.machine import cores, processor
from querykey.spelling import unknown

PASSES = ("prefill", "training", "decoding")
PEERS = ("mha", "x-transformers", "hf")
DTYPES = ("float32", "bfloat16", "float16", "float64")


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
            ValueError: if these are not four positive whole numbers.
        """
        numbers = text.split(",")
        if len(numbers) != 4 or not all(number.strip().isdecimal() and int(number) > 0 for number in numbers):
            raise ValueError(
                f"a shape is four positive whole numbers, batch,length,dim,heads, such as 32,64,128,4, not {text!r}"
            )
        return cls(*map(int, numbers))

    def __str__(self) -> str:
        return ",".join(map(str, self))


SHAPES = (Shape(32, 64, 128, 4), Shape(8, 128, 256, 4), Shape(4, 512, 512, 8))


@dataclass(frozen=True)
class Setting:
    """What a benchmark is asked to time. The first design is the baseline.

    Args:
        shapes: of inputs and layers.
        designs: each is timed at each shape.
        passes: some of `PASSES`.
        causal: a position sees itself and what came before.
        window: of these the last so many; None for all.
        rotary: queries and keys are rotated by position.
        dtype: one of `DTYPES`.
        device: ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.
        threads: of torch on the CPU; None for as many as it takes by itself.
        cached: positions that a step of decoding looks back on.
        against: some of `PEERS`.
        rounds: how often each variant is timed.

    Raises:
        ValueError: if one of them cannot be.
    """

    shapes: tuple[Shape, ...] = SHAPES
    designs: tuple[Design, ...] = tuple(map(Design.parse, PARTITIONS))
    passes: tuple[str, ...] = PASSES
    causal: bool = False
    window: int | None = None
    rotary: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    threads: int | None = None
    cached: int = 4096
    against: tuple[str, ...] = ()
    rounds: int = 15

    def __post_init__(self) -> None:
        for name in ("shapes", "designs", "passes"):
            if not getattr(self, name):
                raise ValueError(f"there must be at least one of the {name}")
            object.__setattr__(self, name, tuple(dict.fromkeys(getattr(self, name))))
        _check_known("pass", self.passes, PASSES)
        _check_known("peer", self.against, PEERS)
        _check_known("dtype", (self.dtype,), DTYPES)
        for name, least in {"rounds": LEAST_ROUNDS, "cached": 2, "threads": 1, "window": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"{name} must be at least {least}, not {value}")
        if self.threads is not None and self.threads > (most := os.cpu_count() or 1):
            raise ValueError(f"threads must be at most {most}, the cores of this machine, not {self.threads}")
        if self.window is not None and not self.causal:
            raise ValueError("a window is of causal attention; give --causal too")
        if self.window is not None and self.against:
            raise ValueError("the layers of other libraries have no window here; leave --against or --window out")
        _check_device(self.device)

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as torch has it."""
        found: torch.dtype = getattr(torch, self.dtype)
        return found


class Case(NamedTuple):
    """One shape and one pass: what is timed in one interleaving."""

    shape: Shape
    what: str
    cached: int
    causal: bool
    device: torch.device
    dtype: torch.dtype
    window: int | None = None

    @classmethod
    def of(cls, setting: Setting, shape: Shape, what: str) -> Case:
        """Of a setting; a decoding step is always causal."""
        causal = setting.causal or what == "decoding"
        device = torch.device(setting.device)
        return cls(shape, what, setting.cached, causal, device, setting.torch_dtype, setting.window)

    @property
    def decoding(self) -> bool:
        """Whether it is a step after others."""
        return self.what == "decoding"

    @property
    def seen(self) -> int:
        """How many positions a step of decoding looks at, its own included."""
        return self.cached + 1 if self.window is None else min(self.cached + 1, self.window)

    @property
    def training(self) -> bool:
        """Whether gradients are taken."""
        return self.what == "training"

    def numbers(self, *sizes: int) -> Tensor:
        """Random ones, that want a gradient in training."""
        return torch.randn(sizes, device=self.device, dtype=self.dtype, requires_grad=self.training)

    def input(self) -> Float[Tensor, "batch length dim"]:
        """What a layer reads: all positions, or the new one."""
        return self.numbers(self.shape.batch, 1 if self.what == "decoding" else self.shape.length, self.shape.dim)


def machine(device: str) -> str:
    """A name of cores and processor, such as ``"2-core-amd-epyc"``, or the accelerator's."""
    if torch.device(device).type == "cuda":
        return slug(torch.cuda.get_device_name(device))
    return f"{cores()}-core-{slug(processor())}"


def slug(name: str) -> str:
    """A processor's name for a file: ``"Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz"`` -> ``"intel-xeon-gold-6330"``."""
    name = re.sub(r"\((R|TM)\)|@.*|\b(CPU|Processor)\b|\b\d+-Core\b", " ", name, flags=re.IGNORECASE)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "cpu"


def _check_known(what: str, names: tuple[str, ...], known: tuple[str, ...]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(unknown(what, name, known))


def _check_device(device: str) -> None:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ValueError(f"device {device!r} cannot be used; expected cpu, cuda or cuda:N") from None
    if kind not in ("cpu", "cuda"):
        raise ValueError(f"device {device!r} cannot be timed; expected cpu, cuda or cuda:N")
    if kind == "cuda":
        index = torch.device(device).index or 0
        there = torch.cuda.device_count()
        if not torch.cuda.is_available() or index >= there:
            raise ValueError(f"device {device!r} is not there: torch {torch.__version__} sees {there} CUDA devices")
