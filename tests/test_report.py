"""The report of a study: numbers as recorded, words that say no more than the numbers, pages that need nothing else."""

import csv
import io
import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from querykey.design import Design
from querykey.layout import Layout
from querykey.report import figures
from querykey.study import report, tables, training
from querykey.study.answer import in_words
from querykey.study.compare import describe, facts_of
from querykey.study.maps import _most_different, attention_maps, head_maps
from querykey.study.plan import Config, Plan, TaskChoice
from querykey.study.records import Records, weights_path
from querykey.study.result import read
from querykey.study.training import Outcome, load

DESIGNS = ("q,k,v", "q=k,v", "q=k,v+core=full")
CONFIG = Config(layers=1, dim=12, heads=2, mlp=0, steps=2, batch=3, evaluations=2)
GONE = "not trained yet"


def outcome(score, evaluations=2, **metrics):
    if score is None:
        return Outcome("diverged", {}, {"step": [1], "loss": [math.nan], "validation": [0.5]}, 1.5)
    curve = {
        "step": [*range(1, evaluations + 1)],
        "loss": [1 / (n + 1) for n in range(evaluations)],
        "validation": [score * (n + 1) / evaluations for n in range(evaluations)],
    }
    return Outcome("finished", {"test": score, "validation": score - 0.0625, **metrics}, curve, 1.25)


def keep(
    folder, scores, tasks=("cycle",), name="mine", question="", weights=False, evaluations=2, match="width", **metrics
):
    """Records with these scores by (task, design), one per seed, or by design for every task; None is diverged."""
    designs = tuple(dict.fromkeys(key[1] if isinstance(key, tuple) else key for key in scores))
    choices = [task if isinstance(task, TaskChoice) else TaskChoice(task, {}, CONFIG) for task in tasks]
    seeds = max(len(some) for some in scores.values())
    plan = Plan(name, tuple(map(Design.parse, designs)), tuple(choices), seeds, question, match)
    made = plan.make_tasks()
    cells = plan.cells(made)
    with Records(folder, create=True) as records:
        records.keep_study(describe(plan, facts_of(plan, made, records.folder), cells))
        for cell in cells:
            design = str(cell.design)
            of_seeds = scores.get((cell.task.name, design)) or scores[design]
            if of_seeds[cell.seed] is not GONE:
                kept = weights_path(records.folder, cell.key) if weights and cell.seed == 0 else None
                records.add(cell, trained(cell, kept) if kept else outcome(of_seeds[cell.seed], evaluations, **metrics))
    return read(folder)


def trained(cell, weights):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "VALIDATION", 7)
        patch.setattr(training, "TEST", 11)
        return training.train(cell, weights)


def printed(result, width=100, **options):
    console = Console(file=io.StringIO(), width=width, **options)
    report.print_tables(result, console)
    return console.file.getvalue()


def near(score, seeds=6, spread=0.001):
    return [score + spread * (seed % 3 - 1) for seed in range(seeds)]


# Words


@pytest.fixture(scope="module")
def ladder(tmp_path_factory):
    """One matrix is far worse, one with a core is not."""
    scores = {"q,k,v": near(0.9), "q=k,v": near(0.3, spread=0.01), "q=k,v+core=full": near(0.9)[::-1]}
    return keep(tmp_path_factory.mktemp("ladder"), scores, tasks=("cycle", "swap"), question="Do they?")


def test_where_the_baseline_learned_nothing_nothing_is_said(tmp_path):
    chance = {"q,k,v": near(0.127), "q=k,v": near(0.128)[::-1]}
    result = keep(tmp_path / "all", chance)
    assert result.answer()[0] == "Nothing was learned: q,k,v itself is at chance on cycle. Train for longer."
    learned = {("swap", "q,k,v"): near(0.9), ("swap", "q=k,v"): near(0.3)}
    scores = {(task, design): some for task in ("cycle",) for design, some in chance.items()} | learned
    result = keep(tmp_path / "one", scores, tasks=("cycle", "swap"))
    assert result.answer()[0].startswith("Queries and keys needed different weights on 1 of 2 tasks (swap)")
    (note,) = (note for note in tables.notes(result) if "learned nothing" in note)
    assert note.startswith("On cycle the baseline q,k,v itself learned nothing (0.127, where chance is 0.125)")


def test_a_worse_shared_matrix_and_its_remedy_are_said(ladder):
    question, found, *about = ladder.answer()
    assert question == "Do they?"
    assert found.startswith("Queries and keys needed different weights on both tasks (cycle and swap): ")
    assert "q=k,v is worse there." in found
    assert found.endswith("the only remedy: q=k,v+core=full loses nothing beyond the margin there.")
    assert about[0] == (
        "q=k,v: worse on cycle (0.300 against 0.900) and swap (0.300 against 0.900). "
        "Over these tasks, a run of it beats one of q,k,v with probability 0.00."
    )
    assert about[1].startswith("q=k,v+core=full: no difference beyond the margin on cycle (0.900 against 0.900) and")


def test_a_remedy_for_some_of_the_tasks_is_said_for_those(tmp_path):
    scores = {"q,k,v": near(0.9), "q=k,v": near(0.3), ("swap", "q=k,v+selfmask"): near(0.9)[::-1]}
    scores |= {("cycle", "q=k,v+selfmask"): near(0.3), "q=k=v": near(0.3)}
    found = keep(tmp_path, scores, tasks=("cycle", "swap")).answer()[0]
    assert found.endswith("the only remedy: q=k,v+selfmask loses nothing beyond the margin on swap.")


def test_too_few_seeds_never_sound_like_no_difference(tmp_path):
    result = keep(tmp_path, {"q,k,v": [0.8, 1.0], "q=k,v": [0.4, 0.2]})
    (found, about) = result.answer()
    assert found.endswith("these runs cannot tell: a verdict takes 6 seeds, and there are 2.")
    assert about == "q=k,v: cannot tell on cycle (0.300 against 0.900)."
    assert "Run again with --seeds 6" in printed(result, 200)


def test_noise_never_sounds_like_no_difference(tmp_path):
    noisy = [0.9, 0.4, 0.8, 0.2, 0.95, 0.5]
    result = keep(tmp_path, {"q,k,v": near(0.7), "q=k,v": noisy}, tasks=("cycle",))
    assert result.comparisons[0].verdict == "cannot tell"
    assert "these runs cannot tell: on cycle the differences are not clear enough" in result.answer()[0]


def test_a_mixture_says_each_part(tmp_path):
    scores = {"q,k,v": near(0.9), ("cycle", "q=k,v"): near(0.3), ("swap", "q=k,v"): near(0.9)[::-1]}
    scores |= {("shift", "q=k,v"): [0.9, 0.4, 0.8, 0.2, 0.95, 0.5]}
    found = keep(tmp_path, scores, tasks=("cycle", "swap", "shift")).answer()[0]
    assert "on 1 of 3 tasks (cycle)" in found
    assert "On swap it is no worse beyond the margin. On shift these runs cannot tell." in found
    assert "remedy" not in found


def test_no_harm_is_said_only_when_shown(tmp_path):
    found = keep(tmp_path, {"q,k,v": near(0.9), "q=k,v": near(0.9)[::-1]}, tasks=("cycle", "swap")).answer()[0]
    assert found.startswith("Queries and keys did not need different weights on any of the 2 tasks: ")


def test_worse_by_less_than_the_margin_is_no_harm(tmp_path):
    task = TaskChoice("cycle", {}, CONFIG, margin=0.1)
    found, about = keep(tmp_path, {"q,k,v": near(0.9), "q=k,v": near(0.88)}, tasks=(task,)).answer()
    assert "did not need different weights on the task" in found
    assert about == "q=k,v: worse, but by less than the margin, on cycle (0.880 against 0.900)."


@pytest.mark.parametrize(
    "designs",
    [("q=k,v", "q,k,v"), ("q,k,v", "q=k=v"), ("q,k,v", "q=k,v+cosine"), ("q,k,v", "q=k=x,v"), ("q=x,k,v", "q=k,v")],
)
def test_other_comparisons_do_not_claim_to_answer_for_queries_and_keys(tmp_path, designs):
    result = keep(tmp_path, {designs[0]: near(0.9), designs[1]: near(0.3)})
    assert result.answer() == [f"{designs[1]}: worse on cycle (0.300 against 0.900)."]


def test_lower_is_better_in_bits(tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(range(256)) * 40)
    task = TaskChoice("text", {"paths": [str(text)], "length": 16}, CONFIG)
    result = keep(tmp_path / "run", {"q,k,v": near(2.8), "q=k,v": near(2.9), "q,k=v": near(2.7)}, tasks=(task,))
    assert result.answer()[1] == "q=k,v: worse on text (2.900 against 2.800 bits per byte)."
    assert result.answer()[2] == "q,k=v: better on text (2.700 against 2.800 bits per byte)."
    assert "bits per byte, lower is better" in printed(result)


@pytest.mark.parametrize(
    ("design", "words"),
    [
        ("q,k,v", "a matrix each for queries, keys and values"),
        (
            "q=k,v+core=signed",
            "one matrix for queries and keys; a diagonal k × k matrix per head makes the queries out",
        ),
        ("q=k=x,v+selfmask", "queries and keys are the input itself; no position attends to itself"),
        ("q,k=v+cosine+qknorm", "one matrix for keys and values; cosine similarity; normalised queries and keys"),
        ("q,k,v+qk_dim=4+kv_heads=2", "queries and keys of size 4; 2 key and value heads"),
        ("q,k,v+qkscale=0.25", "initial queries and keys × 0.25"),
    ],
)
def test_designs_in_words(design, words):
    assert words in in_words(Design.parse(design))


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
    assert [*dict.fromkeys(groups)][5:] == ["metrics", "seconds", "finished_at", "config", "origin"]
    first = cells.iloc[0]
    assert (first["seed"], first["metrics.seed"], first["metrics.test"], first["config.options.names"]) == (
        0,
        11.0,
        0.5,
        7,
    )
    assert cells["config.head_dim"].tolist() == [pd.NA, pd.NA, 3, 3] * 2  # whole beside empty
    assert cells["metrics.test"].isna().sum() == 2


def test_curves_have_a_row_per_point(ladder):
    curves = ladder.curves
    assert len(curves) == 2 * 3 * 6 * 2
    one = curves[(curves["task"] == "swap") & (curves["design"] == "q=k,v") & (curves["seed"] == 4)]
    assert one["step"].tolist() == [1, 2]
    assert one["loss"].tolist() == [1.0, 0.5]
    assert one["validation"].tolist() == [0.3 / 2, 0.3]


def test_csv_comes_back_exactly(tmp_path):
    scores = {"q,k,v": [1 / 3, None, 0.1], "q=k,v+core=full": [0.7, 2 / 3, GONE]}
    result = keep(tmp_path, scores)
    text = report.as_csv(result)
    names = ["key", "task", "design", "seed", "status", "metrics.test", "config.lr", "finished_at"]
    back = pd.read_csv(io.StringIO(text))
    assert [*back.columns] == [*result.cells.columns]
    pd.testing.assert_frame_equal(back[names], result.cells[names])
    rows = list(csv.DictReader(io.StringIO(text)))
    assert float(rows[0]["metrics.test"]) == 1 / 3
    assert rows[0]["config.dim"] == "12"
    assert rows[0]["origin.torch"] == torch.__version__
    assert rows[2]["status"] == "diverged"
    assert rows[2]["metrics.test"] == ""
    assert len(rows) == 5


def strict(text):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_json_is_strict_and_whole(tmp_path):
    result = keep(tmp_path, {"q,k,v": [0.5, None], "q=k,v": [0.25, GONE]}, question="“Why?”")
    found = strict(report.as_json(result))
    assert {"study", "summary", "cells", "curves", "costs"} <= set(found)
    assert found["study"]["question"] == "“Why?”"
    assert found["missing"] == 1
    assert [cell["metrics"].get("test") for cell in found["cells"]] == [0.5, 0.25, None]
    assert found["cells"][0]["config"]["dim"] == 12
    assert found["cells"][0]["origin"]["machine"]["cores"] >= 1
    assert found["curves"][2] == {"key": found["cells"][2]["key"], "step": [1], "loss": [None], "validation": [0.5]}
    assert found["summary"][0]["difference_mean"] == -0.25
    assert found["summary"][0]["difference_low"] is None  # infinite with one pair
    assert found["costs"][1]["parameters"] == 3 * 12 * 12


def test_costs_are_the_layouts(ladder):
    costs = ladder.costs.set_index(["task", "design"])
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
    assert (
        tables.cost_title(result) == "Cost of attention in the model of swap: 3 layers, dim 10, 2 heads, 12 positions"
    )
    assert tables.cost_rows(result)[0].parameters.number == "1,200"
    assert tables.cost_rows(result)[1].cache.times == "0.50×"


def test_whether_training_had_ended_is_per_task_and_design(ladder):
    found = ladder.convergence.set_index(["task", "design"])
    assert len(found) == 6
    assert found.loc[("cycle", "q,k,v"), "improving"] == 1  # curves of two points that double
    assert math.isnan(found.loc[("cycle", "q,k,v"), "converged_at"])


def test_a_better_design_that_still_improves_is_flagged(ladder, tmp_path):
    flagged = "On cycle, q,k,v was still improving when training ended: this says who is ahead, not who would win."
    assert flagged in tables.notes(ladder)
    wide = TaskChoice("cycle", {}, CONFIG, margin=0.5)  # no curve rises by more
    result = keep(tmp_path, {"q,k,v": near(0.9), "q=k,v": near(0.3)}, tasks=(wide,))
    assert result.comparisons[0].better == "q,k,v"
    assert not any("improving" in note for note in tables.notes(result))
    assert result.convergence["improving"].tolist() == [0, 0]
    assert keep(tmp_path / "one", {"q,k,v": near(0.9)}, tasks=(wide,)).convergence["improving"].tolist() == [0]


def test_how_designs_are_matched_is_said_with_what_is_left(tmp_path):
    task = TaskChoice("cycle", {}, replace(CONFIG, dim=24, mlp=2.0))
    plan = {"q,k,v": [0.5], "q=k,v": [0.5]}
    assert tables.mismatch(keep(tmp_path / "width", plan, tasks=(task,)), "cycle")["q=k,v"][0] == (3 + 4) / (4 + 4)
    result = keep(tmp_path / "parameters", plan, tasks=(task,), match="parameters")
    assert tables.mismatch(result, "cycle") == {"q,k,v": (1, 1), "q=k,v": (1, 1)}
    assert "Designs are matched in parameters, at most 0.0% off." in tables.notes(result)
    text = page(result).text
    assert "Models are matched at equal parameters" in text
    assert "2, 2.5" in text  # widths of the MLP


# The terminal


@pytest.mark.parametrize("width", [80, 100, 140])
def test_tables_fit_the_terminal_and_are_plain_when_piped(ladder, width):
    text = printed(ladder, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "cycle: accuracy, 6 seeds (chance 0.125, best 1, margin 0.02)" in text
    flat = re.sub(r"\s+", " ", text)
    for shown in ("0.300", "± 0.009", "−0.600", "[−0.60", "q,k,v is better", "no difference within", "0.031", "0.75×"):
        assert shown in flat, shown
    last = ladder.answer()[-1]
    assert flat.replace(" ", "").endswith(last.replace(" ", ""))


def test_one_line_per_design_where_there_is_room(ladder):
    lines = [line for line in printed(ladder, 140).splitlines() if line.startswith("q=k,v ") and "±" in line]
    assert len(lines) == 2
    assert all(line.rstrip().endswith("q,k,v is better") for line in lines)


def test_names_with_markup_are_printed_as_they_are(tmp_path):
    result = keep(tmp_path, {"q,k,v": [0.5]}, question="Is [bold]this[/bold] [red] & <b>that</b> so?")
    assert "Is [bold]this[/bold] [red] & <b>that</b> so?" in printed(result)


# Cells that are not as they should be


def test_diverged_and_missing_cells_are_shown(tmp_path):
    scores = {"q,k,v": near(0.9), "q=k,v": [*near(0.3)[:4], None, GONE], "q,k=v": [None] * 6}
    result = keep(tmp_path, scores)
    assert (result.missing, len(result.diverged)) == (1, 7)
    for text in (printed(result, 140), report.as_html(result)):
        plain = re.sub(r"<[^>]*>", "", text)
        assert "17 of 18 cells are there; run the same command again for the rest." in plain
        assert "q,k=v on cycle, seed 0; q,k=v on cycle, seed 1" in plain
        assert "2 more." in plain
        assert "So far, with 17 of 18 cells:" in plain
        assert "no finished pair" in plain
        assert not re.search(r"\bnan\b", plain, re.IGNORECASE)
    assert "q,k=v: cannot tell on cycle (no pair yet)." in result.answer()
    assert result.answer()[1].startswith("Whether queries and keys need different weights, these runs cannot tell")


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
    for text in (printed(result), page(result).text):
        assert not re.search(r"\b(nan|inf)\b", text, re.IGNORECASE)
        assert all(design in text for design in scores)
    assert len(strict(report.as_json(result))["cells"]) == len(result.records)
    assert len(report.as_csv(result).splitlines()) == len(result.records) + 1
    if len(scores) == 1:
        assert "There is one design, so there is nothing to compare it with." in result.answer()


# The page


class Page(HTMLParser):
    """Reads a page and fails on whatever is not well-formed."""

    VOID = ("meta", "br", "link", "img")

    def __init__(self, source):
        super().__init__()
        self.open, self.ids, self.loads, self.refers, self.words, self.attributes = [], [], [], [], [], []
        self.feed(source)
        self.close()
        assert self.open == []
        assert len(self.ids) == len(set(self.ids))
        assert {name for name in self.refers if name} <= set(self.ids)

    @property
    def text(self):
        return " ".join(self.words)

    def handle_starttag(self, tag, attributes):
        self.attributes += [(tag, *pair) for pair in attributes]
        for name, value in attributes:
            assert value is not None, (tag, name)
            if name == "id":
                self.ids.append(value)
            if name in ("src", "href", "action", "data", "poster"):
                (self.refers if value.startswith("#") else self.loads).append(value.removeprefix("#"))
            if name in ("aria-labelledby", "aria-describedby"):
                self.refers.append(value)
            self.refers += re.findall(r"url\(#([^)]*)\)", value)
            assert not re.search(r"url\((?!#)", value)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)


def page(result):
    return Page(report.as_html(result))


def test_the_page_is_well_formed_and_loads_nothing(ladder):
    source = report.as_html(ladder)
    found = Page(source)
    assert source.startswith("<!doctype html>\n<html lang=")
    assert all(load.startswith("data:image/png;base64,") for load in found.loads)
    assert "@import" not in source
    assert "<script" not in source
    assert "http" not in source
    assert ("meta", "name", "viewport") in found.attributes
    assert source.count("<svg") == source.count('role="img"') > 10
    for design in DESIGNS:
        assert source.count(f"<code>{design}</code>") >= 4
    assert "<code>q,k,v</code> is better" in source
    assert found.text.index("Queries and keys needed") < found.text.index("The designs")


def test_the_page_says_how_it_was_measured(ladder):
    text = page(ladder).text
    origin = ladder.records["origin"][0]
    for shown in ("all 4 comparisons", "95 %", "Settings", origin["python"], origin["torch"], "45 s, 1.2 s a cell"):
        assert shown in text, shown
    assert ladder.records["finished_at"].max() in text


def test_the_same_records_give_the_same_bytes(tmp_path):
    task = TaskChoice("cycle", {}, CONFIG)
    keep(tmp_path, {"q,k,v": [0.5], "q=k,v": [0.25]}, tasks=(task,), weights=True)
    before = torch.get_num_threads()
    first = [form(read(tmp_path)) for form in (report.as_html, report.as_json, report.as_csv)]
    torch.set_num_threads(1)
    try:
        second = [form(read(tmp_path)) for form in (report.as_html, report.as_json, report.as_csv)]
    finally:
        torch.set_num_threads(before)
    assert first == second
    assert report.write_html(read(tmp_path)).read_text(encoding="utf-8") == first[0]
    assert [path.name for path in sorted(tmp_path.glob("report*"))] == ["report.html"]


def test_names_are_escaped(tmp_path):
    result = keep(
        tmp_path, {"q,k,v": [0.5], "q=k,v": [0.5]}, name='<i>"x"&', question="Is <script>a < b</script> & 'so'?"
    )
    found = page(result)
    assert "Is <script>a < b</script> & 'so'?" in found.text
    assert '<i>"x"&' in found.text
    assert not {"script", "i"} & {tag for tag, *_ in found.attributes}
    assert "<script" not in report.as_html(result)
    inside = re.search(r'srcdoc="([^"]*)"', result._repr_html_())
    assert inside is not None
    assert inside[1].replace("&quot;", '"').replace("&amp;", "&") == report.as_html(result)


def test_tables_and_figures_stay_within_a_narrow_page(ladder):
    source = report.as_html(ladder)
    assert len(re.findall(r'<div class="scroll"[^>]*><table', source)) == source.count("<table")
    assert not re.search(r"<svg[^>]* (width|height)=", source)


def luminance(colour):
    digits = colour.removeprefix("#")
    digits = "".join(2 * digit for digit in digits) if len(digits) == 3 else digits
    parts = [int(digits[at : at + 2], 16) / 255 for at in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_words_and_figures_have_enough_contrast_in_light_and_in_dark(ladder):
    dark = r"@media \(prefers-color-scheme: dark\) \{\s*:root \{(.*?)\}"
    source = report.as_html(ladder)
    blocks = (re.findall(r":root \{(.*?)\}", re.sub(dark, "", source, flags=re.DOTALL), re.DOTALL),)
    blocks += (re.findall(dark, source, re.DOTALL),)
    schemes = [dict(re.findall(r"--(\w+): (#\w+);", "".join(scheme))) for scheme in blocks]
    assert schemes[0].keys() == schemes[1].keys()
    assert luminance(schemes[0]["paper"]) > 0.9 > 0.05 > luminance(schemes[1]["paper"])
    for scheme in schemes:
        for ground in ("paper", "raised"):
            for words in ("ink", "muted", "better", "worse"):
                assert contrast(scheme[words], scheme[ground]) >= 4.5, (words, ground)  # WCAG 2.2 AA, text
        for number in range(1, 5):
            assert contrast(figures.look(number).colour, scheme["paper"]) >= 3, number  # AA, graphics


def test_a_large_study_draws_some_and_tables_all(tmp_path):
    designs = ["q,k,v", *(f"q,k,v+qkscale={n}" for n in range(2, 16))]
    result = keep(tmp_path, {design: near(0.5, 2) for design in designs})
    source = report.as_html(result)
    assert "Figures show the first 12 of 15 designs; tables have all." in source
    assert source.count("<code>q,k,v+qkscale=15</code></th>") == 4  # of designs, the task, costs, matching
    assert source.count(">q,k,v+qkscale=12<") - source.count(">q,k,v+qkscale=13<") > 0


def drawn_by(result, monkeypatch, name):
    """What the page gives to a function of `figures`, as (arguments, options) of each call."""
    seen, draw = [], getattr(figures, name)

    def record(*arguments, **options):
        seen.append((arguments, options))
        return draw(*arguments, **options)

    monkeypatch.setattr(figures, name, record)
    report.as_html(result)
    return seen


def test_curves_are_means_with_the_range_of_the_seeds_that_finished(tmp_path, monkeypatch):
    result = keep(tmp_path, {"q,k,v": [0.5, 1.0, 0.75, None], "q=k,v": [0.5, None, None, GONE], "q,k=v": [None] * 4})
    ((_, (first, second)), options) = drawn_by(result, monkeypatch, "curves")[0]
    assert (first.label, first.number, first.x, first.y) == ("q,k,v", 0, [1, 2], [0.375, 0.75])
    assert (first.low, first.high) == ([0.25, 0.5], [0.5, 1.0])
    assert (second.label, second.low, second.high) == ("q=k,v", [0.25, 0.5], [0.25, 0.5])
    assert options["levels"] == {"chance": 0.125, "best": 1.0}


def test_long_curves_are_thinned_and_keep_both_ends(tmp_path, monkeypatch):
    result = keep(tmp_path, {"q,k,v": [0.5]}, evaluations=1000)
    ((_, (line,)), _) = drawn_by(result, monkeypatch, "curves")[0]
    assert len(line.x) == len(line.y) == 60
    assert (line.x[0], line.x[-1], line.y[-1]) == (1, 1000, 0.5)


def test_differences_are_paired_with_t_intervals_and_margins(tmp_path, monkeypatch):
    base, design = [0.5, 0.75, 1.0, None], [0.25, 0.75, 0.5, 0.5]
    task = TaskChoice("cycle", {}, CONFIG, margin=0.0625)
    result = keep(tmp_path, {"q,k,v": base, "q=k,v": design}, tasks=(task,))
    ((_, (estimate,)), options) = drawn_by(result, monkeypatch, "intervals")[0]
    half = 4.302652729911275 * 0.25 / math.sqrt(3)  # 97.5 % of t with 2 degrees of freedom, from a table
    assert (estimate.label, estimate.number) == ("q=k,v", 1)  # 0 is the baseline
    assert (estimate.values, estimate.value) == ([-0.25, 0.0, -0.5], -0.25)
    assert (estimate.low, estimate.high) == (pytest.approx(-0.25 - half), pytest.approx(-0.25 + half))
    assert (options["margins"], options["lower_is_better"]) == ([0.0625], False)


def test_scores_by_difficulty_are_drawn_where_there_are_any(tmp_path, monkeypatch):
    result = keep(tmp_path, {"q,k,v": [0.5, 0.75], "q=k,v": [0.5, None]}, **{"test@3": 0.25, "test@10": 0.125})
    _, ((_, (first, second)), options) = drawn_by(result, monkeypatch, "curves")
    assert (first.x, first.y, first.low) == ([3, 10], [0.25, 0.125], [0.25, 0.125])
    assert (second.label, second.y, options["x_label"]) == ("q=k,v", [0.25, 0.125], "difficulty")


# Attention maps


@pytest.fixture(scope="module")
def small_run(tmp_path_factory):
    """Weights of two designs on cycle, and on bytes."""
    folder = tmp_path_factory.mktemp("trained")
    text = folder / "text.txt"
    text.write_bytes(b"0123456789 <&>\n\x00\xff" * 200)
    small = replace(CONFIG, layers=2, heads=3, dim=6)
    tasks = (TaskChoice("cycle", {}, small), TaskChoice("text", {"paths": [str(text)], "length": 41}, small))
    return keep(folder / "run", {"q,k,v": [0.5], "q=k,v": [0.5]}, tasks=tasks, weights=True)


def test_maps_are_the_formula_on_the_expanded_weights(small_run):
    model, example = load(small_run.weights("cycle", "q=k,v"))[:2]
    layer = model.attentions[0]
    with torch.no_grad():
        x = model.blocks[0].attention_norm(model.embedding(example).sum(-2))[0]
        weights = layer.weights()
        q, k = x @ weights.W_Q, x @ weights.W_K
        expected = (q @ k.transpose(1, 2) / math.sqrt(2)).softmax(-1)
    maps = attention_maps(model, example)
    assert maps.shape == (2, 3, 12, 12)
    np.testing.assert_allclose(maps[0], expected.numpy(), atol=1e-6)
    np.testing.assert_allclose(maps.sum(-1), 1, atol=1e-6)
    assert all(not layer._forward_pre_hooks for layer in model.attentions)


def test_the_head_that_differs_most_is_found():
    maps = {name: np.full((2, 3, 5, 5), 0.2) for name in "abc"}
    maps["b"][1, 2] = np.eye(5)
    layer, head, distance = _most_different(maps)
    assert (layer, head) == (1, 2)
    assert distance == pytest.approx(0.8 * 2 / 3)  # two of three pairs; 1/5 of each query's attention is common
    assert _most_different({"a": maps["a"]}) == (0, 0, 0.0)


def test_maps_of_text_are_named_by_bytes_and_cropped(small_run):
    found = head_maps(small_run, "text", small_run.study.designs)
    assert found is not None
    assert found.names is not None
    model, example = load(small_run.weights("text", "q,k,v"))[:2]
    assert (len(found.names), found.length, found.maps["q=k,v"].shape) == (32, 41, (32, 32))
    signs = {10: "⏎", 32: "␣", 0: "·", 255: "·"}
    assert found.names == [signs.get(byte, chr(byte)) for byte in example[0, :32, 0].tolist()]
    whole = attention_maps(model, example)[found.layer, found.head, :32, :32]
    np.testing.assert_allclose(found.maps["q,k,v"], whole, atol=1e-6)  # causal: what is cut off changes nothing
    source = report.as_html(small_run)
    Page(source)
    assert source.count("data:image/png") == 2 * 2 + 2  # and a scale for each task
    assert f"Layer {found.layer + 1} of 2, head {found.head + 1} of 3" in source
    assert "over all 41 positions, of which the first 32 are shown" in source


def test_maps_of_one_task_share_their_scale(small_run, monkeypatch):
    seen = [(arguments[1], options) for arguments, options in drawn_by(small_run, monkeypatch, "heatmap")]
    for task in (seen[:2], seen[2:]):
        assert len({options["limits"] for _, options in task}) == 1
        assert task[0][1]["limits"] == (0.0, max(float(values.max()) for values, _ in task))


def test_missing_and_torn_weights_are_left_out_with_a_sentence(tmp_path):
    result = keep(tmp_path, {"q,k,v": [0.5], "q=k,v": [0.5], "q,k=v": [0.5]}, weights=True)
    result.weights("cycle", "q=k,v").unlink()
    result.weights("cycle", "q,k=v").write_bytes(b"torn")
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", report.as_html(result)))
    assert "No weights can be read for q=k,v and q,k=v." in text
    result.weights("cycle", "q,k,v").unlink()
    assert "No weights are kept beside these records, so there are no attention maps." in report.as_html(result)


# Figures


def texts(svg):
    return [(node.text, float(node.get("x"))) for node in ElementTree.fromstring(svg).iter("text")]


def drawn():
    curve = figures.Curve("a & b", 1, [1.0, 2.0, 3.0], [0.1, 0.5, 0.9], [0.0, 0.4, 0.8], [0.2, 0.6, 1.0])
    points = [
        figures.Estimate("q=k,v", 1, 0.3, -math.inf, math.inf, [0.2, 0.4]),
        figures.Estimate("q,k=v", 2, math.nan, math.nan, math.nan),
    ]
    return [
        figures.curves("<one>", [curve], x_label="steps", y_label="accuracy", levels={"chance": 0.125, "far": 99.0}),
        figures.intervals("two", points, x_label="difference", margins=[0.1, 0.1]),
        figures.bars("three", ["q,k,v", "q=k,v+core=full+selfmask"], [1.0, 0.75], x_label="parameters"),
        figures.heatmap("four", np.eye(3), limits=(0.0, 1.0), x_label="key", y_label="query", x_names=["<", "&", "c"]),
        figures.scale("five", limits=(0.0, 0.3)),
        figures.marker(3),
    ]  # fmt: skip


def test_figures_are_inline_and_the_same_each_time():
    first, second = drawn(), drawn()
    assert first == second
    ids = [name for svg in first for name in re.findall(r' id="([^"]*)"', svg)]
    assert len(ids) == len(set(ids)) > 0
    for svg in first:
        root = ElementTree.fromstring(svg)
        assert root.get("role") == "img"
        assert not re.search(r"<style|<metadata|http|font-family|#010203", svg)
    assert 'aria-label="&lt;one&gt;"' in first[0]
    assert "chance" in dict(texts(first[0]))
    assert "far" not in dict(texts(first[0]))
    assert {"<", "&", "c"} <= set(dict(texts(first[3])))


def test_drawing_leaves_the_settings_of_matplotlib_alone():
    drawn()
    for name in figures._STYLE:
        assert matplotlib.rcParams[name] == matplotlib.rcParamsOrig[name], name


def test_better_is_always_on_the_right():
    points = [figures.Estimate("q=k,v", 1, 0.3, 0.2, 0.4)]
    for lower, order in ((False, 1), (True, -1)):
        ticks = [
            (float(text.replace("−", "-")), x)
            for text, x in texts(figures.intervals("t", points, x_label="d", lower_is_better=lower))
            if re.match(r"[−\d]", text)
        ]
        values = [value for value, _ in sorted(ticks, key=lambda tick: tick[1])]
        assert values == sorted(values)[::order]
        assert len(values) > 2


def test_wide_intervals_do_not_drown_the_points():
    low, high = figures._reach([figures.Estimate("a", 1, 0.1, -50.0, 50.0)], [0.01])
    assert -0.4 < low < -0.05
    assert 0.15 < high < 0.4
    low, high = figures._reach([figures.Estimate("a", 1, 0.1, 0.05, 0.15)], [0.01])
    assert low < -0.01
    assert 0.15 < high < 0.2


def test_no_two_series_look_the_same():
    looks = [figures.look(number)[:2] for number in range(35)]
    assert len(set(looks)) == 35


def test_the_values_of_a_heat_map_are_its_pixels():
    import base64

    from PIL import Image

    svg = figures.heatmap(
        "t", np.array([[0.0, 0.5, 1.0], [1.0, 0.0, 0.0]]), limits=(0.0, 1.0), x_label="x", y_label="y", palette="gray"
    )
    data = re.search(r"base64,\s*([^\"]*)\"", svg)
    assert data is not None
    pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))).convert("L"))
    assert pixels.shape == (2, 3)
    assert sorted(pixels.flatten().tolist()) == [0, 0, 0, 128, 255, 255]
    assert pixels[0].tolist() == [0, 128, 255] or "matrix(1 0 0 -1" in svg or "scale(1 -1)" in svg
