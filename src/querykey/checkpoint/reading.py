"""The query, key, value and output weights of any trained checkpoint, layer by layer, reading only the bytes needed.

checkpoint = open_checkpoint("a/folder or repository")
for layer in range(len(checkpoint.layers)):
    weights = checkpoint.read(layer)
    forms = [(weights.W_Q[h], weights.W_K[g]) for h, g in enumerate(weights.map.key_head)]
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from querykey.checkpoint.adapter import CONFIG, open_adapter
from querykey.checkpoint.files import Source, open_source
from querykey.checkpoint.gguf_file import Gguf
from querykey.checkpoint.headmap import CheckpointError, HeadMap, ModelMap, Reason
from querykey.checkpoint.inputs import Reads, readers
from querykey.checkpoint.loading import Files
from querykey.checkpoint.names import Place, places, unwrapped
from querykey.checkpoint.parameters import Parameters
from querykey.checkpoint.pickle_file import Tensors
from querykey.checkpoint.probe import trace_model, trace_module
from querykey.checkpoint.storage import open_store
from querykey.checkpoint.tables import Tables
from querykey.extras import load

if TYPE_CHECKING:
    from transformers import PretrainedConfig

CONVERTED = "querykey"  # the type of models that `querykey convert` wrote


@dataclass(frozen=True, eq=False)
class LayerWeights:
    """The weights of one layer: query head h is x W_Q[h] + b_Q[h], its key head is `map.key_head[h]`.

    What a normalisation does to every token alike (gain, centring, and its bias in b) is folded in; its division by the
    rms is not, see `map.query.norms`. Biases are None where there are none, W_V and W_O where they were not asked for
    or where `map` says that they cannot be followed.
    """

    map: HeadMap
    W_Q: Float[Tensor, "heads dim qk_dim"]
    W_K: Float[Tensor, "kv_heads dim qk_dim"]
    b_Q: Float[Tensor, "heads qk_dim"] | None = None
    b_K: Float[Tensor, "kv_heads qk_dim"] | None = None
    W_V: Float[Tensor, "kv_heads dim v_dim"] | None = None
    b_V: Float[Tensor, "kv_heads v_dim"] | None = None
    W_O: Float[Tensor, "heads v_dim dim"] | None = None


def open_checkpoint(
    path_or_id: str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    *,
    variant: str | None = None,
) -> Checkpoint:
    """Opens a folder with config.json and weights, one of its files, a GGUF file, a folder with a LoRA adapter, or a
    repository on the Hub (at `revision`: branch, tag or commit).

    Reads the configuration and finds out which rows feed which head; no weights yet. Raises CheckpointError, a
    ValueError, where something is missing or damaged or no head can be followed. Code that comes with a checkpoint is
    run only if `trust_remote_code`.
    """
    source = open_source(path_or_id, revision)
    adapter = open_adapter(source) if CONFIG in source.names and "config.json" not in source.names else None
    whole = open_source(adapter.base, None) if adapter else source
    store = open_store(whole, variant)
    config = _of_file(store) if isinstance(store, Gguf) else _config(whole, trust_remote_code)
    model_map, model = trace_model(config, trust_remote_code)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = places(
        model, {name for layer in (*model_map.layers, *model_map.cross) for name in _parameters(layer)}, store
    )
    changes = adapter.of(shapes, model.base_model_prefix) if adapter else None
    parameters = Parameters(store, found, shapes, getattr(config, "quantization_config", None), changes)
    names = unwrapped(store.names, model.state_dict(), model.base_model_prefix)
    files = Files(whole, store, names, variant, adapter, readers(model))
    return Checkpoint(source.place, source.revision, config, _present(model_map, parameters), parameters, files)


def open_module(model: nn.Module, inputs: dict[str, Any] | None = None) -> Checkpoint:
    """As `open_checkpoint`, for a model in memory; `inputs` as in `trace_module`."""
    model_map = trace_module(model, inputs)
    tensors = dict(model.named_parameters())
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    parameters = Parameters(Tensors(tensors), {name: Place((name,)) for name in tensors}, shapes)
    return Checkpoint(type(model).__name__, None, getattr(model, "config", None), model_map, parameters)


class Checkpoint:
    """An open checkpoint: its `config`, self-attention `layers`, and `cross`-attention with keys of another input.

    `skipped` names all other attention, as (name, reason). A module in memory has no `files`, and may have no `config`.
    """

    def __init__(
        self,
        place: str,
        revision: str | None,
        config: Any,
        model_map: ModelMap,
        parameters: Parameters,
        files: Files | None = None,
    ) -> None:
        self.place, self.revision, self.config, self.files = place, revision, config, files
        self.layers, self.cross, self.skipped = model_map.layers, model_map.cross, model_map.skipped
        self._store, self._parameters = parameters.store, parameters

    def only(self, numbers: Collection[int]) -> Checkpoint:
        """The checkpoint with only the layers that have one of these `numbers`. Raises ValueError if there is none."""
        kept = [tuple(layer for layer in kind if layer.number in numbers) for kind in (self.layers, self.cross)]
        if not any(kept):
            there = [layer.number for layer in (*self.layers, *self.cross)]
            raise ValueError(
                f"'{self.place}' has no attention in the layers {sorted(numbers)}; its layers are {min(there)} to "
                f"{max(there)}"
            )
        found = ModelMap(kept[0], self.skipped, kept[1])
        return Checkpoint(self.place, self.revision, self.config, found, self._parameters, self.files)

    def before(self) -> Checkpoint | None:
        """The checkpoint without its adapter; None if it has none."""
        if self.files is None or self.files.adapter is None:
            return None
        known, files = self._parameters, replace(self.files, adapter=None)
        parameters = Parameters(known.store, known.places, known.shapes, known.quantization)
        found = ModelMap(self.layers, self.skipped, self.cross)
        return Checkpoint(files.source.place, files.source.revision, self.config, found, parameters, files)

    def reader(self, reads: Reads) -> str:
        """The name of the module that runs on text or on images alone; the whole model is "".

        Raises CheckpointError if there is none.
        """
        found: Mapping[Reads, str] = self.files.readers if self.files else {}
        if reads in found:
            return found[reads]
        kind = getattr(self.config, "model_type", self.place)
        advice = {"text": "a text (text=, --text)", "images": "a folder of images (inputs=, --inputs)"}
        instead = next((advice[other] for other in found), "neither, to inspect its weights alone")
        raise CheckpointError(f"'{self.place}', a model of type '{kind}', does not read {reads}; give {instead}")

    @property
    def bytes_read(self) -> int:
        """Bytes of the files of weights that have been read so far, headers among them."""
        return self._store.bytes_read

    @property
    def size(self) -> int:
        """Bytes of all files of weights."""
        return self._store.size

    def read(self, layer: int, values: bool = False, dtype: torch.dtype | None = torch.float32) -> LayerWeights:
        """The weights of `layers[layer]` as `dtype`; with `values` also W_V and W_O. Nothing is kept.

        Numbers after those of `layers` are of `cross`. The dtype None is the type that is stored, or float32 if that
        is shorter and something has to be folded in.
        """
        layer_map = (*self.layers, *self.cross)[layer]
        roles = [layer_map.query, layer_map.key]
        if values:
            roles += [role for role in (layer_map.value, layer_map.output) if role]
        tables = Tables(self._parameters, roles, dtype)
        W_Q, b_Q = tables.heads(layer_map.query)
        W_K, b_K = tables.heads(layer_map.key)
        W_V, b_V = tables.heads(layer_map.value) if values and layer_map.value else (None, None)
        W_O = tables.heads(layer_map.output)[0].transpose(1, 2) if values and layer_map.output else None
        return LayerWeights(layer_map, W_Q, W_K, b_Q, b_K, W_V, b_V, W_O)


def _parameters(layer: HeadMap) -> Iterator[str]:
    """The names of all parameters behind a layer's queries and keys, and values and outputs."""
    for projection in (layer.query, layer.key, layer.value, layer.output):
        for part in projection.every_part() if projection else ():
            yield from part.parameters


def _present(model_map: ModelMap, parameters: Parameters) -> ModelMap:
    """The layers whose weights are in the checkpoint; one of which only some are is damage, and an error."""
    layers: list[HeadMap] = []
    cross: list[HeadMap] = []
    skipped = list(model_map.skipped)
    for layer in (*model_map.layers, *model_map.cross):
        missing = sorted(set(_parameters(layer)) - set(parameters.places))
        if not missing:
            (cross if layer in model_map.cross else layers).append(layer)
        elif len(missing) == len(set(_parameters(layer))):
            skipped.append((layer.name, Reason("its weights are not in the checkpoint")))
        else:
            raise parameters.lacking(missing, layer.name)
    if not layers and not cross:
        raise parameters.lacking(missing, None)
    return ModelMap(tuple(layers), tuple(skipped), tuple(cross))


def _of_file(store: Gguf) -> PretrainedConfig:
    """The configuration that a GGUF file holds."""
    stored = dict(store.config)
    config: PretrainedConfig = load("transformers", "inspect").AutoConfig.for_model(stored.pop("model_type"), **stored)
    return config


def _config(source: Source, trust_remote_code: bool) -> PretrainedConfig:
    """The configuration; its code, if it brings any, only if trusted."""
    if "config.json" not in source.names:
        held = ", ".join(sorted(source.names)) or "nothing"
        raise CheckpointError(f"'{source.place}' holds no config.json; found {held}")
    path, transformers = source.path("config.json"), load("transformers", "inspect")
    try:
        content = json.loads(path.read_bytes())
        kind, brings_code = content.get("model_type"), "auto_map" in content
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"config.json of '{source.place}' is not a JSON object ({error})") from error
    if kind == CONVERTED:
        load("querykey.modeling", "inspect").register()
    if kind not in transformers.CONFIG_MAPPING and not brings_code:
        raise CheckpointError(
            f"'{source.place}' is a model of type '{kind}', which transformers {transformers.__version__} does not "
            "know; a newer one may"
        )
    if kind not in transformers.CONFIG_MAPPING and not trust_remote_code:
        raise CheckpointError(
            f"'{source.place}' is a model of type '{kind}', which needs the code that it brings; if you trust that "
            "code, allow it (trust_remote_code=True, --trust-remote-code)"
        )
    if trust_remote_code:
        for name in source.names:
            if name.endswith(".py"):
                source.path(name)  # beside config.json, where the library looks for it
    try:
        config: PretrainedConfig = transformers.AutoConfig.from_pretrained(
            path.parent, trust_remote_code=trust_remote_code
        )
        return config
    except Exception as error:  # the library raises what it likes on a configuration that it does not understand
        raise CheckpointError(
            f"config.json of '{source.place}' cannot be used: {' '.join(str(error).split())}"
        ) from error
