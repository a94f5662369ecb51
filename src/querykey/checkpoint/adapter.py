"""LoRA adapters: a folder with adapter_config.json and the factors of W + ΔW = W + scale · B A for some weights."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from querykey.checkpoint.files import Source
from querykey.checkpoint.headmap import CheckpointError
from querykey.checkpoint.pickle_file import open_pickles
from querykey.checkpoint.safetensors_file import Safetensors

CONFIG = "adapter_config.json"
WRAPPER = "base_model.model."  # before all names of modules


@dataclass(frozen=True, eq=False)
class LowRank:
    """ΔW = scale · B A for a weight stored as (out, in), or its transpose for one stored as (in, out)."""

    A: Float[Tensor, "rank in"]
    B: Float[Tensor, "out rank"]
    scale: float
    transposed: bool

    def rows(self, rows: Int[Tensor, " n"], columns: bool = False) -> Float[Tensor, "n size"]:
        """These rows of ΔW as it is stored, or its columns."""
        if columns != self.transposed:
            return self.scale * (self.A[:, rows].T @ self.B.T)
        return self.scale * (self.B[rows] @ self.A)


@dataclass(frozen=True, eq=False)
class Adapter:
    """The changes of weights, by the name of the module that each belongs to, and where the base is."""

    base: str
    changes: Mapping[str, LowRank]

    def of(self, shapes: Mapping[str, tuple[int, ...]], prefix: str) -> dict[str, LowRank]:
        """The changes by the names of parameters that a model, whose base has this `prefix`, has for them.

        Raises CheckpointError for a change that does not fit its weight, and where none belongs to this model.
        """
        found = {}
        for module, change in self.changes.items():
            full = f"{module}.weight"
            name = next((one for one in (full, full.removeprefix(f"{prefix}.")) if one in shapes), None)
            if name is None:
                continue
            size = (len(change.B), change.A.shape[1])
            if shapes[name] != (size[::-1] if change.transposed else size):
                raise CheckpointError(
                    f"the adapter changes {name} by a matrix of {size[0]} × {size[1]}, and its base has "
                    f"{shapes[name]} there; give the base that it was trained with"
                )
            found[name] = change
        if not found:
            raise CheckpointError(
                f"the adapter changes no weight of '{self.base}': it names {next(iter(self.changes), 'none')}, "
                "which is not there"
            )
        return found

    @torch.no_grad()
    def merge(self, model: nn.Module, prefix: str) -> None:
        """Add the changes to the weights of a model in memory."""
        parameters = dict(model.named_parameters())
        shapes = {name: tuple(parameter.shape) for name, parameter in parameters.items()}
        for name, change in self.of(shapes, prefix).items():
            parameters[name].add_(change.rows(torch.arange(len(parameters[name]))).to(parameters[name]))


def open_adapter(source: Source) -> Adapter:
    """The adapter in a folder. Raises CheckpointError for a kind other than LoRA, and for other tensors."""
    try:
        config = json.loads(source.path(CONFIG).read_bytes())
        base, kind = str(config["base_model_name_or_path"]), config["peft_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{CONFIG} of '{source.place}' cannot be used ({error!r}); save the adapter again"
        ) from error
    special = next((name for name in ("use_dora", "use_qalora", "arrow_config") if config.get(name)), None)
    if kind != "LORA" or special:
        raise CheckpointError(
            f"'{source.place}' is an adapter of the kind {special or kind}; expected LORA; merge it into its base with "
            "the library that made it, and give the result"
        )
    beside = Path(source.path(CONFIG)).parent / base
    return Adapter(str(beside.resolve()) if beside.is_dir() else base, dict(_changes(source, config)))


def _changes(source: Source, config: dict[str, Any]) -> Iterable[tuple[str, LowRank]]:
    names = [name for name in ("adapter_model.safetensors", "adapter_model.bin") if name in source.names]
    if not names:
        raise CheckpointError(f"'{source.place}' holds no adapter_model.safetensors beside its {CONFIG}")
    store = Safetensors(source, names[0]) if names[0].endswith("safetensors") else open_pickles(source, names[:1])
    parts: dict[str, dict[str, Tensor]] = {}
    for name in store.names:
        found = re.fullmatch(r"(.*)\.lora_([AB])(\.\w+)?\.weight", name)
        if found:
            values = store.rows(name, torch.arange(store.shape(name)[0])).float()
            parts.setdefault(found[1].removeprefix(WRAPPER), {})[found[2]] = values
        elif "lora_embedding" not in name and "modules_to_save" not in name:
            raise CheckpointError(
                f"{names[0]} holds {name}, which is no factor of LoRA; merge the adapter into its base"
            )
    for module, both in parts.items():
        if both.keys() != {"A", "B"}:
            raise CheckpointError(f"{names[0]} lacks one of the two factors for {module}; save the adapter again")
        yield (
            module,
            LowRank(both["A"], both["B"], _scale(module, len(both["A"]), config), bool(config.get("fan_in_fan_out"))),
        )


def _scale(module: str, rank: int, config: dict[str, Any]) -> float:
    """lora_alpha over the rank, or over its root (rank-stabilised)."""
    patterns: dict[str, float] = config.get("alpha_pattern") or {}
    own = [alpha for pattern, alpha in patterns.items() if re.fullmatch(rf"(.*\.)?({pattern})", module)]
    alpha = float(own[0] if own else config.get("lora_alpha", rank))
    return alpha / (sqrt(rank) if config.get("use_rslora") else rank)
