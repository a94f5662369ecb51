"""Damaged files, wrong indices and configurations: each is reported in a sentence that names the file."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from checkpoints import reconfigure, rewrite, tiny_model
from querykey.checkpoint import CheckpointError, open_checkpoint


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_reported_with_the_tensor(bad: float, llama: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    tensors["layers.1.self_attn.k_proj.weight"][3, 5] = bad
    tensors["layers.0.mlp.up_proj.weight"][:] = bad  # is not read, so is nobody's business
    rewrite(llama, tensors)
    checkpoint = open_checkpoint(llama)
    checkpoint.read(0)
    with pytest.raises(
        CheckpointError, match=r"layers\.1\.self_attn\.k_proj\.weight holds 1 values that are NaN or inf"
    ):
        checkpoint.read(1)


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_a_file_cut_off_anywhere_is_reported(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("cut")
    tiny_model("llama").save_pretrained(folder)
    content = (folder / "model.safetensors").read_bytes()
    length = data.draw(st.one_of(st.integers(0, 20), st.integers(0, len(content) - 1)))
    (folder / "model.safetensors").write_bytes(content[:length])
    with pytest.raises(CheckpointError, match=r"model.safetensors is cut off: it has \d+ bytes and should have \d+ or"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff" * 200, "is not a safetensors file: its header would have"),
        (struct.pack("<Q", 4) + b"[[[[" + bytes(100), "has no readable safetensors header"),
        (struct.pack("<Q", 2) + b"[]" + bytes(100), "has no readable safetensors header"),
        (struct.pack("<Q", 9) + b'{"a": {}}' + bytes(100), "has no readable safetensors header"),
        (struct.pack("<Q", 58) + b'{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}    ', "a has 8 bytes"),
    ],
)
def test_a_header_that_makes_no_sense_is_reported(content: bytes, reason: str, llama: Path) -> None:
    (llama / "model.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(llama)


def test_links_and_pointers_that_lead_nowhere_are_reported(llama: Path) -> None:
    path = llama / "model.safetensors"
    path.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 123\n")
    with pytest.raises(CheckpointError, match=r"model\.safetensors is a pointer of git-lfs.*git lfs pull"):
        open_checkpoint(llama)
    path.unlink()
    path.symlink_to("../blobs/gone")
    with pytest.raises(
        CheckpointError, match=r"model\.safetensors is a link to '\.\./blobs/gone', which does not exist"
    ):
        open_checkpoint(llama)


def test_an_index_that_is_wrong_is_reported(llama: Path) -> None:
    tiny_model("llama").save_pretrained(llama, max_shard_size="5KB")
    (llama / "model.safetensors").unlink(missing_ok=True)
    index = llama / "model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    name = "layers.1.self_attn.k_proj.weight"
    index.write_text(json.dumps({"weight_map": where | {name: "model-00099.safetensors"}}))
    with pytest.raises(CheckpointError, match=r"names model-00099\.safetensors, which .* does not hold"):
        open_checkpoint(llama)
    other = next(shard for shard in where.values() if shard != where[name])
    index.write_text(json.dumps({"weight_map": where | {name: other}}))
    with pytest.raises(CheckpointError, match=rf"the index places {name} in {other}, which does not hold it"):
        open_checkpoint(llama).read(1)
    index.write_text("{}")
    with pytest.raises(CheckpointError, match="is not an index of shards"):
        open_checkpoint(llama)


@pytest.mark.parametrize("changes", [{"hidden_size": 60}, {"num_attention_heads": 12}, {"num_key_value_heads": 2}])
def test_shapes_that_contradict_the_configuration_are_reported(changes: dict[str, int], llama: Path) -> None:
    reconfigure(llama, **changes)
    with pytest.raises(CheckpointError, match=r"has the shape \(.*\), and \(.*\) by the configuration .*do not belong"):
        open_checkpoint(llama).read(0)


def test_missing_weights_are_reported(llama: Path) -> None:
    rewrite(llama, {"layers.1.self_attn.k_proj.weight": None})
    with pytest.raises(CheckpointError, match=r"lacks layers\.1\.self_attn\.k_proj\.weight, but holds other weights"):
        open_checkpoint(llama)
    save_file({"something.else": torch.zeros(2)}, llama / "model.safetensors")
    with pytest.raises(
        CheckpointError, match=r"holds no weights of attention: expected layers.* found something\.else"
    ):
        open_checkpoint(llama)


def test_folders_that_hold_no_checkpoint_are_reported(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"holds no weights: expected model\.safetensors .* found nothing"):
        open_checkpoint(tmp_path / "empty")
    (llama / "config.json").rename(llama / "other.json")
    with pytest.raises(CheckpointError, match=r"holds no config\.json; found model\.safetensors, other\.json"):
        open_checkpoint(llama)
    save_file({}, llama / "model.safetensors")
    (llama / "other.json").rename(llama / "config.json")
    with pytest.raises(CheckpointError, match=r"expected layers.*, and it holds no tensor at all"):
        open_checkpoint(llama)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not a JSON object"),
        ("[1]", "is not a JSON object"),
        ("{}", "type 'None', which transformers .* does not know"),
        ('{"model_type": "no-such-model"}', "type 'no-such-model', which transformers .* does not know"),
        ('{"model_type": "llama", "hidden_size": "wide"}', "cannot be used: .*hidden_size"),
        ('{"model_type": "llama", "hidden_size": 47, "num_attention_heads": 6}', "cannot be used: .*multiple of"),
        ('{"model_type": "mamba", "hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 5}', "type 'mamba' can be"),
    ],
)
def test_configurations_that_cannot_be_used_are_reported(content: str, reason: str, llama: Path) -> None:
    (llama / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=reason):
        open_checkpoint(llama)
