"""`querykey inspect` as it is typed: what goes where, the page that it writes, and bad input as one sentence."""

from __future__ import annotations

import ast
import io
import json
import os
import pickle
import re
import shutil
import struct
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import querykey
from checkpoints import Hub, tiny_model
from pages import Page
from querykey.checkpoint import Reason
from querykey.checkpoint.reading import Checkpoint
from querykey.cli import inspect as inspect_cli
from querykey.cli import main
from querykey.inspection.summary import _said
from querykey.report.words import Words
from test_inspect import minilm

pytestmark = pytest.mark.usefixtures("unchecked")
WORDS = "The house stood on a hill, and from its windows one could see the river and the boats that came and went. "


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small checkpoints of different sizes, made once."""
    folder = tmp_path_factory.mktemp("saved")
    tiny_model("llama").save_pretrained(folder / "llama")
    tiny_model("codegen").save_pretrained(folder / "codegen")  # 8 heads where the other has 6
    return folder


@pytest.fixture
def llama(saved: Path, tmp_path: Path) -> Path:
    """A copy of one that may be damaged."""
    return Path(shutil.copytree(saved / "llama", tmp_path / "llama"))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(WORDS * 200)
    return tmp_path / "text.txt"


def test_data_on_standard_output_and_all_else_on_standard_error(
    saved: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    expected = querykey.inspect(saved / "llama")
    for kind in ("csv", "json", "parquet"):
        assert main(["inspect", str(saved / "llama"), "--per", "head", "--format", kind]) == 0
        out, err = capsysbinary.readouterr()
        if kind == "parquet":
            pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(out)), expected)
        elif kind == "csv":
            pd.testing.assert_frame_equal(pd.read_csv(io.BytesIO(out)), expected, check_dtype=False, rtol=1e-15)
        else:
            assert [row["tied_share"] for row in json.loads(out)] == expected["tied_share"].tolist()
        size = os.path.getsize(saved / "llama" / "model.safetensors")
        assert re.search(rf"llama: read [\d.]+ kB of {size / 1000:.1f} kB, in [\d.]+ s", err.decode())
        assert "None of 12 heads is closer to shared (W_Q = W_K) than to random" in err.decode()


def test_a_row_per_layer_is_the_default(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(saved / "llama"), "--format", "csv"]) == 0
    layers = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert layers["layer"].tolist() == [0, 1]
    assert (layers["symmetry_min"] <= layers["symmetry"]).all()
    assert main(["inspect", str(saved / "llama")]) == 0
    out = capsys.readouterr().out
    assert "tied share" in out
    assert re.search(r"^random +0\.02", out, re.MULTILINE)
    assert all(len(line) <= 80 for line in out.splitlines()[1:])  # below the name of the place


def test_a_variant_of_the_weights(llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(llama / "model.safetensors", llama / "model.fp16.safetensors")
    (llama / "model.safetensors").write_bytes(b"torn")
    assert main(["inspect", str(llama), "--variant", "fp16", "--layers", "1", "--format", "csv"]) == 0
    assert capsys.readouterr().out.count("\n") == 2
    assert main(["inspect", str(llama), "--variant", "fp8"]) == 2
    assert "model.fp8.safetensors" in capsys.readouterr().err


def test_a_report_in_chinese(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No English word is left, and the numbers are those of the English report."""
    places, found = [str(saved / "llama"), str(saved / "codegen")], {}
    for language in ("en", "zh"):
        assert main(["inspect", *places, "--lang", language, "--out", str(tmp_path / language)]) == 0
        out, err = capsys.readouterr()
        page = Page((tmp_path / language / "report.html").read_text(encoding="utf-8"))
        found[language] = [out, "".join(line for line in err.splitlines() if line.startswith("- ")), page.text]
    out, sentences, text = found["zh"]
    assert "12 个头里，没有一个离共用（W_Q = W_K）比离随机更近。" in sentences
    for words in (out, sentences, text):
        assert not re.search(r"\b(the|and|with|heads|random|shared?|rank|symmetry|distance)\b", words)
    number = r"−?\d+\.\d+"
    for english, chinese in zip(found["en"][1:], found["zh"][1:], strict=True):
        assert sorted(re.findall(number, english)) == sorted(re.findall(number, chinese))
    assert 'lang="zh-CN"' in (tmp_path / "zh" / "report.html").read_text(encoding="utf-8")


def test_a_table_of_heads_names_the_key_head(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(saved / "llama"), "--per", "head"]) == 0
    rows = re.findall(r"^ +(\d) +(\d) +(\d) ", capsys.readouterr().out, re.MULTILINE)
    assert rows == [(str(layer), str(head), str(head // 2)) for layer in range(2) for head in range(6)]


def test_parquet_is_not_sent_to_a_terminal(
    saved: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert main(["inspect", str(saved / "llama"), "--format", "parquet"]) == 2
    assert capsys.readouterr().err == (
        "querykey: parquet is not for terminals; send it to a file: --format parquet > heads.parquet\n"
    )


def test_a_reader_that_leaves_is_no_error(saved: Path) -> None:
    """As `| head -1` does: the other end of the pipe is closed before anything is written."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "querykey.cli", "inspect", str(saved / "llama"), "--format", "csv"]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "Broken pipe" not in done.stderr


def test_stopping_leaves_nothing_behind(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Checkpoint.read

    def stopped(self: Checkpoint, layer: int, *args: object, **kwargs: object) -> object:
        if layer == 1:
            raise KeyboardInterrupt
        return whole(self, layer, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(Checkpoint, "read", stopped)
    assert main(["inspect", str(saved / "llama"), "--out", str(tmp_path / "out")]) == 130
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\nquerykey: stopped; nothing was written\n")
    assert not (tmp_path / "out").exists()


def test_the_page_needs_nothing_beside_itself(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a" / "b"
    assert main(["inspect", str(saved / "llama"), "--out", str(out)]) == 0
    assert f"report: {out / 'report.html'}" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["report.html"]
    html = (out / "report.html").read_text()
    page = Page(html)
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in page.loads)
    assert not re.search(r"https?://(?!www\.w3\.org/)", html)
    words = page.text.replace("\u00a0", " ")
    assert "None of 12 heads is closer to shared" in words
    assert words.count("random") > 6  # the null stands on the scale of every map
    assert html.count('class="head-map"') == 8
    data = json.loads(html.partition('id="data">')[2].partition("</script>")[0])["checkpoints"]
    heads = querykey.inspect(saved / "llama")
    (one,) = data
    assert [row[:2] for row in one["heads"]] == heads[["layer", "head"]].to_numpy().tolist()
    at = one["measures"].index("symmetry")
    assert [row[at] for row in one["values"]] == pytest.approx(heads["symmetry"].tolist(), rel=1e-3)
    assert [one["nulls"][place][at] for place in one["null"]] == pytest.approx([1 / 48] * 12, rel=1e-3)
    for values, share in zip(one["eigenvalues"], heads["tied_share"], strict=True):
        assert values == sorted(values, reverse=True)
        assert sum(v * v for v in values if v > 0) == pytest.approx(share, abs=0.01)
    assert all(sum(v * v for v in values) == pytest.approx(1, abs=0.02) for values in one["singular"])


def test_two_checkpoints_of_different_sizes_side_by_side(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = [str(saved / "llama"), str(saved / "codegen")]
    assert main(["inspect", *both, "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "Side by side" in out
    assert "None of 12 heads" in err
    assert "None of 16 heads" in err
    Page((tmp_path / "report.html").read_text())
    source = (tmp_path / "report.html").read_text()
    assert source.count('class="head-map" data-checkpoint="1"') == 8
    assert source.count('class="ranking"') == 2
    assert main(["inspect", *both, "--format", "csv", "--per", "head"]) == 0
    rows = pd.read_csv(io.StringIO(capsys.readouterr().out))
    assert rows.groupby("checkpoint", sort=False).size().to_dict() == dict(zip(both, (12, 16), strict=True))
    assert rows.columns[0] == "checkpoint"
    assert main(["inspect", *both, both[0]]) == 2
    assert "one checkpoint is inspected, or two side by side, not 3" in capsys.readouterr().err


def test_a_checkpoint_beside_itself_agrees_with_itself(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(saved / "llama"), str(saved / "llama")]) == 0
    shown = capsys.readouterr().out.partition("Side by side")[2]
    row = next(line.split() for line in shown.splitlines() if line.startswith("symmetry "))
    assert row[1:3] == row[3:5]
    assert row[5] == "1.00"


def test_a_text_adds_behaviour_and_forecast(tmp_path: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On MiniLM, with little text: columns, tables, sentences and sections of the page."""
    words = ["inspect", str(minilm()), "--text", str(text), "--pieces", "4", "--forecast", "all"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    out, err = capsys.readouterr()
    assert "On the text" in out
    assert re.search(r"^all heads( +[01]\.\d{3}){4} *$", out, re.MULTILINE)
    assert "read 7.1 MB of 90.9 MB, and the whole model to run it on the text, in" in err
    assert "do what no head with W_Q = W_K can" in err
    html = (tmp_path / "out" / "report.html").read_text()
    Page(html)
    assert "What sharing would cost" in html
    assert "cycles of 3 or more" in html


TORN = "is cut off: it has"
EMPTY_LIST = struct.pack("<Q", 2) + b"[]"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (lambda f: cut(f, 0.5), TORN),
        (lambda f: cut(f, 0.0001), TORN),
        (lambda f: (f / "model.safetensors").write_bytes(EMPTY_LIST), "no readable safetensors header"),
        (lambda f: index(f, "model-00099.safetensors"), "names model-00099.safetensors, which"),
        (lambda f: link(f), "is a link to 'gone', which does not exist"),
        (lambda f: configure(f, hidden_size=60), "do not belong together"),
        (lambda f: poison(f, float("nan")), "layers.1.self_attn.k_proj.weight holds 1 values that are NaN or infinite"),
        (lambda f: poison(f, float("inf")), "layers.1.self_attn.k_proj.weight holds 1 values that are NaN or infinite"),
        (lambda f: configure(f, model_type="unheard-of"), "a model of type 'unheard-of', which transformers"),
        (lambda f: configure(f, model_type="own", auto_map={"AutoConfig": "a.B"}), "--trust-remote-code"),
        (lambda f: quantise(f), "is quantised (some4: it holds int8 without scales that are known)"),
        (lambda f: [path.unlink() for path in f.iterdir()], "holds no weights: expected model.safetensors"),
        (lambda f: (f / "config.json").unlink(), "holds no config.json; found"),
        (lambda f: (f / "config.json").write_text("{"), "is not a JSON object"),
        (lambda f: code(f), "pytorch_model.bin cannot be read as weights alone: Unsupported operand"),
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_gets_one_sentence(
    damage: Callable[[Path], object], sentence: str, llama: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(llama)
    refused(capsys, sentence, str(llama))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (None, "there is no text at"),
        (b"", "holds no text"),
        (b" \n", "holds no text"),
        ("Gr\u00fc\u00dfe".encode("latin-1"), "is not text in UTF-8, and its encoding is not clear; convert it"),
        (b"%PDF-1.7", "is no text but a PDF"),
        (b"Too short.", "the text is too short: it has 3 tokens, and at least 32"),
    ],
)
def test_a_text_that_cannot_be_used_gets_one_sentence(
    content: bytes | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if content is not None:
        (tmp_path / "text").write_bytes(content)
    place = minilm()
    refused(capsys, sentence, str(place), "--text", str(tmp_path / "text"))


def test_other_bad_input_gets_one_sentence(llama: Path, text: Path, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "config.json cannot be read as weights alone", str(llama / "config.json"))
    refused(capsys, "expected a context of at least 2 tokens and 2 pieces, not 128 and 1", str(llama), "--pieces", "1")
    refused(capsys, "something to calibrate on and nothing to measure on", str(llama), "--calibrate", str(text))
    refused(capsys, "has no tokenizer that can be used", str(llama), "--text", str(text))
    refused(capsys, "argument --per: unknown value 'row'", str(llama), "--per", "row")


def test_code_that_comes_along_is_not_run(llama: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (llama / "own.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / 'ran')!r}).touch()\n")
    configure(llama, model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModel": "own.Own"})
    refused(capsys, "needs the code that it brings; if you trust that code, allow it", str(llama))
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub("someone/tiny", llama) as server:
        server.stands_for_the_hub(monkeypatch, tmp_path / "cache")
        yield server


def test_a_repository_at_a_revision(hub: Hub, llama: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", "someone/tiny", "--revision", "main", "--format", "csv", "--per", "head"]) == 0
    out, err = capsys.readouterr()
    pd.testing.assert_frame_equal(pd.read_csv(io.StringIO(out)), querykey.inspect(llama), check_dtype=False, rtol=1e-15)
    asked = sum(stop - start for _, start, stop in hub.ranges)
    assert f"someone/tiny at {hub.commit}: read {asked / 1000:.1f} kB of" in err
    assert not hub.whole & hub.shards


def test_a_server_that_does_not_do_its_part_gets_one_sentence(hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, "'someone/tiny' is neither a file or folder here", "someone/tiny", "--revision", "other")
    hub.stops_after = [3] * 100
    refused(capsys, "try again later, or download the checkpoint and give its folder", "someone/tiny")
    hub.stops_after, hub.answers_ranges = [], False
    refused(capsys, "the server answers without ranges", "someone/tiny")


def test_without_the_extra_the_error_names_it(saved: Path) -> None:
    script = (
        "import sys; sys.modules['transformers'] = None; from querykey.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "inspect", str(saved / "llama")], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "querykey: this needs transformers, which is not installed; it comes with: pip install 'querykey[inspect]'"
    )


def refused(capsys: pytest.CaptureFixture[str], sentence: str, *words: str) -> None:
    """Exit code 2, nothing on standard output, and one sentence on standard error."""
    try:
        code = main(["inspect", *words])
    except SystemExit as stopped:  # argparse's own refusals
        code = int(stopped.code or 0)
    out, err = capsys.readouterr()
    assert code == 2
    assert out == ""
    assert sentence in err
    assert "Traceback" not in err
    assert err.splitlines()[-1].startswith("querykey")


def cut(folder: Path, share: float) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[: int(share * len(content))])


def index(folder: Path, shard: str) -> None:
    names = dict.fromkeys(load_file(folder / "model.safetensors"), "whole.safetensors")
    names["layers.1.self_attn.k_proj.weight"] = shard
    (folder / "model.safetensors").rename(folder / "whole.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def link(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors").symlink_to("gone")


def configure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def poison(folder: Path, value: float) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.1.self_attn.k_proj.weight"][3, 5] = value
    save_file(tensors, folder / "model.safetensors")


def quantise(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["layers.0.self_attn.q_proj.weight"] = tensors["layers.0.self_attn.q_proj.weight"].to(torch.int8)
    save_file(tensors, folder / "model.safetensors")
    configure(folder, quantization_config={"quant_method": "some4"})


class Bomb:
    """What a pickle may hold: a call of any function."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("echo was run",)


def code(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": Bomb()}))


def test_chosen_layers_alone_are_inspected(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = querykey.inspect(saved / "llama")
    assert main(["inspect", str(saved / "llama"), "--layers", "1-3", "--per", "head", "--format", "csv"]) == 0
    chosen = pd.read_csv(io.StringIO(capsys.readouterr().out))
    expected = whole[whole["layer"] == 1].reset_index(drop=True)
    pd.testing.assert_frame_equal(chosen, expected, check_dtype=False, rtol=1e-15)
    assert main(["inspect", str(saved / "llama"), "--layers", "7"]) == 2
    assert "has no attention in the layers [7]; its layers are 0 to 1" in capsys.readouterr().err


def test_a_range_of_layers_and_a_device_that_is_not_there_are_refused(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect_cli.numbers("0-2,5, 7-7") == [0, 1, 2, 5, 7]
    for wrong in ("", "a", "3-1", "1-x", "-2"):
        with pytest.raises(ValueError, match="such as 0-5,8"):
            inspect_cli.numbers(wrong)
    assert main(["inspect", str(saved / "llama"), "--device", "abacus"]) == 2
    assert "there is no device 'abacus' here" in capsys.readouterr().err


def test_every_reason_has_its_words() -> None:
    """The templates of the checkpoint room, and those of the words; a reason is said in the language of the report."""
    calls = [
        node
        for path in Path(querykey.__file__).parent.joinpath("checkpoint").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and getattr(node.func, "id", "") in ("Reason", "UntraceableError", "MixedError")
        and isinstance(node.args[0], ast.Constant)
    ]
    words = tomllib.loads((files("querykey.inspection") / "words.toml").read_text(encoding="utf-8"))
    templates = {f"reason.{call.args[0].value}" for call in calls}
    assert templates == {key for key in words if key.startswith("reason.")}
    assert all(words[key]["en"] == key.removeprefix("reason.") for key in templates)
    reason = Reason("its {role} comes out of {what}, which cannot be traced", role="key", what="add with u")
    assert _said(reason, Words("inspection")) == reason
    assert _said(reason, Words("inspection", "zh")) == "键来自 add with u，无法追踪"
