"""Which rows of which stored weight feed which head, found by running a model on shapes: no table of model families.

The model of a configuration, or a model in memory, runs without its weights under an `Emitter`. What arrives at
query[h, j], key[g, j] and value[g, j] in each attention tells the rows. All that is returned was found at all probes.
Attention that cannot be traced, or that did not run, is left out and named with the reason.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from querykey.checkpoint.building import NAME, build, implementations, sizes_of, without_content
from querykey.checkpoint.emission import PROBES, Emission, Emitter, Unknown
from querykey.checkpoint.files import first_line
from querykey.checkpoint.headmap import CheckpointError, HeadMap, ModelMap, Norm, Positions, Projection, Reason, Rotary
from querykey.checkpoint.inputs import examples, inputs_of, towers
from querykey.checkpoint.own_attention import OwnAttention
from querykey.checkpoint.rotation import rotates, rotation
from querykey.checkpoint.tracing import MixedError, Tracer, UntraceableError, same
from querykey.extras import load
from querykey.machine import one_thread

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel


def probe(config: PretrainedConfig, trust_remote_code: bool = False) -> ModelMap:
    """The attention layers of the model that `config` describes, and where their weights are.

    Raises CheckpointError if the model cannot be built, does not run on shapes alone, or has no attention that can be
    traced.
    """
    return trace_model(config, trust_remote_code)[0]


def trace_model(config: PretrainedConfig, trust_remote_code: bool = False) -> tuple[ModelMap, PreTrainedModel]:
    """As `probe`, with the model: good for its names and shapes alone."""
    load("transformers", "inspect")
    kind, why = getattr(config, "model_type", type(config).__name__), ""
    runs = sizes_of(config)
    found: ModelMap | None = None
    for implementation, sizes in product((NAME, "sdpa", "eager"), runs):
        recorder = Recorder()
        try:
            with one_thread(), implementations(recorder.attend):
                model = build(sizes, implementation, trust_remote_code)
                recorder.run(model)
        except Exception as error:  # a model may fail in any way on inputs that it was not made for
            why = f"{type(error).__name__}: {first_line(error)}"
            continue
        found = recorder.map().merged(found)
        why = recorder.problem()
        if (found.layers or found.cross) and (sizes is runs[-1] or not found.skipped):
            return found, model
        if recorder.uses and sizes is runs[-1]:  # attention that was seen is the same in every implementation
            break
    raise CheckpointError(f"no attention layer of a model of type '{kind}' can be traced: {why}")


def trace_module(model: nn.Module, inputs: dict[str, Any] | None = None) -> ModelMap:
    """As `probe`, for a model in memory.

    Args:
        model: it is copied without the content of its weights, and does not change.
        inputs: of its `forward`, by name, with the batch as the first axis of each; only the first example counts. A
            model of transformers needs none.
    """
    load("transformers", "inspect")
    recorder = Recorder()
    with one_thread(), implementations(recorder.attend):
        recorder.run(without_content(model), inputs and {name: examples(value) for name, value in inputs.items()})
    if recorder.layers or recorder.cross:
        return recorder.map()
    raise CheckpointError(f"no attention layer of {type(model).__name__} can be traced: {recorder.problem()}")


class Pieces(NamedTuple):
    """Calls of one attention that come probe by probe: what arrived so far, and the emission for all outputs."""

    arrived: list[tuple[Tensor, ...]]
    out: Tensor


class Recorder:
    """Runs a model and traces every call of an attention function. Layers and reasons are by module name."""

    def __init__(self) -> None:
        self.layers: dict[str, HeadMap] = {}
        self.cross: dict[str, HeadMap] = {}
        self.skipped: dict[str, Reason] = {}
        self.failures: dict[str, str] = {}  # of towers, by name
        self.uses: dict[str, set[int]] = {}  # calls of each module in the present run
        self.last: tuple[str, Emission] | None = None  # the layer whose output projection is still to be found

    def run(self, model: nn.Module, inputs: dict[str, Any] | None = None) -> None:
        """`model` on small inputs; then each tower inside that has attention which did not run."""
        self.emitter = Emitter(model, torch.Generator().manual_seed(0))
        self.tracer = Tracer(self.emitter, model)
        self.own = OwnAttention(model, self.tracer.known, self.attend)
        self.paths = {module: name for name, module in model.named_modules()}
        for name, tower in towers(model):
            for optional in (False, True):
                if (not name and not optional) or any(self.unseen(model, name)):
                    given = inputs if inputs and not name else inputs_of(tower, optional=optional)
                    self.run_tower(name, tower, given)
        for name in self.unseen(model, ""):
            self.skipped.setdefault(name, self.reason(model, name))

    def run_tower(self, name: str, tower: nn.Module, inputs: dict[str, Any]) -> None:
        """One part of the model on these inputs, as far as it runs."""
        self.uses.clear()
        self.pieces: dict[tuple[str, int], Pieces] = {}
        self.own.running.clear()
        try:
            with torch.no_grad(), self.emitter, self.own:
                tower(**inputs)
        except Exception as error:  # a model may fail in any way on inputs that it was not made for
            self.failures.setdefault(name, f"{type(error).__name__}: {first_line(error)}")
        self.settle()
        for path, calls in self.uses.items():
            for found in (self.layers, self.cross):
                if path in found:
                    found[path] = replace(found[path], uses=max(found[path].uses, len(calls)))

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """The attention of `module`: takes (batch, heads, length, size), returns (batch, length, heads, size)."""
        self.settle()
        name, call = self.paths[module], self.own.calls[module]
        batch, heads, length, size = query.shape[0], *query.shape[1:3], value.shape[-1]
        source = Unknown(f"the attention of {name}")
        parts = [x.unflatten(0, (PROBES, -1)) for x in (query, key, value)] if batch % PROBES == 0 else None
        if parts is None and self.packed(query, key):
            parts = [x.unflatten(2, (PROBES, -1)).movedim(2, 0) for x in (query, key, value)]
        if parts is not None:
            out = self.emitter.emit((batch, length, heads * size), source)
            number = self.emitter.count
            self.record(name, call, [x[:, 0] for x in parts], kwargs)
            self.last = (name, self.emitter.emissions[-1]) if self.emitter.count == number else None
            return out.unflatten(-1, (heads, -1)), None
        pieces = self.pieces.get((name, call))
        if pieces is None:
            out = self.emitter.emit((PROBES, length, heads * size), source)
            pieces = self.pieces[name, call] = Pieces([], out)
        pieces.arrived.append((query, key, value))
        place = len(pieces.arrived)
        if place == PROBES:
            self.record(name, call, [torch.cat(parts) for parts in zip(*pieces.arrived, strict=True)], kwargs)
        return pieces.out[place - 1 : place].unflatten(-1, (heads, -1)), None

    def packed(self, query: Tensor, key: Tensor) -> bool:
        """Whether the probes are parts of one sequence, as the images of a batch are in Pixtral."""
        if query.shape[0] != 1 or query.shape[2] % PROBES or key.shape[2] % PROBES:
            return False
        return all(self.tracer.known(x.unflatten(2, (PROBES, -1)).movedim(2, 0)) for x in (query, key))

    def record(self, name: str, call: int, qkv: list[Tensor], options: dict[str, Any]) -> None:
        """Trace one call; another call of a module counts as a use."""
        self.uses.setdefault(name, set()).add(call)
        known = name in self.layers or name in self.cross
        if not known:
            try:
                with torch._C.DisableTorchFunction():
                    query, key, value = qkv
                    layer, crossed = self.head_map(name, query, key, value, options)
                (self.cross if crossed else self.layers)[name] = layer
                self.skipped.pop(name, None)
            except UntraceableError as error:
                self.skipped.setdefault(name, error.reason)
            except (RuntimeError, ValueError, ZeroDivisionError) as error:  # of shapes that no projection has
                self.skipped.setdefault(name, Reason("it cannot be traced: {error}", error=first_line(error)))
        self.emitter.marks = []

    def settle(self) -> None:
        """Find the weight that has read the last layer's output since."""
        if self.last:
            name, result = self.last
            found = self.layers if name in self.layers else self.cross
            if name in found and found[name].output is None:
                with torch._C.DisableTorchFunction():
                    output = self.tracer.output(result, found[name].query.heads)
                found[name] = replace(found[name], output=output)
        self.last = None

    def head_map(
        self, name: str, query: Tensor, key: Tensor, value: Tensor, options: dict[str, Any]
    ) -> tuple[HeadMap, bool]:
        """One layer from what arrives at its attention function, and whether keys come from another input."""
        if query.is_meta or key.is_meta:
            role = "query" if query.is_meta else "key"
            raise UntraceableError("its {role} is a parameter, not a projection", role=role)
        if key.shape[1] != value.shape[1]:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        key_head, kept = distinct(torch.cat([key, value], -1), query.shape[1])
        key, value = key[:, kept], value[:, kept]
        try:
            projections, streams = self.follow(name, query[:, :, 0], key[:, :, 0], value[:, :, 0])
        except MixedError:  # positions that do not start at 0 leave a class token at the end as it is
            projections, streams = self.follow(name, query[:, :, -1], key[:, :, -1], value[:, :, -1])
        q, k, v = projections
        positions, rotary = self.positions(query, key, (*q.norms, *k.norms))
        window = options.get("sliding_window")
        layer = HeadMap(name, q, k, v, None, key_head, options.get("scaling"), positions, rotary, window=window)
        return layer, not same(*streams)

    def follow(
        self, name: str, query: Tensor, key: Tensor, value: Tensor
    ) -> tuple[tuple[Projection, Projection, Projection | None], tuple[Tensor, Tensor]]:
        """The projections of one layer, from their values at one token, and the inputs of queries and keys."""
        scope = self.tracer.scope(query, name)
        q, stream = self.tracer.follow(query, "query", scope)
        k, key_stream = self.tracer.follow(key, "key", scope)
        try:
            return (q, k, self.tracer.follow(value, "value", scope)[0]), (stream, key_stream)
        except UntraceableError:
            return (q, k, None), (stream, key_stream)

    @staticmethod
    def positions(query: Tensor, key: Tensor, norms: tuple[Norm, ...]) -> tuple[Positions, Rotary | None]:
        """How queries and keys depend on the position, as far as the first positions show."""
        if all(bool((x == x[:, :, :1]).all()) for x in (query, key)):
            return "none", None
        rotary = rotation(query)
        if rotary is None or any(norm.rotated for norm in norms) or not rotates(key, rotary):
            return "other", None
        return "rotary", rotary

    def unseen(self, model: nn.Module, tower: str) -> Iterator[str]:
        """The attention modules below a tower that have not run, or could not be traced."""
        found = {*self.layers, *self.cross}
        for name in attention_modules(model):
            related = (f"{name}.".startswith(f"{other}.") or f"{other}.".startswith(f"{name}.") for other in found)
            if below(name, tower) and not any(related):
                yield name

    def reason(self, model: nn.Module, name: str) -> Reason:
        """Why an attention module has not been seen."""
        module = model.get_submodule(name)
        if any(part in self.own.unfollowed for part in module.modules()):
            return Reason("its queries and keys are not multiples of rows of weights")
        stopped = self.own.calls[module] > 0 and not self.own.finished[module]
        if not stopped and any(self.own.finished[part] for part in module.modules()):
            return Reason("no softmax of products of queries and keys was found in it")
        failures = [why for tower, why in self.failures.items() if below(name, tower)]
        if failures:
            return Reason("it did not run ({error})", error=failures[-1])
        return Reason("it does not run on the inputs of the model")

    def problem(self) -> str:
        """Why nothing has been found."""
        if self.skipped:
            name, reason = next(iter(self.skipped.items()))
            return f"{name}: {reason}"
        if self.failures:
            return next(iter(self.failures.values()))
        return "it has no attention: no softmax of products of queries and keys"

    def map(self) -> ModelMap:
        """All that was found."""
        return ModelMap(tuple(self.layers.values()), tuple(self.skipped.items()), tuple(self.cross.values()))


def attention_modules(model: nn.Module) -> list[str]:
    """The innermost modules that are called attention and have weights."""
    named = [
        name
        for name, module in model.named_modules()
        if any(word in type(module).__name__.lower() for word in ("attention", "attn"))
        and any(parameter.dim() > 1 for parameter in module.parameters())
    ]
    return [name for name in named if not any(other.startswith(f"{name}.") for other in named)]


def below(name: str, tower: str) -> bool:
    """Whether a module is part of a tower; all are part of the whole model, ""."""
    return not tower or f"{name}.".startswith(f"{tower}.")


def distinct(keys: Float[Tensor, "probes kv_heads tokens size"], heads: int) -> tuple[tuple[int, ...], list[int]]:
    """Which key head each of the query `heads` reads, where equal ones count once, and those that are kept."""
    kept: dict[float, int] = {}  # sums of random numbers tell them apart
    sums = keys.sum((0, 2, 3)).tolist()
    for head, value in enumerate(sums):
        kept.setdefault(value, head)
    number = {value: place for place, value in enumerate(kept)}
    group = heads // len(sums)
    return tuple(number[sums[head // group]] for head in range(heads)), list(kept.values())
