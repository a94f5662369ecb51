"""Models of transformers in which projections of attention read one shared latent, and whose cache holds that latent.

A layer of attention computes c = x B once, and makes the roles that share from it: k = c A_k and v = c A_v (and q where
it shares), before the model's own normalisation and rotation. The cache of such a layer, any of transformers', holds c.
Keys and values of earlier tokens are made again by the model's own attention, run on c until it asks its cache.

This file needs torch and transformers only. Folders saved as self-contained have a copy, `modeling_querykey.py`; the
`querykey` section of their config.json says which projections read the latent.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, Cache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import QuantizedCache

MODEL_TYPE = "querykey"
PART = 1024  # cached tokens whose keys and values are made at once: they stay in the processor's cache
_MADE: dict[Any, Any] = {}  # classes, by the class that they change


class Rotation:
    """The rotary module of a model, asked once in each step for the angles of all cached tokens."""

    def __init__(self, module: nn.Module | None) -> None:
        self.module: Any = module
        self.typed = module is not None and "layer_type" in inspect.signature(module.forward).parameters
        self.newest: Tensor | None = None
        self.known: dict[Any, Any] = {}
        self.checked: Tensor | None = None

    def check(self, positions: Tensor | None) -> None:
        """Raises ValueError where the positions of a row start anew: on reading, they are counted from the newest."""
        if positions is None or positions is self.checked or torch.compiler.is_compiling():
            return
        self.checked, follows = positions, positions.diff(dim=-1) == 1
        if (follows[..., :-1] & ~follows[..., 1:]).any():  # padding comes first
            raise ValueError(
                "a cache of latents was given positions that do not follow one another; expected one sequence a row, "
                "padded on the left: run packed sequences with use_cache=False"
            )

    def angles(self, newest: Tensor, first: Any, held: Tensor, attention: Any) -> Any:
        """Cosines and sines for `held` tokens in a row from `first`, counted from the last of the step's `newest`."""
        if newest is not self.newest:
            self.newest, self.known = newest, {}
        kind = {"layer_type": attention.config.layer_types[attention.layer_idx]} if self.typed else {}
        key = (first, held.shape[-2], held.dtype, *kind.values())
        if isinstance(first, Tensor) or key not in self.known:
            positions = newest[..., -1:] + torch.arange(held.shape[-2], device=held.device) + first
            self.known[key] = self.module(held, positions, **kind)
        return self.known[key]


class Shared:
    """What the modules of one attention layer have in common while it runs."""

    def __init__(self, rotation: Rotation, cached: bool, head_dim: int | None) -> None:
        self.rotation, self.cached = rotation, cached
        self.latent: Tensor | None = None
        self.reading = False  # whether keys and values of cached tokens are being made
        self.queries = head_dim  # width of the zeros in place of queries meanwhile; None is that of all heads


class FromLatent(nn.Linear):
    """A projection of the latent; it is called with the layer's input, as the projection that it replaces."""

    shared: Shared

    def forward(self, input: Tensor) -> Tensor:
        """`latent @ weightᵀ + bias`."""
        assert self.shared.latent is not None
        return super().forward(self.shared.latent)


class Kept(nn.Linear):
    """A projection of the layer's input that is not needed for keys and values: zeros while the cache is read."""

    shared: Shared

    def forward(self, input: Tensor) -> Tensor:
        """`input @ weightᵀ + bias`."""
        if self.shared.reading:
            return input.new_zeros(1).expand(*input.shape[:-1], self.shared.queries or self.out_features)
        return super().forward(input)


class Mixed(nn.Module):
    """A fused projection of which the rows in `runs`, pairs (start, stop), come from the latent."""

    def __init__(self, dim: int, rank: int, size: int, runs: list[list[int]], bias: bool) -> None:
        super().__init__()
        latent = sum(stop - start for start, stop in runs)
        self.kept, self.from_latent = Kept(dim, size - latent, bias), FromLatent(rank, latent, bias)
        self.pieces = pieces(size, runs)

    def forward(self, input: Tensor) -> Tensor:
        """All rows in the order of the projection that this one replaces."""
        rows = self.kept(input), self.from_latent(input)
        return torch.cat([rows[which].narrow(-1, start, length) for which, start, length in self.pieces], -1)


def pieces(size: int, runs: list[list[int]]) -> list[tuple[int, int, int]]:
    """Where the rows 0 … size are found in turn: (1 in the latent's rows or 0 in the others, first, how many)."""
    found, at, taken = [], 0, [0, 0]
    for start, stop in [*runs, [size, size]]:
        for which, length in ((0, start - at), (1, stop - start)):
            if length:
                found.append((which, taken[which], length))
                taken[which] += length
        at = stop
    return found


class LatentAttention(nn.Module):
    """Mixed in before the attention class of a model: makes the latent, and lets the cache hold it."""

    shared: Shared
    latent_name: str

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        """As the attention of the model."""
        shared = self.shared
        shared.latent = getattr(self, self.latent_name)(hidden_states)
        try:
            if not shared.cached:
                return super().forward(hidden_states, *args, **kwargs)
            shown, named = with_caches(args, kwargs, lambda cache: LatentCache(self, cache, args, kwargs))
            return super().forward(hidden_states, *shown, **named)
        finally:
            shared.latent = None

    def read(self, latent: Tensor, angles: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Keys and values, (batch, heads, length, size) each, of tokens with this `latent`, made in parts."""
        given = kwargs
        found: tuple[Tensor, ...] = ()
        for start in range(0, latent.shape[1], PART):
            if angles is not None:
                given = kwargs | {"position_embeddings": tuple(x[..., start : start + PART, :] for x in angles)}
            made = self._made(latent[:, start : start + PART], args, given)
            if not found:
                found = tuple(x.new_empty(*x.shape[:-2], latent.shape[1], x.shape[-1]) for x in made)
            for whole, part in zip(found, made, strict=True):
                whole[..., start : start + PART, :] = part
        return found[0], found[1]

    def _made(self, latent: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Keys and values of a part: the model's own attention, run up to where it asks its cache."""
        shared, outer = self.shared, self.shared.latent
        stub = latent.new_zeros(1).expand(*latent.shape[:-1], getattr(self, self.latent_name).in_features)
        args_, kwargs_ = with_caches(args, kwargs, lambda _: Caught())
        shared.latent, shared.reading = latent, True
        try:
            super().forward(stub, *args_, **kwargs_)
        except Caught as caught:
            return caught.key, caught.value
        except RuntimeError:
            if shared.queries is None:
                raise
            shared.queries = None  # this model does not take queries of one head
        finally:
            shared.latent, shared.reading = outer, False
        return self._made(latent, args, kwargs)


def with_caches(args: Any, kwargs: dict[str, Any], stand_in: Any) -> tuple[list[Any], dict[str, Any]]:
    """Arguments of a call, with what `stand_in` gives for a cache in its place."""
    found = [stand_in(one) if isinstance(one, Cache) else one for one in (*args, *kwargs.values())]
    return found[: len(args)], dict(zip(kwargs, found[len(args) :], strict=True))


class LatentCache:
    """Stands for the cache of a model while one layer runs: what it updates is the latent of that layer."""

    def __init__(self, attention: LatentAttention, cache: Cache, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.attention, self.cache, self.given = attention, cache, (args, kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.cache, name)

    def update(self, key: Tensor, value: Tensor, layer_idx: int, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Adds the latent of the new tokens; the keys and values of all that the cache returns."""
        assert self.attention.shared.latent is not None
        latent = self.attention.shared.latent[:, None]
        length = latent.shape[-2]
        args_, kwargs_ = self.given
        self.attention.shared.rotation.check(kwargs_.get("position_ids"))
        _, first = self.cache.get_mask_sizes(length, layer_idx)
        first = first - self.cache.get_seq_length(layer_idx) - length + 1  # counted from the newest token
        quantised = isinstance(self.cache, QuantizedCache)  # then in halves: keys alone would leave it empty values
        half, odd = divmod(latent.shape[-1], 2) if quantised else (latent.shape[-1], 0)
        group = getattr(self.cache.layers[layer_idx], "q_group_size", 1) if quantised else 1
        if group > 1 and (odd or half % group):
            raise ValueError(f"groups of {group} do not divide {half + odd / 2:g} numbers; take other groups, or fp8")
        held, rest = self.cache.update(latent[..., :half], latent[..., half:], layer_idx, *args, **kwargs)
        held = torch.cat((held, rest), -1) if rest.shape[-1] else held
        if held.shape[-2] == length:
            return key, value  # there are no earlier tokens
        angles, newest = None, kwargs_.get("position_ids")
        if "position_embeddings" in kwargs_ and newest is not None:
            angles = self.attention.shared.rotation.angles(newest, first, held[:, 0], self.attention)
        return self.attention.read(held[:, 0], angles, args_, kwargs_)


class Caught(Exception):  # noqa: N818 - carries keys and values, and is no error
    """Stands for the cache of a model, and leaves its attention with the keys and values that it is given."""

    def update(self, key: Tensor, value: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Raises this."""
        self.key, self.value = key, value
        raise self


def share_attention(attention: nn.Module, rank: int, plan: dict[str, Any], rotation: Rotation) -> None:
    """Changes one attention module in place, with new weights, as `plan` says (see `install`)."""
    head_dim = getattr(attention, "head_dim", None)
    shared = Shared(rotation, plan["cached"], head_dim if isinstance(head_dim, int) else None)
    first = next(iter(plan["latent"]))
    old = attention.get_submodule(first).get_parameter("weight")
    like: Any = {"device": old.device, "dtype": old.dtype}
    attention.add_module(plan["name"], nn.Linear(plan["dim"], rank, bias=False, **like))
    for name, rows in plan["latent"].items():
        new: nn.Module
        if rows.get("runs"):
            new = Mixed(plan["dim"], rank, rows["size"], rows["runs"], rows["bias"]).to(**like)
        else:
            new = FromLatent(rank, rows["size"], rows["bias"], **like)
        attention.set_submodule(name, new)
    for name in plan["kept"]:
        if type(module := attention.get_submodule(name)) is nn.Linear:
            module.__class__ = Kept
    changed: Any = attention
    kind = type(attention)
    if kind not in _MADE:
        _MADE[kind] = type(f"Latent{kind.__name__}", (LatentAttention, kind), {})
    changed.__class__, changed.latent_name = _MADE[kind], plan["name"]
    connect(attention, shared)


def connect(attention: nn.Module, shared: Shared) -> None:
    """Makes `shared` what the modules of one attention layer have in common."""
    for module in attention.modules():
        if isinstance(module, FromLatent | Kept | LatentAttention):
            module.shared = shared


def install(model: nn.Module, section: dict[str, Any]) -> None:
    """Changes the attention modules of `model` in place, as the `querykey` section of its configuration says.

    `section["layers"]` gives for each layer the name of its module in the base model, its `rank`, and the number of its
    plan in `section["plans"]`. A plan has the name and the input size `dim` of the latent's projection, the projections
    that read the `latent` (size, bias, and the runs of rows if not all), those that are `kept`, and whether the latent
    is `cached` in place of keys and values.
    """
    base = getattr(model, getattr(model, "base_model_prefix", ""), model)
    rotary = [module for name, module in base.named_modules() if name.endswith("rotary_emb")]
    rotation = Rotation(rotary[0] if rotary else None)
    for layer in section["layers"]:
        plan = section["plans"][layer["plan"]]
        share_attention(base.get_submodule(layer["module"]), layer["rank"], plan, rotation)


def converted_config(config: type[PreTrainedConfig]) -> Any:
    """The configuration class of a model under the type of converted models, made known to the Auto classes."""
    if config in _MADE:
        return _MADE[config]
    found = _MADE[config] = type(
        f"Converted{config.__name__}", (config,), {"model_type": MODEL_TYPE, "__module__": __name__}
    )
    for auto in (AutoModel, AutoModelForCausalLM):
        if config in auto._model_mapping:
            auto.register(found, converted_model(auto._model_mapping[config], found), exist_ok=True)
    return found


def converted_model(model: Any, config: type[PreTrainedConfig]) -> type[PreTrainedModel]:
    """The class of a model that makes its attention share when it is built."""

    def build(self: PreTrainedModel, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        model.__init__(self, config, *args, **kwargs)
        install(self, config.querykey)

    body = {"__init__": build, "config_class": config, "__module__": __name__}
    return type(f"Converted{model.__name__}", (model,), body)


def register() -> None:
    """Makes converted models known to transformers' Auto classes."""
    AutoConfig.register(MODEL_TYPE, ConvertedConfig, exist_ok=True)


class ConvertedConfig(PreTrainedConfig):
    """Reads the configuration of any converted model, as the class of the model that it was made from."""

    model_type = MODEL_TYPE

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """A configuration of the class that the `querykey` section names."""
        original = config_dict["querykey"]["model_type"]
        return converted_config(type(AutoConfig.for_model(original))).from_dict(config_dict, **kwargs)


class ConvertedModel(PreTrainedModel):
    """Loads any converted model, as the class of the model that it was made from."""

    config_class = ConvertedConfig

    @classmethod
    def from_pretrained(cls, *args: Any, config: Any = None, **kwargs: Any) -> Any:
        """As transformers'."""
        known: Any = AutoModelForCausalLM._model_mapping[type(config)]
        return known.from_pretrained(*args, config=config, **kwargs)
