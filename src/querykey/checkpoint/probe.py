"""Which rows of which stored weight feed which head, found by watching a model run: no table of model families.

`probe` builds the model of a configuration without weights, runs two tokens through it under an `Emitter`, and reads
off what arrives at query[h, j], key[g, j] and value[g, j] in the attention function that the model calls. Everything
it returns has been found at all probes; a layer that cannot be followed is left out, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from inspect import signature
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from querykey.checkpoint.emission import PROBES, TOKENS, Emission, Emitter, Unknown
from querykey.checkpoint.headmap import CheckpointError, HeadMap, ModelMap, Norm, Positions, Projection, Rotary
from querykey.checkpoint.own_attention import OwnAttention
from querykey.checkpoint.rotation import rotation, turns
from querykey.checkpoint.tracing import Tracer, UntraceableError, same
from querykey.extras import load
from querykey.machine import one_thread

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

NAME = "querykey_probe"


def probe(config: PretrainedConfig, trust_remote_code: bool = False) -> ModelMap:
    """The attention layers of the model that `config` describes, and where their weights are.

    Raises CheckpointError where the model cannot be built, does not run on shapes alone, or has no layer that can be
    followed.
    """
    return trace_model(config, trust_remote_code)[0]


def trace_model(config: PretrainedConfig, trust_remote_code: bool = False) -> tuple[ModelMap, PreTrainedModel]:
    """As `probe`, with the model: good for its names and shapes alone."""
    load("transformers", "inspect")
    kind, why = getattr(config, "model_type", type(config).__name__), ""
    for implementation in (NAME, "sdpa", "eager"):  # its own hook, else the functions that it calls by itself
        recorder = Recorder()
        try:
            with one_thread(), implementations(recorder.attend):
                model = build(config, implementation, trust_remote_code)
                recorder.run(model)
        except Exception as error:  # a model may fail in any way on what it was not made for
            why = f"{type(error).__name__}: {' '.join(str(error).split())}"
            continue
        if recorder.layers:
            return recorder.map(), model
        why = "it computes attention in a way that is not known here"
        if recorder.skipped:
            why = ": ".join(recorder.skipped[0])
            break
    raise CheckpointError(f"no attention layer of a model of type '{kind}' can be followed: {why}")


def build(config: PretrainedConfig, implementation: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model with parameters of the right shapes and no content, and real buffers."""
    no_init_weights = load("transformers.initialization", "inspect").no_init_weights
    with ShapesAlone(), parameters_on_meta(), no_init_weights(), torch.no_grad():
        model: PreTrainedModel = load("transformers", "inspect").AutoModel.from_config(
            deepcopy(config),
            trust_remote_code=trust_remote_code,
            dtype=torch.float64,
            attn_implementation=implementation,
            experts_implementation=NAME,
        )
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_meta:
                module._buffers[name] = torch.zeros((), dtype=buffer.dtype).expand(buffer.shape)
    model.eval()
    return model


@contextmanager
def implementations(attention: Callable[..., Any]) -> Iterator[None]:
    """Makes `attention` the attention implementation `NAME` of transformers, and one for experts that skips them."""
    attentions = load("transformers.modeling_utils", "inspect").ALL_ATTENTION_FUNCTIONS
    experts = load("transformers.integrations.moe", "inspect").ALL_EXPERTS_FUNCTIONS
    logging = load("transformers", "inspect").logging
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # no advice on masks and kernels: nothing is computed here
    attentions[NAME] = attention
    experts[NAME] = lambda module, hidden, *_, **__: hidden.clone()
    try:
        yield
    finally:
        del attentions[NAME], experts[NAME]
        logging.set_verbosity(verbosity)


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Lets go of the content of every parameter as soon as a module takes it."""

    def replacement(_: nn.Module, __: str, parameter: nn.Parameter) -> nn.Parameter | None:
        return None if parameter.is_meta else nn.Parameter(parameter.to("meta"), requires_grad=False)

    handle = register_module_parameter_registration_hook(replacement)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


class ShapesAlone(TorchFunctionMode):
    """Takes no memory for what has no content yet, as most parameters start, nor for anything large."""

    LARGE = 1 << 24  # numbers; buffers with a content, like the angles of rotary positions, are smaller

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn):
            shape = func(*args, **kwargs | {"device": "meta"})
            if func is torch.empty or shape.numel() > self.LARGE:
                return shape
        return func(*args, **kwargs)


class Recorder:
    """Runs a model and follows every call of its attention function."""

    def __init__(self) -> None:
        self.layers: list[HeadMap] = []
        self.skipped: list[tuple[str, str]] = []
        self.result: Emission | None = None  # what stands for the last layer's output

    def run(self, model: PreTrainedModel) -> None:
        """Two tokens through `model`."""
        self.emitter = Emitter(model, torch.Generator().manual_seed(0))
        self.tracer = Tracer(self.emitter, model)
        self.paths = {module: name for name, module in model.named_modules()}
        tokens = torch.zeros(PROBES, TOKENS, dtype=torch.int64)
        inputs = {"input_ids": tokens}
        if "decoder_input_ids" in signature(model.forward).parameters:
            inputs["decoder_input_ids"] = tokens
        with torch.no_grad(), self.emitter, OwnAttention(model, self.tracer.known, self.attend):
            model(**inputs, use_cache=False)
        self.settle()

    def attend(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *_: Any, **kwargs: Any
    ) -> tuple[Tensor, None]:
        """What stands for the attention of `module`; takes (probes, heads, tokens, size), gives tokens before heads."""
        self.settle()
        name, heads, length = self.paths[module], *query.shape[1:3]
        out = self.emitter.emit((PROBES, length, heads * value.shape[-1]), Unknown(f"the attention of {name}"))
        try:
            with torch._C.DisableTorchFunction():
                self.layers.append(self.head_map(name, query, key, value, kwargs.get("scaling")))
            self.result = self.emitter.emissions[-1]
        except UntraceableError as reason:
            self.skipped.append((name, str(reason)))
        self.emitter.marks = []
        return out.unflatten(-1, (heads, -1)), None

    def settle(self) -> None:
        """Looks up which weight has read the last layer's output since."""
        if self.result:
            last = self.layers[-1]
            with torch._C.DisableTorchFunction():
                self.layers[-1] = replace(last, output=self.tracer.output(self.result, last.query.heads))
        self.result = None

    def head_map(self, name: str, query: Tensor, key: Tensor, value: Tensor, scaling: float | None) -> HeadMap:
        """One layer, from what arrives at its attention function."""
        if key.shape[1] != value.shape[1]:
            key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
        key_head, kept = distinct(torch.cat([key, value], -1), query.shape[1])
        key, value = key[:, kept], value[:, kept]
        scope = self.tracer.scope(query[:, :, 0], name)
        q, stream = self.tracer.follow(query[:, :, 0], "query", scope)
        k, key_stream = self.tracer.follow(key[:, :, 0], "key", scope)
        if not same(stream, key_stream):
            raise UntraceableError("its queries and keys come from different inputs (cross-attention)")
        v: Projection | None
        try:
            v, _ = self.tracer.follow(value[:, :, 0], "value", scope)
        except UntraceableError:
            v = None
        positions, rotary = self.positions(query, key, (*q.norms, *k.norms))
        return HeadMap(name, q, k, v, None, key_head, scaling, positions, rotary)

    @staticmethod
    def positions(query: Tensor, key: Tensor, norms: tuple[Norm, ...]) -> tuple[Positions, Rotary | None]:
        """How queries and keys depend on the position, as far as one can see at the first two."""
        if all(torch.equal(x[:, :, 0], x[:, :, 1]) for x in (query, key)):
            return "none", None
        rotary = rotation(query)
        if rotary is None or any(norm.rotated for norm in norms) or not turns(key, rotary):
            return "other", None
        return "rotary", rotary

    def map(self) -> ModelMap:
        """All layers; one whose weights are used again is counted, not repeated."""
        layers: dict[str, HeadMap] = {}
        for layer in self.layers:
            known = layers.get(layer.name)
            layers[layer.name] = replace(known, uses=known.uses + 1) if known else layer
        return ModelMap(tuple(layers.values()), tuple(dict.fromkeys(self.skipped)))


def distinct(keys: Float[Tensor, "probes kv_heads tokens size"], heads: int) -> tuple[tuple[int, ...], list[int]]:
    """Which key head each of the query `heads` reads, where equal ones count once, and those that are kept."""
    kept: dict[float, int] = {}  # a sum of random numbers tells them apart
    sums = keys.sum((0, 2, 3)).tolist()
    for head, value in enumerate(sums):
        kept.setdefault(value, head)
    number = {value: place for place, value in enumerate(kept)}
    group = heads // len(sums)
    return tuple(number[sums[head // group]] for head in range(heads)), list(kept.values())
