"""Converted models on disk: loaded with and without querykey, and written whole or not at all."""

import json
import subprocess
import sys

import pytest
import torch

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM

from conversions import converted, logits, tiny, tokens
from querykey.conversion.convert import Conversion
from querykey.conversion.layers import ConversionError
from querykey.conversion.save import load


@pytest.fixture(scope="module")
def half() -> Conversion:
    return converted(cache=0.5)


def test_folders_load_with_the_same_logits(half, tmp_path):
    ids = tokens()
    expected = logits(half.model, ids)
    half.save(tmp_path / "factors")
    found = load(tmp_path / "factors")
    torch.testing.assert_close(logits(found, ids), expected, rtol=0, atol=0)
    assert json.loads((tmp_path / "factors/config.json").read_text())["querykey"]["design"] == half.design
    half.save(tmp_path / "plain", plain=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(plain).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits(plain, ids), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(logits(half.model, ids), expected, rtol=0, atol=0)  # saving changed nothing
    for name in ("model_type", "num_key_value_heads"):
        assert getattr(half.model.config, name) == getattr(tiny().config, name)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma3_text"])
def test_other_families_load_too(family, tmp_path):
    found, ids = converted(family), tokens()
    found.save(tmp_path / "a")
    found.save(tmp_path / "b", plain=True)
    torch.testing.assert_close(logits(load(tmp_path / "a"), ids), logits(found.model, ids), rtol=0, atol=1e-6)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    torch.testing.assert_close(logits(plain, ids), logits(found.model, ids), rtol=0, atol=1e-5)  # sums in another order


SCRIPT = """
import sys; sys.modules["querykey"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
AutoTokenizer.from_pretrained(folder)
ids = torch.load(folder + "/../ids.pt")
out = model.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
width = next(one for one in out.values() if hasattr(one, 'layers')).layers[0].keys.shape[-1]
torch.save((model(ids).logits.detach(), out.sequences, width), folder + "/../out.pt")
"""


@pytest.mark.slow
def test_a_self_contained_folder_needs_no_querykey(half, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    ids = tokens()
    torch.save(ids, tmp_path / "ids.pt")
    half.save(tmp_path / "model", self_contained=True)
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "model")], check=True, capture_output=True)
    found, said, width = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(found, logits(half.model, ids), rtol=0, atol=1e-12)
    assert torch.equal(said, half.model.generate(ids, max_new_tokens=5, do_sample=False))
    assert width == half.ranks[0]


@pytest.mark.slow
def test_without_querykey_a_folder_is_refused_and_not_loaded_wrongly(half, tmp_path):
    half.save(tmp_path / "model")
    script = "import sys, transformers; transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "model")], capture_output=True, text=True)
    assert done.returncode != 0
    assert "querykey" in done.stderr


def test_nothing_is_overwritten_and_nothing_left_half_written(half, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(ConversionError, match="full is not empty"):
        half.save(tmp_path / "full")

    def fail(*_, **__):
        (tmp_path / ".new.partial").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(half.model, "save_pretrained", fail)
    with pytest.raises(KeyboardInterrupt):
        half.save(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    assert type(half.model).__name__ == "LlamaForCausalLM"
