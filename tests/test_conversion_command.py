"""querykey convert: from a model to a folder, what it refuses, and what an interruption leaves."""

import json
from pathlib import Path

import pytest

pytest.importorskip("transformers")

from transformers import (
    BertConfig,
    BertModel,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from conversions import SIZES, byte_tokenizer, converted, tiny
from querykey.cli import main

WRONG = [
    ("{model} --out {new} --cache 1.5", "more than 0 and at most 1, not 1.5"),
    ("{model} --out {new} --cache 0.01", "expected 2 (one a layer)"),
    ("{model}", "no output folder was given"),
    ("{model} --out {full}", "is not empty"),
    ("{model} --dry-run", "add --evaluate"),
    ("{model} --out {new} --heal 5", "add --evaluate"),
    ("{model} --out {new} --calibrate {text} --evaluate {text}", "expected different files"),
    ("{model} --out {new} --calibrate {short}", "too short"),
    ("{model} --out {new} --calibrate {binary}", "is no text but a binary file"),
    ("{model} --out {new} --calibrate no/such", "no text at no/such"),
    ("{encoder} --out {new}", "no causal head"),
    ("{seq2seq} --out {new}", "an encoder and a decoder"),
    ("{mla} --out {new}", "from a latent already"),
    ("{converted} --out {new}", "shares its projections already (q,k=v+latent="),
    ("{full} --out {new}", "cannot be opened"),
]


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, str]:
    """Models and texts that cannot be used, by name."""
    folder = tmp_path_factory.mktemp("wrong")
    (folder / "full").mkdir()
    (folder / "full/file").write_text("mine")
    (folder / "text").write_text("words " * 999)
    (folder / "short").write_text("words")
    (folder / "binary").write_bytes(bytes(range(256)) * 99)
    converted(cache=0.5).save(folder / "converted")
    models = {"model": tiny(), "encoder": BertModel(BertConfig(**SIZES))}
    models["seq2seq"] = T5ForConditionalGeneration(
        T5Config(vocab_size=256, d_model=32, d_ff=32, num_layers=1, num_heads=2)
    )
    latent = {"q_lora_rank": 22, "kv_lora_rank": 14, "qk_nope_head_dim": 10, "qk_rope_head_dim": 4, "v_head_dim": 6}
    sizes = SIZES | {"n_routed_experts": 4, "first_k_dense_replace": 9, "n_group": 2, "topk_group": 1}
    models["mla"] = DeepseekV3ForCausalLM(DeepseekV3Config(**sizes | latent))
    for name, model in models.items():
        model.save_pretrained(folder / name)
        byte_tokenizer().save_pretrained(folder / name)
    return {path.name: str(path) for path in folder.iterdir()} | {"new": str(folder / "new")}


@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=[words for words, _ in WRONG])
def test_a_wrong_input_gets_one_sentence(places, capsys, words, sentence):
    for name, path in places.items():
        words = words.replace(f"{{{name}}}", path)
    assert main(["convert", *words.split(), "--windows", "3", "--length", "24"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("querykey: ")] == [said[-1]]
    assert sentence in said[-1]
    assert not Path(places["new"]).exists()


def test_an_interrupted_command_leaves_nothing_and_resumes(places, tmp_path, capsys, monkeypatch):
    class Full:
        free = 1000

    out, text, seen = tmp_path / "out", tmp_path / "a.txt", []
    text.write_text("Words to calibrate on. " * 99)
    words = [
        "convert",
        places["model"],
        "--out",
        str(out),
        "--calibrate",
        str(text),
        "--windows",
        "3",
        "--length",
        "24",
    ]
    with monkeypatch.context() as patch:
        patch.setattr("shutil.disk_usage", lambda _: Full)
        assert main(words) == 2
        assert "bytes of disk, and 1,000 are free" in capsys.readouterr().err
    for place in ("querykey.conversion.convert.fits", "querykey.conversion.fit.install", "torch.save"):
        with monkeypatch.context() as patch:
            patch.setattr(place, lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
            assert main(words) == 130
            assert "the same command resumes" in capsys.readouterr().err
            assert not out.exists()
    with monkeypatch.context() as patch:
        patch.setattr("querykey.conversion.calibrate._backward", lambda *_: seen.append(1))
        assert main(words) == 0
    assert not seen  # all windows were on disk
    assert {path.name for path in tmp_path.iterdir()} == {"out", "a.txt"}


def test_the_command_from_model_to_folder(places, tmp_path, capsys):
    text = tmp_path / "mine.txt"
    text.write_text("Some other words, which nobody has calibrated on. " * 99)
    out = tmp_path / "half"
    words = [places["model"], "--out", str(out), "--evaluate", str(text), "--windows", "6", "--length", "24"]
    assert main(["convert", *words, "--heal", "2", "--dtype", "float32", "--self-contained", "--curve"]) == 0
    table = capsys.readouterr()
    assert "layers.1.self_attn" in table.out
    assert "mine.txt" in table.out
    assert "384 bytes a token before, 192 after (50.0 %)" in table.err
    written = json.loads((out / "report.json").read_text())
    assert [point["cache"] for point in written["curve"]] == [0.75, 0.5, 0.375, 0.25]
    assert "bytes of cache a token" in (out / "report.html").read_text()
    assert written["cache_bytes"] == {"before": 384.0, "after": 192.0}
    assert {"report.html", "config.json", "model.safetensors", "modeling_querykey.py"} <= {
        p.name for p in out.iterdir()
    }
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []  # nothing is left beside it
    assert main(["inspect", str(out)]) == 0
    assert f"(llama, {written['design']})" in capsys.readouterr().out.replace("\n", "")
    assert main(["convert", *words[:1], "--dry-run", *words[3:]]) == 0
    table = capsys.readouterr().out
    assert all(f"{size} %" in table for size in ("75.0", "50.0", "37.5", "25.0"))
