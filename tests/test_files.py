"""GGUF files, LoRA folders, single files and wrapped names: equal to what peft and transformers make of them."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

import querykey
from checkpoints import SIZES, SQUARE, tiny_config
from querykey.checkpoint import CheckpointError, open_checkpoint
from querykey.models.huggingface import open_model

pytestmark = pytest.mark.usefixtures("unchecked")
IDS = torch.arange(3, 20)[None]
GGUF = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
FIELDS = {
    "context_length": 64,
    "embedding_length": 64,
    "block_count": 2,
    "feed_forward_length": 96,
    "head_count": 4,
    "head_count_kv": 2,
    "layer_norm_rms_eps": 1e-6,
    "layer_norm_eps": 1e-5,
    "rope_freq_base": 1e4,
    "vocab_size": 64,
    "key_length": 16,
    "value_length": 16,
}


def random_model(kind: str, **sizes: object) -> PreTrainedModel:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes), dtype=torch.float32)
    for parameter in model.parameters():
        parameter.data = 0.1 * torch.randn_like(parameter)
    return model.eval()


def write_gguf(path: Path, model: PreTrainedModel, architecture: str, quantised: str | None) -> None:
    """As llama.cpp's converter: its names, the halves of a rotary pair side by side, gains with 1 added."""
    writer = gguf.GGUFWriter(path, architecture)
    for name, value in FIELDS.items():
        getattr(writer, f"add_{name}")(value)
    (key,) = (key for key, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    names = gguf.get_tensor_name_map(key, 2)
    for name, tensor in model.state_dict().items():
        module, _, role = name.rpartition(".")
        stored, values = names.get_name(module), tensor.numpy()
        if architecture == "llama" and "self_attn" in module and module[-6] in "qk":
            heads = 4 if module.endswith("q_proj") else 2
            values = values.reshape(heads, 2, 8, -1).swapaxes(1, 2).reshape(values.shape)
        if architecture == "gemma3" and module.endswith("norm"):
            values = values + 1
        if architecture == "gpt2" and values.ndim == 2 and ".h." in module:
            values = values.T
        kind = getattr(gguf.GGMLQuantizationType, quantised or "F32")
        if quantised and values.ndim == 2:
            writer.add_tensor(f"{stored}.{role}", gguf.quantize(np.ascontiguousarray(values), kind), raw_dtype=kind)
        else:
            writer.add_tensor(f"{stored}.{role}", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def adapted(model: PreTrainedModel, folder: Path, modules: dict[str, float], **options: object) -> None:
    """Write a LoRA adapter as peft does, for modules with the scale of each, and add its changes to the model."""
    factors: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        scale = modules.get(name.rpartition(".")[2])
        if scale is not None:
            out, inner = module.weight.shape[:: -1 if options.get("fan_in_fan_out") else 1]
            A, B = 0.1 * torch.randn(3, inner), 0.1 * torch.randn(out, 3)
            change = scale * (B @ A)
            module.weight.data += change.T if options.get("fan_in_fan_out") else change
            factors |= {f"base_model.model.{name}.lora_{letter}.weight": X for letter, X in (("A", A), ("B", B))}
    folder.mkdir()
    save_file(factors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "base_model_name_or_path": "../base", "r": 3, "lora_alpha": 7} | options
    (folder / "adapter_config.json").write_text(json.dumps(config))


def assert_equal(heads: pd.DataFrame, others: pd.DataFrame) -> None:
    """Every number, within the rounding of float32."""
    numbers = others.select_dtypes("number")
    assert heads[numbers.columns].to_numpy() == pytest.approx(numbers.to_numpy(), abs=2e-5, nan_ok=True)


@pytest.mark.parametrize(
    ("kind", "architecture", "quantised"),
    [("llama", "llama", "Q8_0"), ("gemma3_text", "gemma3", "Q4_0")],
)
def test_a_gguf_file_equals_what_transformers_loads(
    kind: str, architecture: str, quantised: str, tmp_path: Path
) -> None:
    model = random_model(kind, **GGUF | ({"head_dim": 16} if kind == "gemma3_text" else {}))
    write_gguf(tmp_path / "model.gguf", model, architecture, quantised)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").eval()
    assert_equal(querykey.inspect(tmp_path / "model.gguf"), querykey.inspect(loaded))
    checkpoint = open_checkpoint(tmp_path / "model.gguf")
    assert torch.allclose(open_model(checkpoint).trace(IDS).logits, loaded(IDS).logits, atol=1e-4)
    before = checkpoint.bytes_read
    checkpoint.read(0)
    assert checkpoint.bytes_read - before < checkpoint.size / 6  # queries and keys of one layer of two


@pytest.mark.parametrize(("kind", "architecture"), [("llama", "llama"), ("gpt2", "gpt2")])
def test_a_gguf_file_equals_the_model_that_it_was_made_of(kind: str, architecture: str, tmp_path: Path) -> None:
    """Also where llama.cpp stores matrices transposed."""
    small = {"vocab_size": 64, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model = random_model(kind, **(small if kind == "gpt2" else GGUF))
    write_gguf(tmp_path / "model.gguf", model, architecture, None)
    assert_equal(querykey.inspect(tmp_path / "model.gguf"), querykey.inspect(model))


@pytest.mark.parametrize(
    ("name", "modules", "options"),
    [
        ("llama", {"q_proj": 7 / 3, "v_proj": 7 / 3}, {}),
        ("gpt2", {"c_attn": 7 / 3}, {"fan_in_fan_out": True}),
        ("qwen3", {"q_proj": 7 / 3**0.5, "k_proj": 5 / 3**0.5}, {"use_rslora": True, "alpha_pattern": {"k_proj": 5}}),
    ],
)
def test_a_lora_folder_equals_the_merged_model(
    name: str, modules: dict[str, float], options: dict[str, object], tmp_path: Path
) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "base")
    adapted(model, tmp_path / "adapter", modules, **options)
    heads = querykey.inspect(tmp_path / "adapter")
    assert_equal(heads, querykey.inspect(model))
    after = open_checkpoint(tmp_path / "adapter")
    assert torch.allclose(open_model(after).trace(IDS).logits, model(IDS).logits, atol=1e-4)
    group = after.layers[1].key_head
    both = [one.read(1, dtype=torch.float64) for one in (after.before(), after)]
    before, new = (weights.W_Q[2] @ weights.W_K[group[2]].T for weights in both)
    change = new - before
    row = heads.query("layer == 1 and head == 2").iloc[0]
    assert row["change"] == pytest.approx((change.norm() / before.norm()).item())
    assert row["change_symmetry"] == pytest.approx(((change * change.T).sum() / change.square().sum()).item())
    assert (row["key_change"] == 0) == (name == "llama")  # where only queries and values have an adapter


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"peft_type": "LOHA", "base_model_name_or_path": "../base"}, "kind LOHA; expected LORA"),
        ({"peft_type": "LORA", "use_dora": True, "base_model_name_or_path": "../base"}, "kind use_dora"),
        ({"peft_type": "LORA"}, "base_model_name_or_path"),
        ({"peft_type": "LORA", "base_model_name_or_path": "../nowhere"}, "there is no file or folder at '../nowhere'"),
    ],
)
def test_other_adapters_are_refused(config: dict[str, object], said: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    factors = {
        "base_model.model.q.lora_A.weight": torch.ones(2, 3),
        "base_model.model.q.lora_B.weight": torch.ones(3, 2),
    }
    save_file(factors, tmp_path / "adapter_model.safetensors")
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("form", ["one safetensors", "state_dict", "wrapped", "variant"])
def test_the_model_runs_from_the_file_that_the_table_was_read_from(form: str, tmp_path: Path) -> None:
    model = random_model("llama", **SQUARE)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path, variant="half" if form == "variant" else None)
    place, options = tmp_path, {}
    if form == "one safetensors":
        place = tmp_path / "other.safetensors"
        save_file(state, place)
        (tmp_path / "model.safetensors").unlink()
    elif form == "state_dict":
        place = tmp_path / "last.ckpt"
        torch.save({"state_dict": state, "step": 7}, place)
    elif form == "wrapped":
        save_file(
            {f"module._orig_mod.{name}": tensor for name, tensor in state.items()}, tmp_path / "model.safetensors"
        )
    else:
        options["variant"] = "half"
    found = open_model(open_checkpoint(place, **options)).trace(IDS)
    assert torch.allclose(found.logits, model(IDS).logits, atol=1e-5)


def test_the_language_tower_of_a_multimodal_model_has_logits(tmp_path: Path) -> None:
    image = {"model_type": "clip_vision_model", "hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 1}
    text = SIZES | {"model_type": "llama", "hidden_size": 48}
    config = AutoConfig.for_model(
        "llava", vision_config=image | {"image_size": 16, "patch_size": 4}, text_config=text, image_token_index=5
    )
    model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path)
    trace = open_model(tmp_path).trace(IDS)
    assert torch.allclose(trace.logits, model(IDS).logits, atol=1e-4)
    assert len(trace.layers) == 2
