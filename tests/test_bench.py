"""`querykey bench` from its command line to its tables, files and picture."""

import csv
import dataclasses
import inspect
import io
import json
import re
import sys
import xml.etree.ElementTree as ElementTree

import pytest
import torch
from rich.console import Console
from torch.utils.benchmark import timer

from querykey import Design, machine
from querykey.bench import bench as timed
from querykey.bench import memory, peers, plot, report, tables, timing
from querykey.bench.bench import Bench, Row
from querykey.bench.config import Config, Shape
from querykey.bench.timing import Spread, interleave
from querykey.cli import main

PASSES = Config.passes
SHAPE = Shape(3, 5, 14, 2)
TINY = ["--shapes", "3,5,14,2", "--rounds", "4", "--cached", "6"]


@pytest.fixture(autouse=True)
def short_blocks(monkeypatch):
    monkeypatch.setattr(timing, "BLOCK", 1e-4)


def designs(*words):
    return tuple(map(Design.parse, words))


def code(words):
    """The exit code, also where argparse stops."""
    try:
        return main(words)
    except SystemExit as stopped:
        return stopped.code


@pytest.fixture
def fake_times(monkeypatch):
    """Each variant runs once and is said to have taken the seconds that are set; gives the names that ran together."""
    interleaved, seconds = [], {}

    def fake(runs, rounds, watch):
        interleaved.append(list(runs))
        for run in runs.values():
            run()
        watch(rounds)
        return {name: [seconds.get(name, 1.0) * (1 + number) for number in range(rounds)] for name in runs}

    monkeypatch.setattr(timed, "interleave", fake)
    return interleaved, seconds


# What is asked


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--threads", "100000000"], "threads must be at most"),
        (["--window", "4"], "a window needs causal attention; give --causal too"),
        (["--window", "4", "--causal", "--against", "mha"], "leave --against or --window out"),
        (["--window", "0", "--causal"], "window must be at least 1, not 0"),
        (["--shapes", "32,64,128"], "a shape is four positive whole numbers, batch,length,dim,heads"),
        (["--shapes", "32,64,0,4"], "such as 32,64,128,4, not '32,64,0,4'"),
        (
            ["--shapes", "2,4,15,2"],
            "shape 2,4,15,2: 2 heads do not divide dim 15; change one of them",
        ),
        (["--designs", "q,k"], "v is named 0 times"),
        (["--designs", "q,k,v+kv_heads=3"], "kv_heads 3 must divide the 2 query heads"),
        (["--passes", "backward"], "unknown value 'backward'; known are prefill, training, decoding"),
        (["--against", "flash"], "unknown value 'flash'; known are mha, x-transformers, hf, hf-compiled"),
        (["--dtype", "int8"], "unknown value 'int8'; known are float32, bfloat16, float16, float64"),
        (["--device", "abacus"], "device 'abacus' cannot be used; expected cpu, cuda or cuda:N"),
        (["--device", "meta"], "device 'meta' cannot be timed; expected cpu, cuda or cuda:N"),
        (["--device", "cuda:99"], "device 'cuda:99' is not there: torch"),
        (["--rounds", "3"], "rounds must be at least 4, not 3"),
        (["--threads", "0"], "threads must be at least 1, not 0"),
        (["--cached", "1"], "cached must be at least 2, not 1"),
        (["--shapes", "1,99999999,4096,32"], "shape 1,99999999,4096,32: prefill of 5 layers in float32 needs at least"),
        (["--shapes", "1,1,99999999,1", "--passes", "decoding"], "GB are free on cpu; take a smaller shape"),
    ],
)
def test_bad_input_gets_a_sentence_before_anything_is_timed(capsys, monkeypatch, words, sentence):
    monkeypatch.setattr(timed, "interleave", None)
    assert code(["bench", *(TINY if "--shapes" not in words else []), *words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert sentence in " ".join(captured.err.split())
    assert "Traceback" not in captured.err


@pytest.mark.parametrize("package", ["rich", "psutil", "matplotlib"])
def test_without_its_extra_the_error_names_it(capsys, monkeypatch, tmp_path, package):
    for module in [name for name in sys.modules if name.split(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, package, None)
    if package == "rich":
        monkeypatch.delitem(sys.modules, "querykey.bench.tables")
    assert main(["bench", *TINY, "--out", str(tmp_path)]) == 2
    expected = f"querykey: this needs {package}, which is not installed; it comes with: pip install 'querykey[bench]'"
    assert expected in capsys.readouterr().err


def test_a_dtype_that_the_device_cannot_compute_in(monkeypatch):
    def fail(*given):
        raise RuntimeError('"addmm" not implemented for this dtype\nand a long trace')

    monkeypatch.setattr(timed.passes, "of_layer", fail)
    with pytest.raises(
        ValueError, match=r'cpu cannot do prefill in float16: "addmm" not implemented for this dtype; try'
    ):
        timed.bench(Config(shapes=(SHAPE,), dtype="float16"))


def test_all_shapes_are_checked_before_the_first_is_timed(fake_times):
    interleaved, _ = fake_times
    with pytest.raises(ValueError, match="needs at least"):
        timed.bench(Config(shapes=(SHAPE, Shape(1, 10**8, 4096, 32))))
    assert not interleaved


def test_a_design_that_cannot_be_at_a_shape_is_left_out_there(fake_times):
    asked = Config(
        shapes=(SHAPE, Shape(3, 5, 24, 3)), designs=designs("q,k,v", "q,k,v+kv_heads=3"), passes=("prefill",), rounds=4
    )
    result = timed.bench(asked)
    assert [(row.shape.heads, row.design) for row in result.rows] == [
        (2, "q,k,v"),
        (3, "q,k,v"),
        (3, "q,k,v+kv_heads=3"),
    ]
    assert result.notes == (
        "left out at shape 3,5,14,2: design q,k,v+kv_heads=3: kv_heads 3 must divide the 2 query heads",
    )


def test_a_peer_that_is_not_installed_is_left_out(capsys, monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None if name == "x_transformers" else name)
    assert main(["bench", *TINY, "--passes", "prefill", "--against", "mha", "x-transformers", "--format", "csv"]) == 0
    captured = capsys.readouterr()
    assert "x-transformers is not installed and left out: pip install x-transformers\n" in captured.err
    assert "mha" in captured.out
    assert "x-transformers" not in captured.out


@pytest.mark.usefixtures("fake_times")
def test_a_peer_that_cannot_be_at_a_shape_is_left_out_there():
    pytest.importorskip("transformers")
    shapes = (SHAPE, SHAPE._replace(dim=18))  # heads of 7 and of 9: Llama turns pairs
    found = timed.bench(Config(shapes=(SHAPE._replace(dim=16), *shapes), designs=designs("q,k,v"), against=("hf",)))
    told = [note for note in found.notes if note.startswith("hf-llama is left out at shape")]
    assert [f" {shape}: " in note for shape, note in zip(shapes, told, strict=True)] == [True, True]
    assert {row.shape for row in found.rows if row.name == "hf-llama"} == {SHAPE._replace(dim=16)}
    assert {row.shape for row in found.rows if row.name == "hf-gpt2"} == {SHAPE._replace(dim=16), *shapes}


def test_peers_are_tried_out_where_nothing_is_allocated():
    pytest.importorskip("transformers")
    huge = Config(shapes=(Shape(1, 4, 200_000, 8),), against=("mha", "hf"))  # 160 GB a matrix
    with pytest.raises(ValueError, match=r"of 13 layers in float32 needs at least .* are free on cpu"):
        timed.bench(huge)


def test_a_peer_without_a_cache_is_said_to_be_left_out(fake_times):
    found = timed.bench(Config(shapes=(SHAPE,), designs=designs("q,k,v"), against=("mha",)))
    assert found.notes == ("mha has no cache, and is left out of decoding",)


def test_a_long_name_takes_no_column_away(fake_times):
    found = timed.bench(
        Config(shapes=(SHAPE,), designs=designs("q,k,v+kv_heads=1+selfmask+qknorm", "q,k,v"), passes=("prefill",))
    )
    console = Console(width=80, file=io.StringIO())
    for table in tables.tables(found):
        console.print(table)
    assert "÷ first" in console.file.getvalue()
    assert "GFLOP/s" in console.file.getvalue()


def test_the_command_of_a_config_asks_for_it_again(monkeypatch):
    asked = Config(
        shapes=(SHAPE,), designs=designs("q,k,v", "q=k,v+core=full"), causal=True, dtype="float64", against=("mha",)
    )
    words = report.command(asked).split()
    assert words[:2] == ["querykey", "bench"]
    heard = []
    monkeypatch.setattr("querykey.bench.bench.bench", lambda config, watch: heard.append(config) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(words[1:])
    assert heard == [asked]
    assert report.command(Config()) == "querykey bench"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AMD EPYC", "amd-epyc"),
        ("Intel(R) Xeon(R) Gold 6330 CPU @ 2.00GHz", "intel-xeon-gold-6330"),
        ("AMD Ryzen 9 5950X 16-Core Processor", "amd-ryzen-9-5950x"),
        ("Apple M2 Pro", "apple-m2-pro"),
        ("NVIDIA H200", "nvidia-h200"),
        ("", "cpu"),
    ],
)
def test_names_of_machines(name, expected, monkeypatch):
    monkeypatch.setattr(machine, "processor", lambda: name)
    monkeypatch.setattr(machine, "cores", lambda: 7)
    assert machine.name("cpu") == f"7-core-{expected}"


# What is found


def test_ratios_of_made_up_times(fake_times):
    interleaved, seconds = fake_times
    seconds |= {"q,k,v": 8.0, "q=k=v": 6.0, "lower bound of q,k,v": 4.0, "lower bound of q=k=v": 5.0}
    asked = Config(shapes=(SHAPE,), designs=designs("q,k,v", "q=k=v"), passes=("prefill",), rounds=5)
    first, second = timed.bench(asked).rows
    assert interleaved == [["q,k,v", "lower bound of q,k,v", "q=k=v", "lower bound of q=k=v"]]
    assert first.seconds == Spread(24.0, 12.0, 36.0)  # times 1, 2, 3, 4, 5 over the rounds
    assert (first.to_bound.median, second.to_bound.median) == (2.0, 1.2)
    assert (first.to_baseline, second.to_baseline) == (Spread(1.0, 1.0, 1.0), Spread(0.75, 0.75, 0.75))
    assert second.bound_seconds.median == 15.0
    # 5 positions: 2·14·(14·4) + 5·(2·2·14) each, without two of the four products of weights
    assert second.predicted == (2 * 14 * 14 * 2 + 5 * 4 * 14) / (2 * 14 * 14 * 4 + 5 * 4 * 14)
    assert second.rate == second.flops / 18.0


def test_peers_are_compared_with_what_computes_the_same(fake_times):
    interleaved, seconds = fake_times
    pytest.importorskip("transformers")
    seconds |= {"q,k,v": 2.0, "q,k,v biases": 3.0, "q,k,v rotary": 4.0, "hf-gpt2": 6.0, "hf-llama": 6.0, "mha": 6.0}
    asked = Config(shapes=(Shape(3, 5, 16, 2),), designs=designs("q=k,v", "q,k,v"), against=("mha", "hf"), cached=6)
    rows = {(row.what, row.name): row for row in timed.bench(asked).rows}
    assert len(interleaved) == 3
    found = {name: (rows["training", name].compared, rows["training", name].to_baseline.median) for name in seconds}
    assert found["mha"] == ("q,k,v", 3.0)
    assert found["hf-gpt2"] == ("q,k,v biases", 2.0)
    assert found["hf-llama"] == ("q,k,v rotary", 1.5)
    assert found["q,k,v biases"] == ("q=k,v", 3.0)
    assert ("decoding", "hf-llama") in rows
    assert not {("decoding", "mha"), ("decoding", "hf-bert")} & rows.keys()  # they have no cache
    assert rows["prefill", "mha"].predicted is None
    assert rows["prefill", "hf-bert"].bound_seconds == rows["prefill", "q,k,v"].bound_seconds
    assert sum(name.startswith("lower bound of ") for name in interleaved[0]) == 2
    assert {name for what, name in rows if what == "decoding" and "hf" in name} == {
        f"hf-{kind}{cache}" for kind in ("gpt2", "llama") for cache in ("", " static")
    }


def test_everything_at_once_on_a_real_clock():
    """All passes; finite numbers that fit together."""
    heard = []
    asked = Config(shapes=(SHAPE,), designs=designs("q,k,v", "q,k=v"), rounds=4, cached=6, causal=True)
    result = timed.bench(asked, lambda *step: heard.append(step))
    assert [(row.what, row.name) for row in result.rows] == [(w, d) for w in PASSES for d in ("q,k,v", "q,k=v")]
    for row in result.rows:
        assert 0 < row.seconds.low <= row.seconds.median <= row.seconds.high
        assert row.to_bound.low <= row.to_bound.high
        assert row.backend in ("flash", "blocked", "products", "efficient", "math")
        assert row.peak_bytes > 0
    assert [row.cache_bytes for row in result.rows] == [None] * 4 + [2 * 14 * 4, 14 * 4]
    assert [done for _, done, _ in heard] == [n for case in range(3) for n in range(4 * case, 4 * case + 5)]
    assert {total for *_, total in heard} == {12}


def test_threads_are_those_asked_for_and_given_back(monkeypatch):
    before, seen = torch.get_num_threads(), []

    def see(*given):
        seen.append(torch.get_num_threads())
        return iter(())

    monkeypatch.setattr(timed, "_rows", see)
    asked = Config(shapes=(SHAPE,), threads=before + 1, passes=("prefill",))
    assert timed.bench(asked).threads == before + 1
    assert seen == [before + 1]
    assert torch.get_num_threads() == before


def test_the_backend_is_the_one_that_ran(fake_times):
    asked = Config(shapes=(Shape(1, 300, 8, 2),), designs=designs("q,k,v"), passes=("training",), rounds=4)
    assert timed.bench(asked).rows[0].backend == "flash"
    assert timed.bench(dataclasses.replace(asked, causal=True)).rows[0].backend == "blocked"


def test_the_real_clock_is_torchs():
    """That of `torch.utils.benchmark` waits for an accelerator."""
    assert inspect.signature(interleave).parameters["clock"].default is timer


# What is shown


@pytest.fixture(scope="module")
def result():
    """A made-up one: times that are easily recognised."""
    rows = []
    for what in PASSES:
        decoding = what == "decoding"
        for name, peer, seconds in (("q,k,v", False, 0.012), ("q=k,v+core=full", False, 0.25), ("hf-gpt2", True, 1.5)):
            rows.append(
                Row(
                    shape=Shape(32, 64, 128, 4),
                    what=what,
                    name=name,
                    design="q,k,v" if peer else name,
                    peer=peer,
                    seconds=Spread(seconds, 0.9 * seconds, 1.1 * seconds),
                    bound_seconds=Spread(0.01, 0.009, 0.011),
                    to_bound=Spread(1.25, 1.2, 1.3),
                    to_baseline=Spread(1.0, 1.0, 1.0) if name == "q,k,v" else Spread(0.82, 0.8, 0.84),
                    compared="q,k,v biases" if peer else "q,k,v",
                    predicted=None if peer else 0.81,
                    backend="" if peer else "flash",
                    peak_bytes=5_243_000,
                    flops=2 * 10**9,
                    step_bytes=10**9 if decoding else None,
                    cache_bytes=1024 if decoding and not peer else None,
                )
            )
    asked = Config(designs=designs("q,k,v", "q=k,v+core=full"), against=("hf",))
    return Bench(asked, "2-core-abacus", "2.11.0", 2, tuple(rows), ("x-transformers is not installed",))


@pytest.mark.parametrize("width", [80, 120])
def test_the_table_fits_a_terminal(result, width):
    console = Console(width=width, file=io.StringIO(), color_system=None)
    for table in tables.tables(result):
        console.print(table)
    shown = console.file.getvalue()
    assert max(map(len, shown.splitlines())) <= width
    assert "…" not in shown
    assert shown.count("q=k,v+core=full") == 3
    for text in (
        "prefill: batch 32, length 64, dim 128, 4 heads",
        "decoding: batch 32, 4,096 positions cached, dim 128, 4 heads",
        "12.0",
        "10.8–13.2",
        "0.80–0.84",
        "5.24 MB",
        "GFLOP/s",
        "B/token",
        "1,024",
        "compared with the equal layer: hf-gpt2 to q,k,v biases",
    ):
        assert text in shown
    beside = bool(re.search("12.0  +10.8–13.2", shown))
    assert beside == (width == 120)


def test_csv_and_json_read_back_as_the_same_numbers(result):
    read = list(csv.DictReader(io.StringIO(report.as_csv(result))))
    again = json.loads(report.as_json(result))
    assert again["notes"] == ["x-transformers is not installed"]
    assert len(read) == len(again["rows"]) == len(result.rows)
    for row, line, record in zip(result.rows, read, again["rows"], strict=True):
        assert Shape(*(int(line[name]) for name in Shape._fields)) == row.shape
        assert (line["pass"], line["name"], line["compared"], line["torch"]) == (
            row.what,
            row.name,
            row.compared,
            "2.11.0",
        )
        for column, spread in {"seconds": row.seconds, "ratio_to_bound": row.to_bound}.items():
            names = (column, f"{column}_low", f"{column}_high")
            assert tuple(float(line[name]) for name in names) == tuple(record[name] for name in names) == spread
        assert (line["cached"], line["predicted"]) == (
            "4096" if row.what == "decoding" else "",
            "" if row.peer else "0.81",
        )
        assert float(line["rate_per_second"]) == pytest.approx(
            (1 if row.what == "decoding" else 2) * 1e9 / row.seconds[0]
        )
        assert {name: str(value) if value is not None else "" for name, value in record.items()} == line


def test_markdown_says_where_it_comes_from(result):
    page = report.as_markdown(result, picture="a.svg")
    assert page.startswith("# What each design costs: 2-core-abacus\n")
    command = "`querykey bench --designs q,k,v q=k,v+core=full --against hf`"
    assert f"{command}: torch 2.11.0, 2 threads, float32 on cpu, 15 rounds." in page
    assert "](a.svg)" in page
    assert "| `q=k,v+core=full` | 250 225–275 | 1.25 1.20–1.30 | 0.82 0.80–0.84 | 0.81 | 5.24 MB | flash | 8 |" in page
    assert "- x-transformers is not installed" in page
    tables = [line.count("|") for line in page.splitlines() if line.startswith("|")]
    assert tables == [9] * 10 + [10] * 5


def test_a_layer_below_its_lower_bound_is_explained(result):
    rows = tuple(dataclasses.replace(row, backend="blocked") for row in result.rows)
    other = dataclasses.replace(result, rows=rows)
    first, second, _ = tables.tables(other)
    assert "the kernel blocked can be faster" in first.columns[2].about
    assert not any(column.about for column in second.columns)
    assert "can be faster" not in next(tables.tables(result)).columns[2].about


def test_the_summary_names_the_fastest_design_of_each_pass(result):
    said = tables.summary(result)
    assert said == (
        "Time relative to q,k,v: 0.82 with q=k,v+core=full in prefill (FLOPs: 0.81); 0.82 with q=k,v+core=full in "
        "training (FLOPs: 0.81); 0.82 with q=k,v+core=full in decoding (bytes: 0.81)."
    )
    slower = [dataclasses.replace(row, to_baseline=Spread(1.2, 1.1, 1.3)) for row in result.rows]
    first = [dataclasses.replace(row, to_baseline=Spread(1.0, 1.0, 1.0)) for row in result.rows if row.name == "q,k,v"]
    other = dataclasses.replace(result, rows=(*first, *(row for row in slower if row.name != "q,k,v")))
    assert "no design is faster in training" in tables.summary(other)
    only = dataclasses.replace(result, rows=tuple(first), config=Config(designs=designs("q,k,v")))
    assert "Time relative to the lower bound of q,k,v: 1.25 in prefill; 1.25 in training" in tables.summary(only)


def test_ratios_less_certain_than_their_difference_are_named(result):
    """Half of the middle half is 0.02, and the noise of 15 rounds about as much: less than the difference of 0.18."""
    assert tables.noise(result) == ""
    rows = list(result.rows)
    rows[1] = dataclasses.replace(rows[1], to_baseline=Spread(0.82, 0.4, 1.3))
    noisy = dataclasses.replace(result, rows=tuple(rows))
    said = tables.noise(noisy)
    assert said.startswith("noise: 1 of 6 ratios to another layer is less certain")
    assert "q=k,v+core=full in prefill at 32,64,128,4, 0.82 (0.40–1.30)" in said
    more = dataclasses.replace(noisy, config=dataclasses.replace(result.config, rounds=1500))  # the median is certain
    assert tables.noise(more) == ""
    assert said in report.as_markdown(noisy)
    assert said in json.loads(report.as_json(noisy))["notes"]


def test_files_are_named_after_the_machine(result, tmp_path):
    for changed, stem in (({}, ""), ({"causal": True, "dtype": "bfloat16"}, "-causal-bfloat16")):
        other = dataclasses.replace(result, config=dataclasses.replace(result.config, **changed))
        names = [path.name for path in report.write(other, tmp_path / "new" / "folder")]
        assert names == [f"2-core-abacus{stem}.{kind}" for kind in ("csv", "md", "svg")]
    written = tmp_path / "new" / "folder"
    assert "](2-core-abacus-causal-bfloat16.svg)" in (written / "2-core-abacus-causal-bfloat16.md").read_text()
    assert (written / "2-core-abacus.csv").read_text() == report.as_csv(result)


def test_the_picture_stands_alone(result):
    svg = plot.as_svg(result)
    assert svg == plot.as_svg(result)
    root = ElementTree.fromstring(svg)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    texts = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("q=k,v+core=full") == 1
    assert "batch 32, length 64, dim 128, 4 heads" in texts
    assert "decoding, 4,096 positions cached" in texts
    assert "hf-gpt2" not in texts
    assert "prefers-color-scheme:dark" in svg


def test_from_the_command_line_to_files(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "name", lambda device: "abacus")
    assert main(["bench", *TINY, "--designs", "q,k,v", "q=k,v", "--out", str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "q=k,v" in captured.out
    assert "written: " in captured.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["abacus.csv", "abacus.md", "abacus.svg"]
    assert main(["bench", *TINY, "--passes", "prefill", "--format", "json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["design"] for row in rows] == ["q,k,v", "q=k,v", "q,k=v", "q=v,k", "q=k=v"]


def test_where_nothing_can_be_written_is_told_before_the_timing(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(timed, "interleave", None)
    (tmp_path / "file").touch()
    for place, sentence in (("file", "is a file, expected a folder"), ("file/below", "cannot be written")):
        assert code(["bench", *TINY, "--out", str(tmp_path / place)]) == 2
        assert sentence in capsys.readouterr().err


def test_who_stops_it_is_told_that_nothing_is_kept(capsys, monkeypatch):
    def stop(*given, **named):
        raise KeyboardInterrupt

    monkeypatch.setattr(timed, "interleave", stop)
    assert main(["bench", *TINY]) == 130
    assert capsys.readouterr().err.endswith("querykey: stopped; nothing was written\n")


def test_an_accelerator_that_is_full_gets_a_sentence(monkeypatch):
    def full(*given, **named):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has more to say")

    monkeypatch.setattr(timed, "interleave", full)
    with pytest.raises(ValueError, match="shape 3,5,14,2: prefill: CUDA out of memory; take a smaller shape"):
        timed.bench(Config(shapes=(SHAPE,)))


def test_available_memory_is_asked_of_the_system():
    assert memory.available_bytes(torch.device("cpu")) > 2**20
