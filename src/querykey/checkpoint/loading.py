"""The whole model of a checkpoint, from the files that its weights are read from, and its tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from querykey.checkpoint.adapter import Adapter
from querykey.checkpoint.files import Source
from querykey.checkpoint.gguf_file import Gguf
from querykey.checkpoint.inputs import Reads
from querykey.checkpoint.storage import Store
from querykey.extras import load


@dataclass(frozen=True, eq=False)
class Files:
    """The files of a checkpoint, to load the whole model from: `names` are the stored ones by what the model has.

    `variant` and `adapter` are None if there is none. `readers` are the modules that run on text or on images alone.
    """

    source: Source
    store: Store
    names: Mapping[str, str]
    variant: str | None
    adapter: Adapter | None
    readers: Mapping[Reads, str]

    def load(self, config: Any, **options: Any) -> Any:
        """The whole model, with its head if it is a language model; `options` as `from_pretrained` takes them."""
        model = self._load(config, options)
        if self.adapter:
            self.adapter.merge(model, model.base_model_prefix)
        return model

    def tokenizer(self, **options: Any) -> Any:
        """The tokenizer beside the weights, or in a GGUF file."""
        if isinstance(self.store, Gguf):
            options["gguf_file"] = self.source.only
        return load("transformers", "inspect").AutoTokenizer.from_pretrained(**self._place(), **options)

    def image_processor(self, **options: Any) -> Any:
        """The image processor beside the weights; None if there is none."""
        if not self.source.names & {"preprocessor_config.json", "processor_config.json"}:
            return None
        automatic = load("transformers", "inspect").AutoImageProcessor
        return automatic.from_pretrained(**self._place(), backend="pil", **options)

    def _place(self) -> dict[str, Any]:
        place = self.source.location
        revision = self.source.revision if place == self.source.place else None
        return {"pretrained_model_name_or_path": place, "revision": revision}

    def _load(self, config: Any, options: dict[str, Any]) -> Any:
        kind, place = _auto_class(config), self._place()
        options["revision"] = place["revision"]
        if isinstance(self.store, Gguf):
            options["gguf_file"] = self.source.only
        elif self.source.only or any(name != stored for name, stored in self.names.items()):
            return kind._model_mapping[type(config)].from_pretrained(
                None, config=config, state_dict=dict(self._tensors()), **options
            )
        elif self.variant:
            options["variant"] = self.variant
        return kind.from_pretrained(**place | options)

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        for name, stored in self.names.items():
            shape = self.store.shape(stored)
            yield name, self.store.rows(stored, torch.arange(shape[0] if shape else 1)).view(shape)


def _auto_class(config: Any) -> Any:
    """The class that loads the model with its head, where that is a language model, with images or without.

    Of a model with encoder and decoder the encoder alone is run, which has no head.
    """
    transformers = load("transformers", "inspect")
    name = (getattr(config, "architectures", None) or [""])[0]
    causal, images = (
        type(config) in getattr(transformers, f"MODEL_FOR_{task}_MAPPING") and not config.is_encoder_decoder
        for task in ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT")
    )
    if name.endswith(("ForCausalLM", "LMHeadModel")) or (causal and not name):
        return transformers.AutoModelForCausalLM
    if images and name.endswith("ForConditionalGeneration"):
        return transformers.AutoModelForImageTextToText
    return transformers.AutoModelForMaskedLM if name.endswith("ForMaskedLM") else transformers.AutoModel
