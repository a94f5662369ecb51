"""Small models with random weights and a tokenizer of bytes, for the tests of conversion."""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from querykey.conversion.convert import Conversion, convert
from querykey.extras import cache_argument

SIZES = {"vocab_size": 256, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 32, "max_position_embeddings": 256, "pad_token_id": 0}
GROUPED = {"num_key_value_heads": 2}
FAMILIES = {
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 8},
    "qwen2": GROUPED,
    "qwen3": GROUPED | {"head_dim": 16},
    "gemma2": GROUPED | {"head_dim": 16, "sliding_window": 8},
    "gemma3_text": {"num_key_value_heads": 1, "head_dim": 16, "sliding_window": 8},
    "phi": {"partial_rotary_factor": 0.5},
    "phi3": GROUPED,
    "gpt2": {},
    "gpt_neox": {"rotary_pct": 0.25},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True, "alibi": False},
    "falcon-multi_query": {"multi_query": True, "new_decoder_architecture": False, "alibi": False},
    "falcon-alibi": {"alibi": True, "multi_query": False, "new_decoder_architecture": False},
    "olmo2": GROUPED,
    "bloom": {"n_head": 4},
}


def tiny(family: str = "llama", **options: object) -> PreTrainedModel:
    """A model in float64 whose biases and norms are not at their initial values."""
    config = AutoConfig.for_model(family.partition("-")[0], **{**SIZES, **FAMILIES[family], **options})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config).double().eval()
        for parameter in model.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.generation_config.eos_token_id = None
    return model


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: n for n, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def tokens(batch: int = 2, length: int = 20) -> Tensor:
    """Random token ids, none of them padding."""
    return torch.randint(3, 256, (batch, length), generator=torch.Generator().manual_seed(1))


SMALL = {"windows": 4, "length": 32, "calibration": [Path(argparse.__file__)]}  # any text


def logits(model, ids: Tensor, **options) -> Tensor:
    with torch.no_grad():
        return model(ids, use_cache=False, **options).logits


def cached(model, ids: Tensor, cache, **options):
    """The model's output for tokens that follow those of its cache."""
    return model(ids, use_cache=True, **{cache_argument(model.forward): cache}, **options)


def converted(family: str = "llama", dtype: torch.dtype = torch.float64, **options) -> Conversion:
    return convert(tiny(family).to(dtype), byte_tokenizer(), **SMALL | options)
