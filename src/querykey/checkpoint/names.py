"""Where the parameters of a model are in a checkpoint, by transformers' own conversions of names and tensors.

Checkpoints keep the names of the code that wrote them: with or without the prefix of the base model or of a wrapper,
with parts that were renamed since, with one tensor where the model has three or three where it has one. The library
knows these conversions. They are run here on row numbers, which gives the place of every row of a parameter.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from querykey.checkpoint.files import first_line
from querykey.checkpoint.gguf_file import Gguf
from querykey.checkpoint.headmap import CheckpointError
from querykey.checkpoint.storage import Store
from querykey.extras import load

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Place:
    """Row i of a parameter is row `rows[i]` of the stored tensors `names`, concatenated; None: row i."""

    names: tuple[str, ...]
    rows: Int[Tensor, " n"] | None = None


def places(model: PreTrainedModel, needed: Collection[str], store: Store) -> dict[str, Place]:
    """The places in `store` of the parameters `needed` of `model`; parameters that are not there are left out."""
    if isinstance(store, Gguf):
        return _of_gguf(model, needed, store)
    loading = load("transformers.core_model_loading", "inspect")
    transforms = load("transformers.conversion_mapping", "inspect").get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, loading.WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, loading.WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    parameters, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, Place] = {}
    conversions: dict[str, list[tuple[str, str]]] = {}
    stored = unwrapped(store.names, parameters, prefix)
    for name in sorted(stored, key=loading.dot_natural_key):
        target, pattern = loading.rename_source_key(name, renamings, converters, prefix, parameters)
        if target not in parameters and name in parameters:  # a name that needs no conversion
            target, pattern = name, None
        if pattern is not None:
            conversions.setdefault(target, []).append((pattern, stored[name]))
        elif target in needed:
            found[target] = Place((stored[name],))
    for target, sources in conversions.items():
        converter = by_pattern[sources[0][0]]
        targets = {target.replace(converter.target_patterns[0], pattern) for pattern in converter.target_patterns}
        if targets.intersection(needed):
            found |= _converted(model, deepcopy(converter), target, sources, store)
    return {name: place for name, place in found.items() if name in needed}


def _of_gguf(model: PreTrainedModel, needed: Collection[str], store: Gguf) -> dict[str, Place]:
    """The places in a GGUF file, which has names of its own for the modules of all models."""
    names = store.by_model(int(model.config.num_hidden_layers))
    found = {}
    for name in needed:
        module, _, role = name.rpartition(".")
        for full in (module, f"{model.base_model_prefix}.{module}"):
            stored = f"{names.get_name(full)}.{role}"
            if stored in store.names:
                found[name] = Place((stored,))
    return found


def unwrapped(names: Collection[str], parameters: Collection[str], base: str) -> dict[str, str]:
    """The stored names, by the names without what wrappers put before them.

    `torch.compile` inserts `_orig_mod.`; data parallel (`module.`) and training code (`model.`) put one or two parts
    before all names. The prefix is the one without which most names are `parameters`, with or without `base`.
    """
    short = {name.replace("_orig_mod.", ""): name for name in names}
    known = {name.removeprefix(f"{base}.") for name in parameters}

    def hits(prefix: str) -> int:
        bare = (name.removeprefix(prefix) for name in short if name.startswith(prefix))
        return sum(name.removeprefix(f"{base}.") in known for name in bare)

    parts = [name.split(".") for name in short]
    prefixes = {".".join(part[:count]) + "." for part in parts for count in (1, 2) if len(part) > count}
    best = max(["", *sorted(prefixes)], key=hits) if not hits("") else ""
    return {name.removeprefix(best): stored for name, stored in short.items()}


def _converted(
    model: PreTrainedModel, converter: Any, target: str, sources: list[tuple[str, str]], store: Store
) -> dict[str, Place]:
    """Run a conversion on the row numbers of its sources, counted through all of them."""
    first = 0
    for pattern, name in sources:
        height = store.shape(name)[0]
        numbers = torch.arange(first, first + height)
        converter.add_tensor(target, name, pattern, numbers if len(store.shape(name)) == 1 else numbers[:, None])
        first += height
    try:
        results = converter.convert(target, model=model, config=model.config)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{sources[0][1]} cannot be converted by rows: {first_line(error)}") from error
    names = tuple(name for _, name in sources)
    found = {}
    for parameter, result in results.items():
        rows = (result[0] if isinstance(result, list) else result).flatten()
        if rows.shape[0] != model.get_parameter(parameter).shape[0]:
            raise CheckpointError(f"{names[0]} cannot be converted by rows to {parameter}")
        found[parameter] = Place(names, rows)
    return found
