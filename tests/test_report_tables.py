"""Frames, tables and rows of a report: numbers as recorded, in a terminal and for other programs."""

import csv
import io
import json
import math
import re
from dataclasses import replace

import pandas as pd
import pytest
import torch

import studied
from querykey.design import Design
from querykey.layout import Layout
from querykey.report.words import Words
from querykey.study import notes, tables
from querykey.study.plan import TaskChoice
from querykey.study.report import Report
from studied import CONFIG, GONE, keep, near, printed

SAY = Words("study")


@pytest.fixture(scope="module")
def remedied(tmp_path_factory):
    return studied.remedied(tmp_path_factory.mktemp("remedied"))


# Frames, rows for other programs


def test_cells_are_flat_and_their_columns_never_collide(tmp_path):
    options = TaskChoice("cycle", {"length": 6, "names": 7}, replace(CONFIG, head_dim=None))
    sizes = TaskChoice("swap", {}, replace(CONFIG, head_dim=3))
    result = keep(tmp_path, {"q,k,v": [0.5, None], "q=k,v": [0.25, 0.75]}, tasks=(options, sizes), seed=11.0)
    cells = result.cells
    assert len(cells) == 8
    assert not {"config.task", "config.design", "config.seed"} & set(cells.columns)  # they have columns of their own
    assert cells.columns.is_unique
    groups = [name.partition(".")[0] for name in cells.columns]
    assert [*dict.fromkeys(groups)][:5] == ["key", "task", "design", "seed", "status"]
    assert [*dict.fromkeys(groups)][5:] == ["metrics", "seconds", "finished_at", "config", "provenance"]
    first = cells.iloc[0]
    assert (first["seed"], first["metrics.seed"], first["metrics.test"], first["config.options.names"]) == (
        0,
        11.0,
        0.5,
        7,
    )
    assert cells["config.head_dim"].tolist() == [pd.NA, pd.NA, 3, 3] * 2  # whole beside empty
    assert cells["metrics.test"].isna().sum() == 2


def test_curves_have_a_row_per_point(remedied):
    curves = remedied.curves
    assert len(curves) == 2 * 3 * 6 * 2
    one = curves[(curves["task"] == "swap") & (curves["design"] == "q=k,v") & (curves["seed"] == 4)]
    assert one["step"].tolist() == [1, 2]
    assert one["loss"].tolist() == [1.0, 0.5]
    assert one["validation"].tolist() == [0.3, 0.3]


def test_csv_comes_back_exactly(tmp_path):
    scores = {"q,k,v": [1 / 3, None, 0.1], "q=k,v+core=full": [0.7, 2 / 3, GONE]}
    result = keep(tmp_path, scores)
    text = result.csv()
    names = ["key", "task", "design", "seed", "status", "metrics.test", "config.lr", "finished_at"]
    back = pd.read_csv(io.StringIO(text))
    assert [*back.columns] == [*result.cells.columns]
    pd.testing.assert_frame_equal(back[names], result.cells[names])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert float(rows[0]["metrics.test"]) == 1 / 3
    assert rows[0]["config.dim"] == "12"
    assert rows[0]["provenance.torch"] == torch.__version__
    assert rows[2]["status"] == "diverged"
    assert rows[2]["metrics.test"] == ""
    assert len(rows) == 5


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_strict_and_whole(tmp_path):
    result = keep(tmp_path, {"q,k,v": [0.5, None], "q=k,v": [0.25, GONE]}, question="“Why?”")
    found = strict(result.json())
    assert {"study", "summary", "cells", "curves", "costs"} <= set(found)
    assert found["study"]["question"] == "“Why?”"
    assert found["missing"] == 1
    assert [cell["metrics"].get("test") for cell in found["cells"]] == [0.5, 0.25, None]
    assert found["cells"][0]["config"]["dim"] == 12
    assert found["cells"][0]["provenance"]["machine"]["cores"] >= 1
    assert found["curves"][2] == {"key": found["cells"][2]["key"], "step": [1], "loss": [None], "validation": [0.5]}
    assert found["summary"][0]["difference_mean"] == -0.25
    assert found["summary"][0]["difference_low"] is None  # infinite with one pair
    assert found["costs"][1]["parameters"] == 3 * 12 * 12


def test_costs_are_the_layouts(remedied):
    costs = remedied.costs.set_index(["task", "design"])
    for task, length in (("cycle", 12), ("swap", 12)):
        layout = Layout.of("q=k,v+core=full", 12, 2)
        row = costs.loc[(task, "q=k,v+core=full")]
        assert row["parameters"] == layout.parameters == 3 * 144 + 2 * 36
        assert row["flops"] == layout.flops(length)
        assert row["flops_ratio"] == layout.flops(length) / Layout.of("q,k,v", 12, 2).flops(length)
        assert costs.loc[(task, "q=k,v"), "parameters_ratio"] == 0.75


def test_the_costs_shown_are_those_of_the_largest_model(tmp_path):
    tasks = [
        TaskChoice(name, {}, replace(CONFIG, dim=dim, layers=layers))
        for name, dim, layers in (("cycle", 14, 1), ("swap", 10, 3))
    ]
    result = keep(tmp_path, {"q,k,v": [0.5], "q,k=v": [0.5]}, tasks=tasks)
    table = tables.cost_table(result, SAY)
    assert table.caption == "Cost of attention in the model of swap: layers 3, dim 10, heads 2, positions 12"
    assert table.rows[0][1].text == "1,200"
    assert table.rows[1][3].detail == "0.50×"


def test_whether_training_had_ended_is_per_task_and_design(tmp_path):
    scores = {"q,k,v": near(0.9), "q=k,v": near(0.3)}
    found = keep(tmp_path, scores, tasks=("cycle", "swap"), rising=True).convergence.set_index(["task", "design"])
    assert len(found) == 4
    assert found.loc[("cycle", "q,k,v"), "improving"] == 1  # curves of two points that double
    assert math.isnan(found.loc[("cycle", "q,k,v"), "converged_at"])


def test_how_designs_are_matched_is_said_with_what_is_left(tmp_path):
    task = TaskChoice("cycle", {}, replace(CONFIG, dim=24, mlp=2.0))
    plan = {"q,k,v": [0.5], "q=k,v": [0.5]}
    width = keep(tmp_path / "width", plan, tasks=(task,))
    assert notes.mismatch(width, "cycle", "parameters")["q=k,v"] == (3 + 4) / (4 + 4)
    assert notes.mismatch(width, "cycle", "cache")["q=k,v"] == 1
    result = keep(tmp_path / "parameters", plan, tasks=(task,), match="parameters")
    assert notes.mismatch(result, "cycle", "flops") == {"q,k,v": 1, "q=k,v": 1}
    assert "Designs are matched in parameters, at most 0.0% off." in notes.notes(result, SAY)
    assert tables.matching_table(result, SAY).caption.startswith("Models are matched at equal parameters")
    (widths,) = (row for row in tables.config_table(result, SAY).rows if row[0] == "mlp")
    assert widths == ["mlp", "2, 2.5"]


# The terminal


@pytest.mark.parametrize("width", [80, 100, 140])
def test_tables_fit_the_terminal_and_are_plain_when_piped(remedied, width):
    text = printed(remedied, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    flat = re.sub(r"\s+", " ", text)
    assert "cycle: accuracy, higher is better, seeds 6 (chance 0.125, best 1, margin 0.02)" in flat
    for shown in ("0.300", "± 0.009", "−0.600", "[−0.60", "worse", "no different", "0.031", "0.75×", "95 % interval"):
        assert shown in flat, shown
    question, answer, saving, *_ = remedied.answer()
    assert flat.startswith(f"{question} {answer}")
    assert flat.endswith(f"{answer} {saving} ")  # again where lines have scrolled


def test_the_interval_is_named_by_its_confidence(remedied):
    rule = replace(remedied.rule, confidence=0.9)
    other = printed(Report(remedied.study, remedied.records, remedied.folder, rule))
    assert "90 % interval" in other
    assert "95 %" not in other
    narrow, wide = (re.findall(r"\[−0\.\d+, −0\.\d+\]", text) for text in (other, printed(remedied)))
    assert narrow != wide


def test_one_line_per_design_where_there_is_room(remedied):
    lines = [line for line in printed(remedied, 140).splitlines() if line.startswith("q=k,v ") and "±" in line]
    assert len(lines) == 2
    assert all(line.split()[1] == "worse" for line in lines)


def test_names_with_markup_are_printed_as_they_are(tmp_path):
    result = keep(tmp_path, {"q,k,v": [0.5]}, question="Is [bold]this[/bold] [red] & <b>that</b> so?")
    assert "Is [bold]this[/bold] [red] & <b>that</b> so?" in printed(result)


# Cells that are not as they should be


def plain_text(result):
    """The words of the page."""
    return re.sub(r"<(style|script)>.*?</\1>|<[^>]*>", "", result.html(), flags=re.DOTALL)


def test_diverged_and_missing_cells_are_shown(tmp_path):
    scores = {"q,k,v": near(0.9), "q=k,v": [*near(0.3)[:4], None, GONE], "q,k=v": [None] * 6}
    result = keep(tmp_path, scores)
    assert (result.missing, len(result.diverged)) == (1, 7)
    for text in (printed(result, 140), plain_text(result)):
        plain = re.sub(r" *\n *", " ", text)
        assert "17 of 18 cells are there; run the same command again for the rest." in plain
        assert "q,k=v on cycle, seed 0; q,k=v on cycle, seed 1" in plain
        assert "2 more." in plain
        assert "So far, with 17 of 18 cells:" in plain
        assert "no finished pair" in plain
        assert not re.search(r"\bnan\b", plain, re.IGNORECASE)
    assert "q,k=v: cannot tell on cycle (no pair yet)." in result.answer()
    assert result.answer()[1].startswith("These runs cannot tell whether queries and keys need different weights.")


@pytest.mark.parametrize(
    "scores",
    [
        {"q,k,v": [0.5]},
        {"q,k,v": [0.5], "q=k,v": [0.25]},
        {"q,k,v": near(0.9)},
        {"q,k,v": [GONE, GONE], "q=k,v": [GONE, GONE]},
        {"q,k,v": [GONE], "q=k,v": [0.5]},
        {"q,k,v": [None], "q=k,v": [None]},
        {"q,k,v": near(0.9, 20), "q=k,v": near(0.3, 20)},
    ],
    ids=["one cell", "one seed", "one design", "no cell", "no baseline", "all diverged", "many seeds"],
)
def test_every_form_serves_the_smallest_studies(tmp_path, scores):
    result = keep(tmp_path, scores)
    for text in (printed(result), plain_text(result)):
        assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)
        assert all(design in text for design in scores)
    assert len(strict(result.json())["cells"]) == len(result.records)
    assert len(result.csv().splitlines()) == len(result.records) + 1
    if len(scores) == 1:
        assert "There is one design, so there is nothing to compare it with." in result.answer()


def test_costs_are_of_the_task_with_most_designs(tmp_path):
    """A design that is left out of the largest task has its costs all the same."""
    few = TaskChoice("swap", {}, replace(CONFIG, dim=24), designs=(Design.parse("q=k,v"),))
    result = keep(
        tmp_path, {"q,k,v": near(0.9), "q=k,v": near(0.3), "q,k=v": near(0.9)}, (TaskChoice("cycle", {}, CONFIG), few)
    )
    assert {row["design"]: row["cache_bytes_ratio"] for row in result.largest_costs} == {
        "q,k,v": 1, "q=k,v": 1, "q,k=v": 0.5
    }  # fmt: skip
