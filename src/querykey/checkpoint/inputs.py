"""Small inputs for any model of transformers, from the parameters of its `forward` and its configuration.

Batches are of `PROBES` examples, so that every input has them as its first axis. Sizes are those that the configuration
demands, and the smallest that it permits otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from inspect import Parameter, signature
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, nn

from querykey.checkpoint.building import FRAMES, every_config
from querykey.checkpoint.emission import PROBES, TOKENS

TEXT = ("input_ids", "decoder_input_ids")
ALTERNATIVES = ("inputs_embeds",)  # to other inputs
Reads = Literal["text", "images"]


def inputs_of(module: nn.Module, *, optional: bool) -> dict[str, Any]:
    """The inputs that `module.forward` requires; with `optional` also all others that are known here."""
    parameters = signature(module.forward).parameters
    config = getattr(module, "config", None)
    main = getattr(module, "main_input_name", "input_ids")
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        required = parameter.default is Parameter.empty and parameter.kind is Parameter.POSITIONAL_OR_KEYWORD
        wanted = required or name in (main, *TEXT) or (optional and name not in ALTERNATIVES)
        if name in MAKERS and wanted:
            value = MAKERS[name](config)
            if value is not None:
                found[name] = value
    if "use_cache" in parameters or Parameter.VAR_KEYWORD in {p.kind for p in parameters.values()}:
        found["use_cache"] = False
    return found


def towers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The model itself, then the models of transformers inside it, outermost first."""
    for name, module in model.named_modules():
        if not name or hasattr(module, "main_input_name"):
            yield name, module


def readers(model: nn.Module) -> dict[Reads, str]:
    """The names of the outermost modules that run on text alone, and on images of one size alone.

    A model with `get_text_features`, such as CLIP, needs both, and one part of it reads each.
    """
    found: dict[Reads, str] = {}
    for name, tower in towers(model):
        parameters = signature(tower.forward).parameters
        if "input_ids" in parameters and not hasattr(tower, "get_text_features"):
            found.setdefault("text", name)
        elif "pixel_values" in parameters and "input_ids" not in parameters and _only_pixels(tower):
            found.setdefault("images", name)
    if not found and getattr(model, "main_input_name", "input_ids") == "input_ids":
        found["text"] = ""  # code of a checkpoint that names no inputs
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False) and found.get("text"):
        del found["text"]  # a decoder, whose encoder reads something else
    return found


def image_shape(config: Any) -> tuple[int, int, int]:
    """Channels, height and width of an image."""
    channels = _number(look_up(config, "num_channels", "in_channels", "in_chans", default=3))
    return channels, *_size(config)


def _only_pixels(tower: nn.Module) -> bool:
    inputs = inputs_of(tower, optional=False)
    return {*inputs} - {"use_cache"} == {"pixel_values"} and inputs["pixel_values"].dim() == 4


def examples(value: Any) -> Any:
    """The first example of a tensor for each probe, in float64; other values as they are."""
    if not isinstance(value, Tensor):
        return value
    first = value[:1].detach().cpu()
    return (first.double() if first.is_floating_point() else first).repeat(PROBES, *[1] * (value.dim() - 1))


def look_up(config: Any, *names: str, default: Any = None) -> Any:
    """The first of these attributes that `config` or a configuration inside it has."""
    for one in every_config(config) if config is not None else ():
        for name in names:
            value = getattr(one, name, None)
            if value is not None:
                return value
    return default


def _noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _tokens(_: Any) -> Tensor:
    return torch.zeros(PROBES, TOKENS, dtype=torch.int64)


def _ones(_: Any) -> Tensor:
    return torch.ones(PROBES, TOKENS, dtype=torch.int64)


def _hidden(*names: str) -> Callable[[Any], Tensor]:
    return lambda config: _noise(PROBES, TOKENS, _number(look_up(config, *names, "hidden_size", "d_model", "dim")))


def _image(config: Any) -> Tensor:
    """Pixels; of all patches where the model takes these, of tiles where it has them, of frames for videos."""
    channels, height, width = image_shape(config)
    if hasattr(config, "num_patches") and not hasattr(config, "image_size"):
        return _noise(PROBES, config.num_patches, channels * config.patch_size**2)
    if hasattr(config, "max_num_tiles"):
        return _noise(PROBES, 1, config.max_num_tiles, channels, height, width)
    if hasattr(config, "num_frames"):
        return _video(config)
    return _noise(PROBES, channels, height, width)


def _video(config: Any) -> Tensor:
    frames = look_up(config, "num_frames", "frames_per_clip", default=2)
    return _noise(PROBES, frames, look_up(config, "num_channels", "in_chans", default=3), *_size(config))


def _size(config: Any) -> tuple[int, int]:
    """Height and width of an image."""
    size = look_up(config, "image_size", "img_size", "input_size", "crop_size", default=64)
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return int(height), int(width)


def _number(value: Any) -> int:
    return int(value[0] if isinstance(value, (list, tuple)) else value)


def _waves(config: Any) -> Tensor:
    """Audio samples, or frames of a spectrogram for a model that has a number of them."""
    frames, bins = look_up(config, "max_length"), look_up(config, "num_mel_bins")
    if frames and bins and hasattr(config, "frequency_stride"):
        return _noise(PROBES, frames, bins)
    strides = look_up(config, "conv_stride", default=(320,))
    return _noise(PROBES, max(4 * prod(strides), 1600))


def _features(config: Any) -> Tensor:
    """A spectrogram: (batch, bins, frames) if the number of frames is fixed, else (batch, frames, bins)."""
    bins = look_up(config, "num_mel_bins", "input_feat_per_channel", "feature_projection_input_dim", default=80)
    if hasattr(config, "max_source_positions") and not hasattr(config, "conv_kernel_sizes"):
        return _noise(PROBES, bins, 2 * config.max_source_positions)
    return _noise(PROBES, FRAMES, look_up(config, "input_feat_size", default=bins))


def _features_mask(config: Any) -> Tensor:
    shape = _features(config).shape
    frames = shape[-1] if hasattr(config, "max_source_positions") else shape[1]
    return torch.ones(PROBES, frames, dtype=torch.int64)


def _boxes(_: Any) -> Tensor:
    return torch.zeros(PROBES, TOKENS, 4, dtype=torch.int64)


def _patches(config: Any) -> Tensor:
    """The patches of all images in one sequence, as in Qwen-VL: (PROBES · patches, numbers of a patch)."""
    if not hasattr(config, "spatial_merge_size"):
        return _hidden()(config)
    channels = look_up(config, "in_channels", "in_chans", "num_channels", default=3)
    size = channels * look_up(config, "temporal_patch_size", default=1) * config.patch_size**2
    return _noise(PROBES * config.spatial_merge_size**2, size)


def _grid(config: Any) -> Tensor:
    side = look_up(config, "spatial_merge_size", default=2)
    return torch.tensor([[1, side, side]]).expand(PROBES, 3).clone()


def _shapes(config: Any) -> Tensor:
    side = int(look_up(config, "num_patches", default=4) ** 0.5)
    return torch.tensor([[side, side]]).expand(PROBES, 2).clone()


def _patch_mask(config: Any) -> Tensor:
    return torch.ones(PROBES, look_up(config, "num_patches", default=4), dtype=torch.int64)


def _series(config: Any) -> Tensor:
    length = look_up(config, "context_length", default=32) + max(look_up(config, "lags_sequence", default=[0]))
    channels = look_up(config, "num_input_channels", "input_size", default=1)
    scalars = channels == 1 and not hasattr(config, "num_input_channels")
    return _noise(PROBES, length) if scalars else _noise(PROBES, length, channels)


def _tiles(config: Any) -> Tensor:
    return torch.ones(PROBES, 1, look_up(config, "max_num_tiles", default=1), dtype=torch.int64)


MAKERS: dict[str, Callable[[Any], Any]] = {
    "input_ids": _tokens,
    "decoder_input_ids": _tokens,
    "qformer_input_ids": _tokens,
    "attention_mask": _ones,
    "encoder_attention_mask": _ones,
    "encoder_hidden_states": _hidden("cross_attention_hidden_size", "encoder_hidden_size"),
    "vision_encoder_hidden_states": _hidden("d_model"),
    "cross_attention_states": _hidden("hidden_size"),
    "inputs_embeds": _hidden("embedding_size"),
    "query_embeds": _hidden(),
    "context": _hidden(),
    "inputs": _hidden(),
    "hidden_states": _patches,
    "grid_thw": _grid,
    "bbox": _boxes,
    "image": _image,
    "pixel_values": _image,
    "pixel_values_videos": _video,
    "pixel_attention_mask": _patch_mask,
    "spatial_shapes": _shapes,
    "aspect_ratio_ids": lambda _: torch.ones(PROBES, 1, dtype=torch.int64),
    "aspect_ratio_mask": _tiles,
    "input_values": _waves,
    "input_features": _features,
    "input_features_mask": _features_mask,
    "past_values": _series,
}
