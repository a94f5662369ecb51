"""What a parameter of a model is called in a checkpoint, by transformers' own conversions.

Checkpoints keep the names of the code that wrote them: with or without the prefix of the base model, with parts that
have been renamed since, with one tensor where the model has three or three where it has one. The library knows how to
convert each; its conversions are run here on the numbers of the rows, which tells where every row of a parameter lies.
"""

from __future__ import annotations

from collections.abc import Collection
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from querykey.checkpoint.headmap import CheckpointError
from querykey.checkpoint.storage import Store
from querykey.extras import load

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, eq=False)
class Place:
    """Row i of a parameter is row `rows[i]` of the stored tensors `names`, put below one another; None: row i."""

    names: tuple[str, ...]
    rows: Int[Tensor, " n"] | None = None


def places(model: PreTrainedModel, needed: Collection[str], store: Store) -> dict[str, Place]:
    """Where the parameters `needed` of `model` are in `store`; those that are not there are left out."""
    loading = load("transformers.core_model_loading", "inspect")
    transforms = load("transformers.conversion_mapping", "inspect").get_model_conversion_mapping(model)
    renamings = [t for t in transforms if isinstance(t, loading.WeightRenaming)]
    converters = [t for t in transforms if isinstance(t, loading.WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    parameters, prefix = model.state_dict(), model.base_model_prefix
    found: dict[str, Place] = {}
    conversions: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(store.names, key=loading.dot_natural_key):
        target, pattern = loading.rename_source_key(name, renamings, converters, prefix, parameters)
        if target not in parameters and name in parameters:  # a name that was right as it stood
            target, pattern = name, None
        if pattern is not None:
            conversions.setdefault(target, []).append((pattern, name))
        elif target in needed:
            found[target] = Place((name,))
    for target, sources in conversions.items():
        converter = by_pattern[sources[0][0]]
        targets = {target.replace(converter.target_patterns[0], pattern) for pattern in converter.target_patterns}
        if targets.intersection(needed):
            found |= _converted(model, deepcopy(converter), target, sources, store)
    return {name: place for name, place in found.items() if name in needed}


def _converted(
    model: PreTrainedModel, converter: Any, target: str, sources: list[tuple[str, str]], store: Store
) -> dict[str, Place]:
    """Runs a conversion on the numbers of the rows of its sources, counted through."""
    first = 0
    for pattern, name in sources:
        height = store.shape(name)[0]
        numbers = torch.arange(first, first + height)
        converter.add_tensor(target, name, pattern, numbers if len(store.shape(name)) == 1 else numbers[:, None])
        first += height
    try:
        results = converter.convert(target, model=model, config=model.config)
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{sources[0][1]} is stored in a form that cannot be read by rows: {error}") from error
    names = tuple(name for _, name in sources)
    found = {}
    for parameter, result in results.items():
        rows = (result[0] if isinstance(result, list) else result).flatten()
        if rows.shape[0] != model.get_parameter(parameter).shape[0]:
            raise CheckpointError(f"{names[0]} is stored in a form that cannot be read by rows, for {parameter}")
        found[parameter] = Place(names, rows)
    return found
