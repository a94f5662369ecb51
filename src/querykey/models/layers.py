"""Attention modules of transformers as `SelfAttention` layers, and back: the same weights and the same results.

The model of the module's configuration is traced. The trace says which rows of which weight feed which head, how
queries and keys are normalised and rotated, and by what scores are scaled; there is no table of model families.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from querykey.attention import modules
from querykey.attention.layer import SelfAttention
from querykey.checkpoint import HeadMap, ModelMap, Projection, Rows
from querykey.checkpoint.probe import trace_model
from querykey.positions import Rotary

EPSILON = 1e-6  # of the norms of queries and keys in a layer
ROLES = {"q": "query", "k": "key", "v": "value", "o": "output"}
BIASES = {"alibi", "position_bias", "relative_pos", "rel_pos"}  # arguments that add to the scores


def from_module(module: nn.Module) -> SelfAttention:
    """A layer with the weights and the mode of an attention module of transformers, and its results.

    The layer has no dropout. It gives what the output projection gives: where a module then adds its input and
    normalises the sum, as `BertAttention` does, this remains to be done.

    Args:
        module: such as a `LlamaAttention`, `GPT2Attention` or `BertAttention`, with its output projection.

    Raises:
        ValueError: if the module has a part that no layer has, with its name.
    """
    site = _Site(module)
    layer = site.layer()
    targets = _by_channel(layer.named_weights())
    with torch.no_grad():
        for target in targets.values():
            target.zero_()  # of which a module may lack some, as the bias of one projection
        for piece in site.pieces:
            targets[piece.name][piece.at] = piece.tensor[piece.rows] * piece.scale + piece.offset
    return layer.train(module.training)


def write_to(layer: SelfAttention, module: nn.Module) -> None:
    """Write the plain weights of a layer to an attention module of transformers, which then gives its results.

    What the design shares is written out, and cores and latents are multiplied in; see `SelfAttention.write_to`.

    Raises:
        ValueError: if the layer computes what the module does not, with what that is.
    """
    site = _Site(module)
    weights = modules.named(modules.plain_weights(layer, site.layer("meta"), module))
    sources = _by_channel({name: tensor for name, tensor in weights.items() if tensor is not None})
    for name in sources.keys() - {piece.name for piece in site.pieces}:
        if sources[name].any():
            raise ValueError(f"the layer has {name}, and the {site.kind} has none, so it cannot hold this layer")
    with torch.no_grad():
        for piece in site.pieces:
            source = sources[piece.name][piece.at] if piece.name in sources else torch.zeros(())
            piece.tensor[piece.rows] = ((source - piece.offset) / piece.scale).to(piece.tensor)


class Piece(NamedTuple):
    """Channels `at` of a weight of the layer are the `rows` of a module's tensor, times `scale`, plus `offset`."""

    name: str
    at: Tensor | slice
    tensor: Tensor
    rows: Tensor | slice
    scale: Tensor | float = 1.0
    offset: Tensor | float = 0.0


class _Site:
    """An attention module of transformers, with what the trace of its model says of it."""

    def __init__(self, module: nn.Module) -> None:
        self.module, self.kind = module, type(module).__name__
        self.attention, self.map, self.prefix = self._find()
        self.used: set[str] = set()
        self.projections = {role: self._projection(name) for role, name in ROLES.items()}
        self._check()
        self.rotary = self._rotary()
        self.normed = bool(self.map.query.norms or self.map.key.norms)
        self.pieces = list(self._pieces())
        unknown = {name for name, _ in self.attention.named_parameters(prefix=self.map.name)} - self.used
        if unknown:
            raise self._refusal(f"its parameter {min(unknown)} is no projection, norm or sink of a layer")

    def layer(self, device: str | None = None) -> SelfAttention:
        """An untrained layer that computes what the module does."""
        found, size, value = self.map, self.map.query.size, self.projections["v"].size
        weight = self._tensor(self.projections["q"].parts[0])
        options = f"+kv_heads={found.key.heads}" * (found.key.heads != found.query.heads)
        options += f"+qk_dim={size}" * (value != size) + "+qknorm" * self.normed
        try:
            return SelfAttention(
                weight.shape[1],
                found.query.heads,
                f"q,k,v{options}",
                head_dim=value,
                causal=bool(getattr(self.attention, "is_causal", False)),
                rotary=self.rotary,
                window=found.window,
                bias=any(piece.name.endswith(".bias") for piece in self.pieces),
                softcap=getattr(self.attention, "attn_logit_softcapping", None),
                sinks=any(piece.name == "sinks" for piece in self.pieces),
                device=device or weight.device,
                dtype=weight.dtype,
            )
        except ValueError as error:
            raise self._refusal(str(error)) from error

    def _find(self) -> tuple[nn.Module, HeadMap, str]:
        """The part that computes attention, its map, and what stands before the names of the module in the model."""
        holders = [(path, part) for path, part in self.module.named_modules() if hasattr(part, "config")]
        if not holders:
            raise self._refusal("it has no config; expected the attention module of a transformers model")
        path, attention = holders[0]
        config: Any = attention.config
        found, model = _traced(config.__class__, json.dumps(config.to_dict(), sort_keys=True, default=str))
        same = [layer for layer in found.layers if _alike(attention, model.get_submodule(layer.name))]
        if not same:
            skipped = [why for name, why in found.skipped if _alike(attention, model.get_submodule(name))]
            raise self._refusal(skipped[0] if skipped else "it is no self-attention of the model of its config")
        return attention, same[0], f"{same[0].name}.".removesuffix(f"{path}." if path else "")

    def _projection(self, role: str) -> Projection:
        projection: Projection | None = getattr(self.map, role)
        if projection is None:
            raise self._refusal(f"its {role} cannot be followed to one weight")
        if any(part.inner is not None for part in projection.parts):
            raise self._refusal(f"its {role} is made in two steps, as in MLA")
        return projection

    def _check(self) -> None:
        heads, groups = self.map.query.heads, self.map.key.heads
        if self.map.key_head != tuple(head * groups // heads for head in range(heads)):
            raise self._refusal(f"its query heads read the key heads {self.map.key_head}, which are no equal groups")
        if self.map.positions == "other":
            raise self._refusal("its queries and keys depend on the position in another way than by a rotation")
        added = inspect.signature(self.attention.forward).parameters.keys() & BIASES
        if added and getattr(self.attention.config, "alibi", True):
            raise self._refusal(f"it adds {min(added)} to the scores")

    def _rotary(self) -> Rotary | None:
        """The rotation that the configuration asks for, if it is the one that was traced."""
        traced = self.map.rotary
        if traced is None:
            return None
        config, layer_types = self.attention.config, getattr(self.attention.config, "layer_types", None)
        layer_type = layer_types[self.attention.layer_idx] if layer_types else None
        first, second = traced.pairs[0].tolist()
        rotary = Rotary.from_config(
            config, layer_type=layer_type, interleaved=second == first + 1 and len(traced.pairs) > 1
        )
        expected = rotary.frequencies(self.map.query.size)
        order = traced.pairs[:, 0].argsort()
        if not torch.equal(traced.pairs[order], expected.pairs) or not torch.allclose(
            traced.frequency[order].double(), expected.at(1), rtol=1e-5, atol=1e-7
        ):
            raise self._refusal(f"its queries and keys rotate in another way than {rotary}, which its config asks for")
        return rotary

    def _pieces(self) -> Iterator[Piece]:
        """Where each weight of the layer is in the module."""
        for role, projection in self.projections.items():
            if any(part.norm for part in projection.parts):
                yield self._gain(role, projection)
            for part in projection.parts:
                scale = torch.ones(len(part.at)) if part.norm else self._scale(role, part)
                scale = scale.to(self._tensor(part))
                yield Piece(f"{role}_proj", part.at, self._tensor(part), part.rows, scale[:, None])
                if len(part.biases) > 1:
                    raise self._refusal(
                        f"its {ROLES[role]} has several biases: {', '.join(bias.name for bias in part.biases)}"
                    )
                for name, places in () if role == "o" else part.biases:
                    yield Piece(f"{role}_proj.bias", part.at, self._parameter(name), places, scale)
        bias = f"{self.projections['o'].parts[0].weight.rpartition('.')[0]}.bias"
        if self._has(bias):
            yield Piece("o_proj.bias", slice(None), self._parameter(bias), slice(None))
        if self._has(f"{self.map.name}.sinks"):
            yield Piece("sinks", slice(None), self._parameter(f"{self.map.name}.sinks"), slice(None))

    def _gain(self, role: str, projection: Projection) -> Piece:
        """The gain of the norm of queries or keys, which all heads have in common."""
        part, size = projection.parts[0], projection.size
        norm = part.norm
        places = None if part.gain is None else part.gain[part.at.argsort()].view(-1, size)
        if role not in ("q", "k") or norm is None or norm.weight is None or places is None or norm.centred or norm.bias:
            raise self._refusal(f"its {ROLES[role]} has a norm that is not an RMS norm with a gain")
        if norm.size != size or len(projection.parts) > 1 or not bool((places == places[0]).all()):
            raise self._refusal(
                f"its {ROLES[role]} has one norm of {norm.size} numbers, and the heads have {size} each"
            )
        module = self.module.get_submodule(self._own(norm.weight).rpartition(".")[0])
        epsilon = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if epsilon != EPSILON:
            raise self._refusal(f"{norm.weight} divides with an epsilon of {epsilon}, and a layer with {EPSILON}")
        gain = self._parameter(norm.weight)
        scale = self._scale(role, part)[part.at.argsort()][:size].to(gain)
        return Piece(f"{role}_gain", slice(None), gain, places[0], norm.slope * scale, norm.offset * scale)

    def _scale(self, role: str, part: Rows) -> Tensor:
        """The factor of each channel, without that of the rotation, and with that of the scores."""
        scale, size = part.scale.clone(), self.map.query.size
        if role in ("q", "k") and self.rotary is not None:
            frequencies = self.rotary.frequencies(size)
            scale[part.at % size < frequencies.size] /= frequencies.scale
        if role == "q" and self.map.scaling is not None:
            scale *= self.map.scaling * size**0.5
        return torch.where((scale - 1).abs() < 1e-6, 1.0, scale)

    def _tensor(self, part: Rows) -> Tensor:
        """The weight of a part, with a row for each channel."""
        weight = self._parameter(part.weight)
        return weight.T if part.transposed else weight

    def _parameter(self, name: str) -> Tensor:
        """A parameter by its name in the model."""
        if not self._has(name):
            raise self._refusal(
                f"it has no parameter {self._own(name)}; give the module that holds all projections, without adapters"
            )
        self.used.add(name)
        parameter = self.module.get_parameter(self._own(name)).detach()
        if not parameter.is_floating_point() or parameter.itemsize < 2:
            raise self._refusal(f"its {self._own(name)} is quantised; dequantise the model first")
        return parameter

    def _has(self, name: str) -> bool:
        return name.startswith(self.prefix) and self._own(name) in dict(self.module.named_parameters())

    def _own(self, name: str) -> str:
        return name.removeprefix(self.prefix)

    def _refusal(self, why: str) -> ValueError:
        return ValueError(f"{self.kind} cannot be a SelfAttention: {why}")


def _by_channel(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights with a row for each channel of a head, which the output projection has as columns."""
    return weights | {"o_proj": weights["o_proj"].T}


def _alike(module: nn.Module, traced: nn.Module) -> bool:
    return type(module) is type(traced) and getattr(module, "layer_idx", None) == getattr(traced, "layer_idx", None)


@lru_cache(maxsize=4)
def _traced(kind: type[Any], config: str) -> tuple[ModelMap, nn.Module]:
    """The trace of the model of a configuration; all layers of a model share it."""
    return trace_model(kind.from_dict(json.loads(config)))
