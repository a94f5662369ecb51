"""What a user types: bad input gets a sentence and exit code 2, never a traceback."""

import csv
import io
import json
import os
import resource
import shlex
import subprocess
import sys
from html import unescape

import pytest

from querykey import Layout, cost
from querykey.cli import main
from querykey.cli.cost import aligned

TINY = ["--steps", "4", "--layers", "1", "--dim", "12", "--heads", "2", "--seeds", "2", "--workers", "1"]


def refused(capsys, *words):
    """The sentence on standard error, after checking that there was nothing but it."""
    try:
        code = main(words)
    except SystemExit as stopped:  # argparse's own refusals
        code = stopped.code
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    assert "Traceback" not in captured.err
    return captured.err


WRONG = [
    ("", "no command is given, expected one of compare, report, cost"),
    ("comapre", "unknown command 'comapre' (did you mean 'compare'?)"),
    ("--verison", "unknown option '--verison' (did you mean '--version'?)"),
    ("compare why extra", "'extra' is one argument too many"),
    ("compare wyh", "there is no plan 'wyh' (did you mean 'why'?)"),
    ("compare missing.toml", "there is no plan 'missing.toml'"),
    ("compare {bad.toml}", "plan bad is not TOML"),
    ("compare --desings q,k,v", "unknown option '--desings' (did you mean '--designs'?); see querykey compare --help"),
    ("compare --designs q,k", "v is named 0 times"),
    ("compare --designs q,k,v q,k,v", "each named once"),
    ("compare --designs q,k,v q=k,v+cores=full", "unknown option 'cores' (did you mean 'core'?)"),
    ("compare --designs q,k,v+core=full", "a core acts where queries and keys are shared"),
    ("compare --designs q,k,v q=k,v+kv_heads=2 --heads 4", "needs core=full"),
    ("compare --tasks cycles", "unknown task 'cycles' (did you mean 'cycle'?)"),
    ("compare --tasks cycle cycle", "each task can be named once"),
    ("compare --tasks swap --heads 5", "5 heads do not divide dim 64"),
    ("compare --tasks text --text no/such/file", "there is no text at no/such/file"),
    ("compare --tasks text --text no/such/*.txt", "matches nothing"),
    ("compare --tasks text --text {empty}", "holds no files"),
    ("compare --tasks text --text {paper.pdf}", "is no text but a PDF; extract its text first"),
    ("compare --tasks text --tokenizer no.json", "the tokenizer no.json cannot be read"),
    ("compare --tasks cycle --text README.md", "no task reads text: cycle"),
    ("compare --seeds 0", "seeds must be at least 1, not 0"),
    ("compare --seeds many", "expected a whole number or auto, not 'many'"),
    ("compare --steps 0", "steps must be at least 1, not 0"),
    ("compare --steps 3.5", "expected a whole number, not '3.5'"),
    ("compare --lr fast", "expected a number, not 'fast'"),
    ("compare --positions sideways", "positions must be one of none, learned, rotary"),
    ("compare --match widht", "unknown value 'widht' (did you mean 'width'?)"),
    ("compare --tune 0", "positive learning rates"),
    ("compare --workers 0", "workers must be at least 1, not 0"),
    ("compare --device abacus", "device 'abacus' cannot be used"),
    ("compare --gpus 1", "give --engine ray too"),
    ("compare --out {file}", "is a file, expected a folder"),
    ("report no/such/run", "there are no records under no/such/run"),
    ("report {empty}", "there are no records under"),
    ("report {empty} --format pdf", "unknown value 'pdf'; known are table, csv, json, html"),
    ("cost", "the following arguments are required: --dim, --heads"),
    ("cost --dim wide --heads 4", "expected a whole number, not 'wide'"),
    ("cost --dim 0 --heads 4", "dim must be positive, not 0"),
    ("cost --dim 64 --heads 5", "5 heads do not divide dim 64"),
    ("cost --dim 64 --heads 4 --kv-heads 3", "kv_heads 3 must divide the 4 query heads"),
    ("cost --dim 64 --heads 4 --length 0", "length must be at least 1, not 0"),
    ("cost --dim 64 --heads 4 --layers -1", "layers must be at least 1, not -1"),
    ("cost --dim 64 --heads 4 --dtype bf16", "unknown value 'bf16' (did you mean 'bfloat16'?)"),
    ("bench --shapes 2,4,15,2", "2 heads do not divide dim 15"),
    ("bench --passes decode", "unknown value 'decode' (did you mean 'decoding'?)"),
    ("bench --out {file}", "is a file, expected a folder"),
    ("bench --out {file}/below", "cannot be written: Not a directory"),
    ("inspect", "the following arguments are required: CHECKPOINT"),
    ("inspect {empty}", "holds no weights"),
    ("inspect a b c", "not 3"),
    ("inspect ./no/such", "there is no file or folder at './no/such'"),
    ("inspect {empty} --per haed", "unknown value 'haed' (did you mean 'head'?)"),
    ("inspect {empty} --out {file}", "is a file, expected a folder"),
    ("inspect {empty} --text no/such/file", "there is no text at no/such/file"),
    ("inspect {empty} --text {file} --pieces 1", "at least 2 tokens and 2 pieces"),
    ("convert ./no/such", "there is no file or folder at './no/such'"),
    ("convert {empty} --share vk", "unknown value 'vk'; known are kv, qk, qkv"),
    ("convert {empty} --cache half", "expected a number, not 'half'"),
    ("convert {empty} --out {file}", "is a file, expected a folder"),
    ("convert {empty}", "add --out DIR, or --dry-run"),
    ("convert {empty} --dry-run", "add --evaluate TEXT"),
    ("convert {empty} --out {empty}/new --cache 2", "more than 0 and at most 1, not 2"),
    ("convert model.gguf --out {empty}/new", "there is no file or folder at 'model.gguf'"),
    ("explore {empty}", "holds no weights"),
    ("explore cyle", "there is no model 'cyle' (did you mean 'cycle'?)"),
    ("explore ./cycle", "there is no file or folder at './cycle'"),
    ("explore cycle --port 99999999", "expected a port from 0 to 65,535, not '99999999'"),
    ("explore cycle --port http", "expected a port from 0 to 65,535, not 'http'"),
    ("explore cycle --export {empty}", "is a folder, expected a file"),
    ("explore cycle --export {file}/page.html", "cannot be written"),
]


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Paths by name, and long work that fails where it begins."""
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("a few words\n")
    (tmp_path / "paper.pdf").write_bytes(b"%PDF-1.7\n" + bytes(range(256)))
    (tmp_path / "bad.toml").write_text("seeds = [")
    for work in ("study.engines.run_local", "bench.bench.interleave", "explorer.builtin.train"):
        monkeypatch.setattr(f"querykey.{work}", lambda *given, **named: pytest.fail("work has begun"))
    return {name: str(tmp_path / name) for name in ("empty", "file", "paper.pdf", "bad.toml")}


def filled(text, places):
    for name, path in places.items():
        text = text.replace(f"{{{name}}}", path)
    return text.split()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("words", "sentence"), WRONG, ids=[words for words, _ in WRONG])
def test_a_wrong_input_gets_one_sentence_before_any_work(capsys, tmp_path, places, words, sentence):
    given = filled(words, places)
    if given[:1] == ["compare"] and "--out" not in given:
        given += ["--out", str(tmp_path / "out")]
    said = refused(capsys, *given)
    assert said.startswith("querykey: ")
    assert said.count("\n") == 1
    assert sentence in said
    assert not (tmp_path / "out" / "weights").exists()


def light_enough(said):
    return any(word in said for word in ("expected", "no model", "folder at")) or (
        "unknown" in said and "task" not in said
    )


def test_arguments_are_checked_without_torch(tmp_path):
    """In a process where torch cannot be imported: what is checked there is answered at once."""
    script = "import sys; sys.modules['torch'] = None; from querykey.cli import main; sys.exit(main(sys.argv[1:]))"
    (tmp_path / "file").touch()
    light = [words for words, said in WRONG if light_enough(said)]
    assert len(light) > 20
    for words in light:
        given = filled(words, {"file": str(tmp_path / "file"), "empty": str(tmp_path)})
        done = subprocess.run([sys.executable, "-c", script, *given], capture_output=True, text=True)
        assert (done.returncode, "torch" in done.stderr) == (2, False), done.stderr


def test_help_shows_defaults_and_examples(capsys):
    for command in ("compare", "report", "cost", "bench", "inspect", "convert", "explore"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        shown = capsys.readouterr().out
        assert f"\n  querykey {command}" in shown.partition("examples:")[2]
        assert "(default: " in shown


def test_who_stops_a_command_while_it_imports_gets_one_line():
    """`torch` is a module that waits until it is interrupted."""
    script = (
        "import sys, signal, os, time; from importlib.machinery import ModuleSpec\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored in what a shell runs in the background
        "class Waiting:\n"
        "    def find_spec(self, name, *more): return ModuleSpec(name, self) if name == 'torch' else None\n"
        "    def create_module(self, spec): os.kill(os.getpid(), signal.SIGINT); time.sleep(60)\n"
        "    def exec_module(self, module): pass\n"
        "sys.meta_path.insert(0, Waiting())\n"
        "from querykey.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    for words, said in (
        (["cost", "--dim", "8", "--heads", "2"], "stopped"),
        (["bench"], "stopped; nothing was written"),
    ):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (130, f"querykey: {said}\n")


def test_texts_that_cannot_be_used(capsys, tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_bytes(b"too short")
    for name, sentence in (("empty", "empty"), ("short", "too short for length 64")):
        out = ["--out", str(tmp_path / "out")]
        assert sentence in refused(capsys, "compare", "--tasks", "text", "--text", str(tmp_path / name), *out)


def test_a_text_that_cannot_be_read(tmp_path):
    """As another user than root, whom permissions do not stop."""
    secret = tmp_path / "secret"
    secret.write_bytes(b"x" * 9999)
    secret.chmod(0)
    if os.access(secret, os.R_OK):
        pytest.skip("this user may read everything")
    done = querykey("compare", "--tasks", "text", "--text", str(secret), "--out", str(tmp_path / "out"))
    assert (done.returncode, "cannot be read" in done.stderr) == (2, True)


def querykey(*words, **options):
    return subprocess.run(
        [sys.executable, "-m", "querykey.cli", *words], capture_output=True, text=True, timeout=200, **options
    )


def test_a_full_disk_gets_a_sentence(tmp_path):
    def no_room():
        resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))

    done = querykey("compare", "--tasks", "text", *TINY, "--dim", "64", "--out", str(tmp_path), preexec_fn=no_room)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "cannot be written" in done.stderr or "cannot be used" in done.stderr


def test_compare_prints_tables_a_report_and_an_answer(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")

    def said(*words):
        assert main(words) == 0
        return capsys.readouterr()

    asked = ["compare", "--tasks", "cycle", "swap", "--designs", "q,k,v", "q=k,v", *TINY, "--out", str(tmp_path)]
    first = said(*asked)
    assert "cells: 8 of 8" in first.err
    assert "too few seeds" in first.out
    assert "6" in first.out  # how many would do
    page = (tmp_path / "report.html").read_text()
    rows = list(csv.DictReader(io.StringIO(said("report", str(tmp_path), "--format", "csv").out)))
    assert [row["design"] for row in rows] == ["q,k,v", "q=k,v"] * 4
    assert said("report", str(tmp_path), "--format", "html").out == page
    command = json.loads(said("report", str(tmp_path), "--format", "json").out)["study"]["command"]
    assert command in unescape(page)
    same = said(*shlex.split(command)[1:])
    assert same.out == first.out
    assert "all 8 cells had been trained before" in same.err
    assert said("report", str(tmp_path)).out in first.out

    part = said(*asked[:2], *asked[3:])  # without cycle
    assert "cycle" not in part.out
    assert (tmp_path / "report.html").read_text() == page
    assert "swap" in (tmp_path / "report-part.html").read_text()
    assert said("report", str(tmp_path), "--format", "html").out == page
    said(*asked, "--lr", "0.02")
    assert (tmp_path / "report-1.html").read_text() == page
    assert (tmp_path / "report.html").read_text() != page


def test_cost_in_all_formats(capsys):
    sizes = ["cost", "--dim", "64", "--heads", "4"]
    assert main([*sizes, "--kv-heads", "2", "--layers", "3", "--format", "json"]) == 0
    captured = capsys.readouterr()
    rows = {row["design"]: row for row in json.loads(captured.out)}
    assert rows["q,k,v+kv_heads=2"]["parameters"] == 3 * 64 * 64 * 3
    assert rows["q,k=v+kv_heads=2"]["cache_bytes_per_token_ratio"] == 0.5
    assert rows["q,k=v+kv_heads=2"]["cache_bytes"] == 3 * 2048 * 32 * 4
    assert "q=k,v is shown with 4 key heads" in captured.err
    assert main([*sizes, "--format", "csv"]) == 0
    assert len(list(csv.DictReader(io.StringIO(capsys.readouterr().out)))) == 7
    assert main(sizes) == 0
    shown = capsys.readouterr().out
    assert "16.38 k" in shown
    assert "8.19 k" in shown


def test_costs_from_python():
    plain, shared = cost(dim=24, heads=3, designs=("q,k,v", "q,k=v+kv_heads=1"), layers=5, length=7, dtype="float64")
    layout = Layout.of("q,k=v+kv_heads=1", 24, 3)
    assert shared.amounts == (5 * layout.parameters, 5 * layout.flops(7), 5 * 8 * 8, 7 * 5 * 8 * 8)
    assert plain.baseline == shared.baseline == plain.amounts
    assert shared.ratio("cache_bytes") == 1 / 6


@pytest.mark.parametrize(
    ("numbers", "texts"),
    [
        ([4096, 2048], ["4.10 kB", "2.05 kB"]),
        ([3, 250], ["3 B", "250 B"]),
        ([41_943_040, 4_194_304], ["41.94 MB", "4.19 MB"]),
        ([10**12, 10**10], ["1.00 TB", "0.01 TB"]),
    ],
)
def test_numbers_of_a_column_have_one_unit_and_aligned_decimals(numbers, texts):
    assert aligned(numbers, "B") == texts
