"""Building a model of transformers, or preparing one in memory, so that it runs without the content of its weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.overrides import TorchFunctionMode

from querykey.extras import load

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

NAME = "querykey_probe"
PATCHES, FRAMES = 256, 64  # of an image and of a spectrogram, at most
MOST_PATCHES = 64**2  # of an image that is also run at its own size


def build(config: PretrainedConfig, implementation: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model of `config`, in float64, with parameters of the right shapes and no content, and real buffers."""
    no_init_weights = load("transformers.initialization", "inspect").no_init_weights
    config = deepcopy(config)
    with ShapesAlone(), parameters_on_meta(), no_init_weights(), torch.no_grad():
        model: PreTrainedModel = load("transformers", "inspect").AutoModel.from_config(
            config,
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


def smaller(config: PretrainedConfig) -> PretrainedConfig | None:
    """A copy for smaller images and shorter sound, whose sizes change no weight of an attention; None if equal."""
    copy = deepcopy(config)
    return copy if any([_shrink(one) for one in every_config(copy)]) else None


def sizes_of(config: PretrainedConfig) -> list[PretrainedConfig]:
    """The configurations to run, the last one decisive: a smaller copy and itself, or one where the other is no use.

    Images of more than `MOST_PATCHES` are not run at their size: a mask of all pairs can have 10⁹ numbers (Pixtral).
    """
    small = smaller(config)
    if small is None:
        return [config]
    return [small] if any(_patches(one) > MOST_PATCHES for one in every_config(config)) else [small, config]


def every_config(config: Any) -> Iterator[Any]:
    """A configuration and all configurations inside it."""
    yield config
    for name in getattr(config, "sub_configs", {}):
        inner = getattr(config, name, None)
        if inner is not None and not isinstance(inner, dict):
            yield from every_config(inner)


def _patches(config: Any) -> int:
    """The number of patches of an image, 0 where the configuration does not say it by two numbers."""
    size, patch = getattr(config, "image_size", None), getattr(config, "patch_size", None)
    return (size // patch) ** 2 if isinstance(size, int) and isinstance(patch, int) else 0


def _shrink(config: Any) -> bool:
    frames = getattr(config, "max_source_positions", None)
    changed = False
    if _patches(config) > PATCHES:
        side = 14 if config.image_size % (14 * config.patch_size) == 0 else 16
        config.image_size, changed = side * config.patch_size, True
    if isinstance(frames, int) and frames > FRAMES:
        config.max_source_positions, changed = FRAMES, True
    return changed


def without_content(model: nn.Module) -> nn.Module:
    """A copy of a model in memory, in float64 and in evaluation mode, whose parameters have no content.

    To be run within `implementations`, if it is a model of transformers.
    """
    memo: dict[int, Any] = {}
    for parameter in model.parameters():
        meta = parameter.detach().to("meta", torch.float64 if parameter.is_floating_point() else None)
        memo[id(parameter)] = nn.Parameter(meta, requires_grad=False)
    copy: nn.Module = deepcopy(model, memo)
    for module in copy.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.cpu().double() if buffer.is_floating_point() else buffer.cpu()
    set_attention: Any = getattr(copy, "set_attn_implementation", None)
    if set_attention:
        set_attention(NAME)
    return copy.eval()


@contextmanager
def implementations(attention: Callable[..., Any]) -> Iterator[None]:
    """Make `attention` the attention implementation `NAME` of transformers, with its eager masks, and skip experts."""
    attentions = load("transformers.modeling_utils", "inspect").ALL_ATTENTION_FUNCTIONS
    masks = load("transformers.masking_utils", "inspect").ALL_MASK_ATTENTION_FUNCTIONS
    experts = load("transformers.integrations.moe", "inspect").ALL_EXPERTS_FUNCTIONS
    attentions[NAME], masks[NAME] = attention, masks["eager"]
    experts[NAME] = lambda module, hidden, *_, **__: hidden.clone()
    try:
        with quietly():  # advice on masks and kernels does not apply: nothing is computed here
            yield
    finally:
        del attentions[NAME], masks[NAME], experts[NAME]


@contextmanager
def quietly() -> Iterator[None]:
    """Without transformers' advice and its bars: what matters is an error."""
    logging = load("transformers.utils.logging", "inspect")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def parameters_on_meta() -> Iterator[None]:
    """Drop the content of every parameter when it is registered with a module."""

    def replacement(_: nn.Module, __: str, parameter: nn.Parameter) -> nn.Parameter | None:
        return None if parameter.is_meta else nn.Parameter(parameter.to("meta"), requires_grad=False)

    handle = register_module_parameter_registration_hook(replacement)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


class ShapesAlone(TorchFunctionMode):
    """Allocate no memory for tensors without content, as most parameters start, nor for anything large."""

    LARGE = 1 << 24  # numbers; buffers with a content, like the angles of rotary positions, are smaller

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in (torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn):
            shape = func(*args, **kwargs | {"device": "meta"})
            if func is torch.empty or shape.numel() > self.LARGE:
                return shape
        return func(*args, **kwargs)
