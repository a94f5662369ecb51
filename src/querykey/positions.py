"""Rotary positions (RoFormer, 2104.09864) as a value: which numbers of a head are rotated, in which pairs, how fast.

Position p rotates pair j of queries and keys by the angle p · θ_j, where θ_j = base^(−2j/size) or scaled from it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querykey.extras import needs
from querykey.spelling import unknown

# The kinds of scaling, and what a configuration of transformers must say for each.
SCALINGS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class Rotary:
    """How queries and keys are rotated by position. Hashable.

    Args:
        base: θ of the frequencies; 500,000 in Llama 3.
        size: how many numbers of a head are rotated, the first ones (partial rotary); all when None.
        interleaved: pairs are (0, 1), (2, 3), … as in GPT-J and Cohere; else (j, j + size/2) as in Llama.
        scaling: for contexts longer than those of training: ``rope_parameters`` or ``rope_scaling`` of a transformers
            configuration, such as ``{"rope_type": "llama3", "factor": 8.0, …}``. `SCALINGS` lists the kinds.
        length: longest sequence of training (``max_position_embeddings``), for scaling by a ratio of lengths.

    Raises:
        ValueError: if a number is out of range, or the scaling is of no known kind or lacks an entry.
    """

    base: float = 10_000.0
    size: int | None = None
    interleaved: bool = False
    scaling: Mapping[str, Any] | tuple[tuple[str, Any], ...] | None = None
    length: int | None = None

    def __post_init__(self) -> None:
        if not self.base > 0:
            raise ValueError(f"base must be positive, not {self.base}")
        if self.size is not None and (self.size < 2 or self.size % 2):
            raise ValueError(f"pairs of numbers are rotated, so size must be even and positive, not {self.size}")
        entries = dict(self.scaling or {})
        kind = entries.pop("rope_type", None) or entries.pop("type", None)
        if self.scaling is None or kind == "default":
            object.__setattr__(self, "scaling", None)
            return
        if kind not in SCALINGS:
            raise ValueError(unknown("scaling", str(kind), SCALINGS))
        missing = [
            name for name in SCALINGS[kind] if entries.get(name) is None and (name != "factor" or not self.length)
        ]
        if kind == "dynamic" and self.length is None:
            missing.append("length (max_position_embeddings)")
        if missing:
            raise ValueError(f"{kind} scaling needs {', '.join(missing)}, and has {', '.join(entries) or 'nothing'}")
        frozen = {name: tuple(value) if isinstance(value, list) else value for name, value in entries.items()}
        object.__setattr__(self, "scaling", (("rope_type", kind), *sorted(frozen.items())))

    @classmethod
    def from_config(cls, config: Any, *, layer_type: str | None = None, interleaved: bool = False) -> Rotary:
        """The rotation that a transformers configuration, or the dictionary of its JSON file, asks for.

        Args:
            config: has ``rope_parameters`` (or ``rope_theta`` and ``rope_scaling``), ``hidden_size`` and so on.
            layer_type: which entry of ``rope_parameters``, where these differ between layers.
            interleaved: the pairing, which configurations do not say.

        Raises:
            ValueError: if `layer_type` is needed and missing or not known, or the scaling is not known.
        """
        read: Callable[..., Any] = config.get if isinstance(config, Mapping) else partial(_attribute, config)
        entries = dict(read("rope_parameters") or read("rope_scaling") or {})
        if entries and all(isinstance(entry, Mapping) for entry in entries.values()):
            if layer_type not in entries:
                raise ValueError(unknown("layer_type", str(layer_type), entries))
            entries = dict(entries[layer_type])
        base = entries.pop("rope_theta", None) or read("rope_theta") or cls.base
        part = entries.pop("partial_rotary_factor", None) or read("partial_rotary_factor") or read("rotary_pct") or 1.0
        head: int = read("head_dim") or read("hidden_size", 0) // read("num_attention_heads", 1)
        size = None if part == 1.0 else int(part * head)
        scaling = entries if entries.get("rope_type", entries.get("type")) else None
        return cls(float(base), size, interleaved, scaling, read("max_position_embeddings"))

    @classmethod
    def of(cls, given: Rotary | bool | None) -> Rotary | None:
        """`Rotary()` for True, None for False; a `Rotary` as it is."""
        return given if isinstance(given, Rotary) else cls() if given else None

    def frequencies(self, head_dim: int) -> Frequencies:
        """The frequencies for heads of this size.

        Raises:
            MissingExtra: if the scaling needs transformers, which is not installed.
        """
        size, entries = self.size or head_dim, dict(self.scaling or {})
        plain = tuple(self.base ** (-number / size) for number in range(0, size, 2))  # no tensor: it may be a fake one
        match entries.get("rope_type"):
            case None:
                return Frequencies(size, self.interleaved, plain)
            case "linear":
                return Frequencies(size, self.interleaved, tuple(each / entries["factor"] for each in plain))
            case "dynamic":
                limit, growth = self.length or 0, float(entries["factor"])
                return Frequencies(size, self.interleaved, plain, limit=limit, growth=growth)
            case "longrope":
                limit = int(entries["original_max_position_embeddings"])
                (near, scale), (far, _) = (self._scaled(size, length) for length in (limit, limit + 1))
                return Frequencies(size, self.interleaved, near, scale, limit, far)
            case _:
                return Frequencies(size, self.interleaved, *self._scaled(size, None))

    def _scaled(self, size: int, length: int | None) -> tuple[tuple[float, ...], float]:
        """The frequencies and the factor on the rotated numbers, by the arithmetic of transformers."""
        with needs("inspect"):
            from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
        entries = dict(self.scaling or {})
        given: dict[str, Any] = {"factor": None, **entries, "rope_theta": self.base, "partial_rotary_factor": 1.0}
        config = SimpleNamespace(
            rope_parameters=given,
            rope_scaling=given,  # its name before transformers 5, which also read what follows from the configuration
            rope_theta=self.base,
            partial_rotary_factor=1.0,
            head_dim=size,
            hidden_size=size,
            num_attention_heads=1,
            max_position_embeddings=self.length,
            standardize_rope_params=lambda: None,
        )
        with torch.device("cpu"):  # also where the layer is made on the meta device
            frequencies, scale = ROPE_INIT_FUNCTIONS[given["rope_type"]](config, torch.device("cpu"), length)
        return tuple(frequencies.double().tolist()), float(scale)


def _attribute(config: Any, name: str, default: Any = None) -> Any:
    return getattr(config, name, default)


class Frequencies(NamedTuple):
    """Radians per position of each rotated pair, for heads of one size."""

    size: int
    interleaved: bool
    near: tuple[float, ...]
    scale: float = 1.0
    limit: int = 0
    far: tuple[float, ...] | None = None
    growth: float | None = None

    def at(self, length: int, device: torch.device | None = None) -> Float[Tensor, " pairs"]:
        """In float64, for a sequence of this length: beyond `limit` it may have frequencies of its own."""
        if self.far is not None and length > self.limit:
            return torch.tensor(self.far, dtype=torch.float64, device=device)
        near = torch.tensor(self.near, dtype=torch.float64, device=device)
        if self.growth is None or length <= self.limit:
            return near
        ratio = self.growth * length / self.limit - (self.growth - 1)  # dynamic NTK: of the base
        exponents = torch.arange(0, self.size, 2, dtype=torch.float64, device=device) / -self.size
        scaled: Tensor = near * (ratio ** (self.size / (self.size - 2))) ** exponents
        return scaled

    @property
    def pairs(self) -> Int[Tensor, "pairs 2"]:
        """The two numbers of a head that each pair consists of."""
        numbers = torch.arange(self.size)
        return numbers.view(-1, 2) if self.interleaved else numbers.view(2, -1).T
