"""Opening the model that is to be converted: a folder, a repository on the Hub, or a GGUF file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from querykey.checkpoint import CheckpointError
from querykey.checkpoint.files import open_source
from querykey.conversion.layers import ConversionError
from querykey.extras import load
from querykey.report.numbers import amount

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def open_model(
    place: str, *, dtype: str | None = None, device: str = "cpu", revision: str | None = None
) -> tuple[PreTrainedModel, Any]:
    """The model and its tokenizer; `dtype` is that of the checkpoint unless it is given.

    Raises ConversionError where there is no causal language model, or where it cannot be loaded.
    """
    transformers = load("transformers", "convert")
    load("querykey.modeling", "convert").register()
    path, options = place, {"revision": revision} if revision else {}
    if place.endswith(".gguf"):
        path, options = str(Path(place).parent), options | {"gguf_file": Path(place).name}
    if not os.path.exists(path):
        try:
            open_source(place, revision)  # where nothing is, this is noticed without retries
        except CheckpointError as error:
            raise ConversionError(str(error)) from error
    with _sentences(place):
        config = transformers.AutoConfig.from_pretrained(path, **options)
    _check(config, place, transformers)
    weights = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    if not enough_memory(weights):
        raise ConversionError(f"the weights of {place} need {amount(weights)} bytes of memory, more than is available")
    with _sentences(place):
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, **options)
        model = transformers.AutoModelForCausalLM.from_pretrained(
            path, dtype=DTYPES[dtype] if dtype else "auto", **options
        )
    if "gguf_file" in options:  # it has been dequantised while it was read
        model.hf_quantizer, model.is_quantized = None, False
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
    with _sentences(place):
        return model.to(device).eval(), tokenizer


def enough_memory(needed: int) -> bool:
    """Whether that many bytes of memory are available; true where that is unknown."""
    table = Path("/proc/meminfo")
    lines = dict(line.split(":", 1) for line in table.read_text().splitlines()) if table.exists() else {}
    available = int(lines["MemAvailable"].split()[0]) * 1024 if "MemAvailable" in lines else needed
    return available >= needed


def _check(config: Any, place: str, transformers: Any) -> None:
    kind = config.model_type
    if hasattr(config, "querykey"):
        raise ConversionError(
            f"{place} shares its projections already ({config.querykey.get('design')}); give the original"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ConversionError(f"{place} is a model of type '{kind}' with an encoder and a decoder; expected a decoder")
    if type(config) not in transformers.AutoModelForCausalLM._model_mapping:
        raise ConversionError(f"{place} is a model of type '{kind}' without a causal head; expected a language model")
    architectures = config.architectures or []
    if architectures and not any("Causal" in name or "LMHead" in name for name in architectures):
        raise ConversionError(
            f"{place} holds {architectures[0]}, which has no causal head; expected a language model such as "
            f"{transformers.AutoModelForCausalLM._model_mapping[type(config)].__name__}"
        )


@contextmanager
def _sentences(place: str) -> Iterator[None]:
    """Errors of the library while it opens a model, in one sentence."""
    try:
        yield
    except ConversionError:
        raise
    except Exception as error:  # the library raises what it likes
        first = " ".join(str(error).split())[:300]
        hint = "" if os.path.exists(place) or os.environ.get("HF_HUB_OFFLINE") != "1" else " (HF_HUB_OFFLINE is set)"
        raise ConversionError(f"{place} cannot be opened: {first}{hint}") from error
