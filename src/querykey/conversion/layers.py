"""Which projections of a model can share a latent, and turning them into ones that do.

`plan` reads the head map of a model (which rows of which weight feed which role) and gives for each layer
its `SharedLayer`: the module, the rows of the roles that share, and the projections that stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from querykey.checkpoint import HeadMap, Projection, probe
from querykey.extras import load

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROLES = {"kv": ("key", "value"), "qk": ("query", "key"), "qkv": ("query", "key", "value")}
NAMES = {"kv": "kv_proj", "qk": "qk_proj", "qkv": "qkv_latent"}


class ConversionError(ValueError):
    """A model, a text or a request that cannot be converted; the message says what to do."""


@dataclass(frozen=True, eq=False)
class SharedLayer:
    """One attention layer that is to share. `rows` are, for each projection, its runs of rows that the latent makes.

    `sizes` are the outputs of each projection in all, `kept` the names of those that go on reading the layer's input.
    `name` is that of the latent's projection, and `output` that of the output projection. `cached` says that the cache
    is to hold the latent; the original's holds `cached_numbers` for each token.
    """

    module: str
    attention: nn.Module
    dim: int
    rows: dict[str, list[tuple[int, int]]]
    sizes: dict[str, int]
    kept: tuple[str, ...]
    cached: bool
    cached_numbers: int
    name: str
    output: str | None

    @property
    def outputs(self) -> int:
        """Number of outputs that the latent makes: the widest useful latent."""
        return sum(stop - start for runs in self.rows.values() for start, stop in runs)

    def projections(self) -> Iterator[tuple[nn.Module, list[tuple[int, int]]]]:
        """The projections that share, with their runs of rows."""
        for name, runs in self.rows.items():
            yield self.attention.get_submodule(name), runs

    def weights(self) -> Float[Tensor, "dim outputs"]:
        """W = [W_K W_V], a column for each output, in the order of `rows`."""
        found = []
        for module, runs in self.projections():
            weight = out_by_in(module)
            found += [weight[start:stop] for start, stop in runs]
        return torch.cat(found).T

    def plan(self) -> dict[str, Any]:
        """What `modeling.share_attention` needs to know of this layer."""
        latent: dict[str, dict[str, Any]] = {}
        for name, runs in self.rows.items():
            size, bias = self.sizes[name], getattr(self.attention.get_submodule(name), "bias", None) is not None
            latent[name] = {"size": size, "bias": bias}
            if runs != [(0, size)]:
                latent[name]["runs"] = [list(run) for run in runs]
        return {
            "name": self.name,
            "dim": self.dim,
            "cached": self.cached,
            "latent": latent,
            "kept": list(self.kept),
        }


def shared_layers(model: PreTrainedModel, share: str) -> list[SharedLayer]:
    """The attention layers of `model` in the order in which they run, with what shares in each.

    `share` is "kv", "qk" or "qkv". Raises ConversionError where the model or one of its layers cannot share so.
    """
    _check_kind(model)
    found = probe(model.config)
    if found.skipped:
        name, reason = found.skipped[0]
        raise ConversionError(f"layer {name} of this model cannot be followed: {reason}; expected projections of x")
    base = getattr(model, model.base_model_prefix, model)
    try:
        return [_shared_layer(base, layer, share) for layer in found.layers]
    except ConversionError as error:
        others = [other for other in ROLES if other != share and _holds(base, found.layers, other)]
        raise ConversionError(f"{error}; {' and '.join(others)} can share here" if others else str(error)) from None


def out_by_in(module: nn.Module) -> Float[Tensor, "out in"]:
    """The weight of a projection with a row for each output, however the module stores it."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight if isinstance(module, nn.Linear) else weight.T


def _holds(base: nn.Module, layers: Sequence[HeadMap], share: str) -> bool:
    """Whether these roles can share in all layers."""
    try:
        return bool([_shared_layer(base, layer, share) for layer in layers])
    except ConversionError:
        return False


def _shared_layer(base: nn.Module, layer: HeadMap, share: str) -> SharedLayer:
    attention = base.get_submodule(layer.name)
    rows: dict[str, list[int]] = {}
    for role in ROLES[share]:
        for name, numbers in _rows(layer, getattr(layer, role), role):
            taken = rows.setdefault(name, [])
            if set(taken) & set(numbers):
                raise ConversionError(f"the {role} of {layer.name} shares its weights already, so it is not converted")
            taken += numbers
    query = dict(_rows(layer, layer.query, "query"))
    modules = {name: attention.get_submodule(name) for name in {*rows, *query}}
    for name, module in modules.items():
        if not _plain(module):
            raise ConversionError(
                f"{layer.name}.{name} is a {type(module).__name__}, and a plain linear projection was expected; "
                "dequantise the model, or merge its adapters, first"
            )
    sizes = {name: out_by_in(module).shape[0] for name, module in modules.items()}
    first = modules[next(iter(rows))]
    cached = sum(len(found) for role in ("key", "value") for _, found in _rows(layer, getattr(layer, role), role))
    return SharedLayer(
        layer.name,
        attention,
        out_by_in(first).shape[1],
        {name: _runs(numbers) for name, numbers in rows.items()},
        sizes,
        tuple(name for name in query if name not in rows),
        "v" in share and "k" in share,
        cached,
        NAMES[share],
        _output(layer),
    )


def _output(layer: HeadMap) -> str | None:
    """The output projection by its name within the attention module; None where it is not one module of that."""
    parts = layer.output.parts if layer.output else ()
    names = {part.weight.rpartition(".")[0] for part in parts}
    name = names.pop() if len(names) == 1 else ""
    return name.removeprefix(f"{layer.name}.") if name.startswith(f"{layer.name}.") else None


def _rows(layer: HeadMap, projection: Projection | None, role: str) -> Iterator[tuple[str, list[int]]]:
    """The projections, by name within the attention module, that make a role, each with its rows."""
    if projection is None:
        raise ConversionError(f"the {role} of {layer.name} cannot be followed, so it cannot share a latent")
    for part in projection.parts:
        if part.inner is not None:
            raise ConversionError(
                f"the {role} of {layer.name} comes from a latent already (MLA, or a model that was converted before)"
            )
        path, _, _ = part.weight.rpartition(".")
        if not path.startswith(f"{layer.name}."):
            raise ConversionError(f"the {role} of {layer.name} is made by {path}, outside of that module")
        yield path.removeprefix(f"{layer.name}."), sorted(part.rows.tolist())


def _runs(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """[4, 5, 6, 9] → [(4, 7), (9, 10)]."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][1] == number:
            runs[-1] = (runs[-1][0], number + 1)
        else:
            runs.append((number, number + 1))
    return runs


def _check_kind(model: PreTrainedModel) -> None:
    if hasattr(model.config, "querykey"):
        raise ConversionError("this model is converted already; give the original")
    if model.config.is_encoder_decoder:
        raise ConversionError("this model has an encoder and a decoder; expected a decoder alone")
    causal = load("transformers", "inspect").AutoModelForCausalLM._model_mapping
    if type(model.config) not in causal or not isinstance(model, causal[type(model.config)]):
        raise ConversionError(f"{type(model).__name__} is no causal language model; expected one with a causal head")


def _plain(module: nn.Module) -> bool:
    """Whether a module is `x W + b` with weights that are stored as numbers of 16 bits or more."""
    weight = getattr(module, "weight", None)
    linear = isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    return linear and isinstance(weight, Tensor) and weight.is_floating_point() and weight.itemsize > 1
