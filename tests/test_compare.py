"""Whole studies: the same records whatever the workers, and nothing lost when they are killed."""

import json
import random
import sqlite3
import sys
import threading
from contextlib import closing

import psutil
import pytest

import querykey
from querykey.stats.comparison import Verdict
from querykey.study import engines
from querykey.study.plan import from_mapping
from querykey.study.records import Records, RecordsError
from querykey.study.training import Outcome
from studied import count, finished, killed, lasting

TABLE = {
    "designs": ["q,k,v", "q=k,v"],
    "model": {"layers": 1, "dim": 12, "heads": 2, "mlp": 0, "steps": 25, "batch": 4, "evaluations": 2},
    "tasks": {"cycle": {"length": 6}, "induction": {}},
    "seeds": 6,
}
TOML = """
designs = ["q,k,v", "q=k,v"]
seeds = 6
[model]
layers = 1
dim = 12
heads = 2
mlp = 0
steps = 25
batch = 4
evaluations = 2
[tasks.cycle]
length = 6
[tasks.induction]
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("undisturbed")
    result = querykey.compare(from_mapping(TABLE, "small"), out=folder, workers=1)
    return folder, lasting(folder), result


def test_a_result_has_its_cells_and_its_summary(undisturbed):
    _, records, result = undisturbed
    assert len(result.cells) == len(records) == 24
    assert result.cells["key"].is_unique
    assert {
        "metrics.test",
        "metrics.validation",
        "config.steps",
        "provenance.torch",
        "provenance.machine.cores",
    } <= set(result.cells)
    assert list(result.summary["task"]) == ["cycle", "induction"]
    assert set(result.summary["design"]) == {"q=k,v"}
    assert result.missing == 0
    assert len(result.answer()) >= 1


def test_the_weights_of_the_first_seed_are_kept(undisturbed):
    folder, *_ = undisturbed
    assert len(list((folder / "weights").glob("*.safetensors"))) == 4


def test_any_number_of_workers_gives_the_same_records(undisturbed, tmp_path):
    querykey.compare(from_mapping(TABLE, "small"), out=tmp_path, workers=3)
    assert lasting(tmp_path) == undisturbed[1]


def test_the_same_command_again_trains_only_what_is_missing(undisturbed, tmp_path):
    steps = []
    few = from_mapping(TABLE | {"seeds": 1}, "small")
    querykey.compare(few, out=tmp_path, workers=2, watch=steps.append)
    assert [step.done for step in steps] == [1, 2, 3, 4]
    steps.clear()
    result = querykey.compare(from_mapping(TABLE | {"seeds": 2}, "small"), out=tmp_path, workers=2, watch=steps.append)
    assert [step.done for step in steps] == [5, 6, 7, 8]
    assert len(result.cells) == 8
    steps.clear()
    again = querykey.compare(few, out=tmp_path, workers=2, watch=steps.append)
    assert not steps
    assert len(again.cells) == 4  # the study asked last, not all that lies there
    assert lasting(tmp_path).items() <= undisturbed[1].items()


def test_a_cell_under_two_names_is_trained_once_and_reported_twice(undisturbed, tmp_path):
    cycle = {"task": "cycle", "length": 6}
    tasks = {"one": cycle, "other": cycle, "longer": {"task": "cycle", "length": 9, "designs": []}}
    result = querykey.compare(from_mapping(TABLE | {"tasks": tasks, "seeds": 2}, "named"), out=tmp_path, workers=1)
    assert len(lasting(tmp_path)) == 4 + 2
    assert result.missing == 0
    before = undisturbed[2].scores("cycle", "q=k,v")
    for name in ("one", "other"):
        assert result.scores(name, "q=k,v") == {seed: before[seed] for seed in (0, 1)}
    assert [(c.task, c.design) for c in result.comparisons] == [("one", "q=k,v"), ("other", "q=k,v")]
    assert "longer: accuracy" in result._repr_html_()


def test_cells_of_a_killed_worker_are_run_again(undisturbed, tmp_path):
    killed = []

    def kill_one(step):
        if step.done in (3, 9):
            workers = [
                p for p in psutil.Process().children(recursive=True) if not p.children() and p.cpu_times().user > 0
            ]
            victim = max(workers, key=lambda process: process.create_time())
            victim.kill()
            killed.append(victim.pid)

    querykey.compare(from_mapping(TABLE, "small"), out=tmp_path, workers=2, watch=kill_one)
    assert len(killed) == 2
    assert lasting(tmp_path) == undisturbed[1]


def test_a_script_without_a_guard_that_is_killed_resumes(undisturbed, tmp_path):
    """One kill; ten, on both engines, are in test_kills.py. Workers must not import the script and begin it again."""
    plan, script, out = tmp_path / "small.toml", tmp_path / "script.py", tmp_path / "out"
    plan.write_text(TOML)
    script.write_text(f"import querykey\nquerykey.compare({str(plan)!r}, out={str(out)!r}, workers=2)\n")
    command = [sys.executable, str(script)]
    assert killed(command, out, kills=1, seed=2)
    assert 0 < count(out) < len(undisturbed[1])
    assert finished(command, out) == ""
    assert lasting(out) == undisturbed[1]


def test_seeds_are_added_until_each_verdict_is_decided(tmp_path, monkeypatch):
    """With outcomes made up: one design clearly worse, one the same, one too noisy to tell."""
    trained = []

    def made_up(work, workers):
        for cell, _ in work:
            trained.append((str(cell.design), cell.seed))
            noise = random.Random(f"{cell.design} {cell.seed}").gauss(0, 1)
            score = {"q,k,v": 0.9, "q=k,v": 0.5 + 0.01 * noise, "q,k=v": 0.9, "q=k=v": 0.9 + 0.3 * noise}[
                str(cell.design)
            ]
            yield cell, Outcome("finished", {"test": score, "validation": score}, {}, 0.0)

    monkeypatch.setattr(engines, "run_local", made_up)
    plan = from_mapping({"designs": ["q,k,v", "q=k,v", "q,k=v", "q=k=v"], "tasks": {"cycle": {}}}, "auto")
    result = querykey.compare(plan, out=tmp_path, seeds="auto", most_seeds=12)
    verdicts = {one.design: (one.verdict, one.difference.n) for one in result.comparisons}
    assert verdicts["q=k,v"] == (Verdict.BASELINE_BETTER, 6)
    assert verdicts["q,k=v"] == (Verdict.EQUIVALENT, 6)
    assert verdicts["q=k=v"] == (Verdict.UNDECIDED, 12)
    assert len(trained) == 4 * 6 + 2 * 6 == len(set(trained))
    assert result.missing == 0
    assert result.study.looks == [6, 10, 12]


def test_each_design_gets_the_learning_rate_that_is_best_on_validation(tmp_path, monkeypatch):
    """With outcomes made up: the best rate differs by design, and the test score would choose another."""
    best = {"q,k,v": 0.01, "q=k,v": 0.1}

    def made_up(work, workers):
        for cell, _ in work:
            rate = cell.task.config.lr
            validation = 0.9 if rate == best[str(cell.design)] else 0.2
            if rate == 1.0:
                yield cell, Outcome("diverged")
            else:
                yield cell, Outcome("finished", {"test": 1 - validation, "validation": validation}, {}, 0.0)

    monkeypatch.setattr(engines, "run_local", made_up)
    tasks = {"cycle": {}, "shift": {"tune_seeds": 1, "tune": [0.01, 0.1]}}
    plan = from_mapping({"designs": ["q,k,v", "q=k,v"], "tasks": tasks, "seeds": 2, "tune": [0.01, 0.1, 1.0]}, "tuned")
    result = querykey.compare(plan, out=tmp_path)
    rates = dict(zip(result.cells["design"], result.cells["config.lr"], strict=True))
    assert rates == best
    assert sorted(result.cells["seed"]) == 4 * [0] + 4 * [1]
    kept = 2 * 4 + 2 * (3 * 3 + 2)  # the tuning's own seeds are kept too, and not reported
    assert len(lasting(tmp_path)) == kept


def test_two_runs_do_not_write_to_one_folder_at_once(tmp_path):
    with Records(tmp_path, create=True) as records, records.lock():
        failures = []

        def second():
            try:
                querykey.compare(from_mapping(TABLE, "small"), out=tmp_path)
            except RecordsError as error:
                failures.append(str(error))

        thread = threading.Thread(target=second)
        thread.start()
        thread.join()
    assert "another run is writing to" in failures[0]


def test_a_diverged_cell_is_recorded_and_the_rest_goes_on(tmp_path):
    plan = from_mapping(TABLE | {"model": TABLE["model"] | {"lr": 1e30}, "seeds": 2}, "wild")
    result = querykey.compare(plan, out=tmp_path, workers=1)
    assert len(result.diverged) == len(result.cells) == 8
    assert (result.summary["diverged"] == 2).all()


def test_databases_of_others_are_refused(tmp_path):
    with pytest.raises(RecordsError, match="there are no records under"):
        Records(tmp_path / "nothing")
    Records(tmp_path / "old", create=True).close()
    with closing(sqlite3.connect(tmp_path / "old" / "records.sqlite")) as database:
        database.execute("pragma user_version = 99")
    with pytest.raises(RecordsError, match="has layout 99, made by another version"):
        Records(tmp_path / "old")
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn" / "records.sqlite").write_bytes(b"SQLite format 3\0" + b"torn" * 500)
    with pytest.raises(RecordsError, match="cannot be used"):
        Records(tmp_path / "torn")
    with Records(tmp_path / "empty", create=True) as records, pytest.raises(RecordsError, match="holds no study yet"):
        records.last_study()


def test_what_is_stored_is_strict_json(undisturbed):
    folder, *_ = undisturbed
    with closing(sqlite3.connect(folder / "records.sqlite")) as database:
        for row in database.execute("select config, metrics, curve, origin from cells"):
            for text in row:
                json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
