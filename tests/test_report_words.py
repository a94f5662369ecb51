"""The sentences of a report say no more than its numbers, in English and in Chinese."""

import json
import random
import re
import string
import tomllib
from importlib.resources import files
from pathlib import Path

import pandas as pd
import pytest

import studied
from querykey.design import Design
from querykey.report.words import Words
from querykey.study import notes
from querykey.study.answer import in_words
from querykey.study.conclusions import conclude
from querykey.study.plan import TaskChoice, load_plan
from querykey.study.records import Study
from querykey.study.result import Result
from studied import CONFIG, GONE, keep, near, printed

SAY = Words("study")


@pytest.fixture(scope="module")
def remedied(tmp_path_factory):
    return studied.remedied(tmp_path_factory.mktemp("remedied"))


def found(result):
    """What is concluded, by task and design."""
    return {(c.task, c.design): conclude(result, c) for c in result.comparisons}


# What is concluded


def test_where_the_baseline_learned_nothing_nothing_is_said(tmp_path):
    chance = {"q,k,v": near(0.127), "q=k,v": near(0.128)[::-1]}
    result = keep(tmp_path / "all", chance)
    assert result.answer()[0] == "Nothing was learned: q,k,v itself is at chance on cycle. Train for longer."
    learned = {("swap", "q,k,v"): near(0.9), ("swap", "q=k,v"): near(0.3)}
    scores = {("cycle", design): some for design, some in chance.items()} | learned
    result = keep(tmp_path / "one", scores, tasks=("cycle", "swap"))
    assert result.answer()[0].startswith("Queries and keys needed different weights on 1 of 2 tasks (swap)")
    assert found(result) == {("cycle", "q=k,v"): "undertrained", ("swap", "q=k,v"): "worse"}
    (first, advice) = notes.advice(result, SAY)
    assert "itself learned nothing (0.127, where chance is 0.125)" in first
    assert "--tasks cycle --steps 6" in advice  # three times as many


def test_no_difference_is_not_concluded_while_either_curve_improves(tmp_path):
    same = {"q,k,v": near(0.9), "q=k,v": near(0.9)[::-1]}
    assert found(keep(tmp_path / "flat", same)) == {("cycle", "q=k,v"): "no different"}
    result = keep(tmp_path / "rising", same, rising=True)
    assert result.comparisons[0].verdict == "no difference within the margin"
    assert found(result) == {("cycle", "q=k,v"): "undertrained"}
    assert "On cycle training ended too early to tell" in result.answer()[0]
    assert "undertrained" in printed(result)


def test_below_the_level_of_counting_nothing_is_concluded(tmp_path):
    text = tmp_path / "text.txt"
    text.write_bytes(bytes(range(32, 96)) * 400)
    task = TaskChoice("text", {"paths": [str(text)], "length": 16}, CONFIG)
    level = keep(tmp_path / "none", {"q,k,v": [GONE], "q=k,v": [GONE]}, (task,)).study.tasks["text"]["yardsticks"]
    over, under = level["trigram"] + 0.05, level["trigram"] - 0.05
    result = keep(tmp_path / "over", {"q,k,v": near(over), "q=k,v": near(over + 0.3)}, (task,))
    assert found(result) == {("text", "q=k,v"): "undertrained"}
    said = f"have not reached what counting trigrams gives ({level['trigram']:.3f}): q,k,v"
    assert said in notes.advice(result, SAY)[0]
    assert found(keep(tmp_path / "one", {"q,k,v": near(under), "q=k,v": near(over)}, (task,))) == {
        ("text", "q=k,v"): "undertrained"
    }
    assert found(keep(tmp_path / "under", {"q,k,v": near(under - 0.2), "q=k,v": near(under)}, (task,))) == {
        ("text", "q=k,v"): "worse"
    }


def test_a_lead_is_not_concluded_while_the_other_catches_up(tmp_path):
    scores = {"q,k,v": near(0.9), "q=k,v": near(0.7)}
    late = {"q,k,v": [0.2, 0.5, 0.8, 0.9, 0.9], "q=k,v": [0.1, 0.1, 0.2, 0.3, 0.7]}
    result = keep(tmp_path / "late", scores, curves=late)
    assert result.comparisons[0].better == "q,k,v"
    assert found(result) == {("cycle", "q=k,v"): "undertrained"}
    flat = " ".join(printed(result).split())
    assert "worse so far" in flat
    assert "On cycle, curves were still improving when training ended (q=k,v): this says who is ahead" in flat
    both = {"q,k,v": [0.1, 0.3, 0.5, 0.7, 0.9], "q=k,v": [0.1, 0.2, 0.3, 0.5, 0.7]}
    result = keep(tmp_path / "both", scores, curves=both)
    assert found(result) == {("cycle", "q=k,v"): "worse"}
    assert "nobody was catching up" in " ".join(printed(result).split())


def test_a_short_run_of_a_design_that_will_be_worse_does_not_read_no_different(tmp_path):
    """Recorded cells: after 60 steps the two designs are alike, after 500 one is worse by more than three margins."""
    kept = json.loads((Path(__file__).parent / "recorded_curves.json").read_text())
    margin, designs = 0.06, ["q,k,v", "q=k,v"]
    later = kept["after_500_steps"]
    assert all(later["q=k,v"][seed] - score > 3 * margin for seed, score in later["q,k,v"].items())
    facts = {"metric": "bits per byte", "chance": kept["chance"], "best": 0.0, "length": 64, "margin": margin}
    study = Study("short", "", designs, {"text": facts}, 6, [])
    cells = pd.DataFrame(
        {
            "task": "text",
            "design": cell["design"],
            "seed": cell["seed"],
            "status": "finished",
            "metrics": {"test": cell["test"]},
            "curve": {"step": cell["step"], "validation": cell["validation"]},
        }
        for cell in kept["cells"]
    )
    result = Result(study, cells, tmp_path)
    (comparison,) = result.comparisons
    assert comparison.within_margin  # the statistics alone would call them equal
    assert conclude(result, comparison) == "undertrained"


def test_slow_curves_count_against_the_margin_and_not_the_noise_of_seeds(tmp_path):
    noisy = {"q,k,v": near(0.7, spread=0.15), "q=k,v": near(0.72, spread=0.15)}
    result = keep(tmp_path / "noisy", noisy, rising=True, evaluations=20)  # rises by 0.35 over the second half
    assert ("cycle", "q,k,v") in result.improving
    declared = TaskChoice("cycle", {}, CONFIG, margin=0.5)
    assert not keep(tmp_path / "declared", noisy, tasks=(declared,), rising=True).improving


def test_too_few_seeds_never_sound_like_no_difference(tmp_path):
    result = keep(tmp_path, {"q,k,v": [0.8, 1.0], "q=k,v": [0.4, 0.2]})
    answer, _, about = result.answer()
    assert "cannot tell" in answer
    assert "takes 6 seeds" in answer
    assert about == "q=k,v: cannot tell on cycle (0.300 against 0.900)."
    assert "Run again with --seeds 6" in printed(result, 200)


def test_noise_never_sounds_like_no_difference(tmp_path):
    noisy = [0.9, 0.4, 0.8, 0.2, 0.95, 0.5]
    result = keep(tmp_path, {"q,k,v": near(0.7), "q=k,v": noisy})
    assert found(result) == {("cycle", "q=k,v"): "cannot tell"}
    assert "On cycle the differences are not clear enough" in result.answer()[0]


def test_worse_by_less_than_the_margin_is_no_difference(tmp_path):
    task = TaskChoice("cycle", {}, CONFIG, margin=0.1)
    result = keep(tmp_path, {"q,k,v": near(0.9), "q=k,v": near(0.88)}, tasks=(task,))
    answer, _, about = result.answer()
    assert "did not need different weights on the task" in answer
    assert about == "q=k,v: worse, but by less than the margin, on cycle (0.880 against 0.900)."
    assert found(result) == {("cycle", "q=k,v"): "no different"}


# The question that was asked


def test_a_worse_shared_matrix_its_remedy_and_its_saving_are_said(remedied):
    question, answer, saving, *about = remedied.answer()
    assert question == "Do they?"
    assert answer.startswith("Queries and keys needed different weights on all 2 tasks (cycle and swap): ")
    assert "q=k,v is worse there." in answer
    assert answer.endswith("with q=k,v+core=full nothing is lost beyond the margin.")
    assert "keeps 1.00× the cache, has 0.75× the parameters" in saving
    assert about[0] == (
        "q=k,v: worse on cycle (0.300 against 0.900) and swap (0.300 against 0.900). "
        "Over these tasks, a run of it beats one of q,k,v with probability 0.00."
    )
    assert about[1].startswith("q=k,v+core=full: no difference beyond the margin on cycle (0.900 against 0.900) and")


def test_where_keys_and_values_were_asked_for_these_are_answered(tmp_path):
    result = keep(tmp_path, {"q,k,v": near(0.9), "q,k=v": near(0.9)[::-1]})
    answer, saving, _ = result.answer()
    assert answer.startswith("Keys and values did not need different weights on the task: ")
    assert "q,k=v keeps 0.50× the cache" in saving


def test_a_remedy_for_some_of_the_tasks_is_said_for_those(tmp_path):
    scores = {"q,k,v": near(0.9), "q=k,v": near(0.3), ("swap", "q=k,v+selfmask"): near(0.9)[::-1]}
    scores |= {("cycle", "q=k,v+selfmask"): near(0.3), "q=k=v": near(0.3)}
    answer = keep(tmp_path, scores, tasks=("cycle", "swap")).answer()[0]
    assert answer.endswith("with q=k,v+selfmask nothing is lost beyond the margin on swap.")


def test_a_mixture_says_each_part(tmp_path):
    scores = {"q,k,v": near(0.9), ("cycle", "q=k,v"): near(0.3), ("swap", "q=k,v"): near(0.9)[::-1]}
    scores |= {("shift", "q=k,v"): [0.9, 0.4, 0.8, 0.2, 0.95, 0.5]}
    answer = keep(tmp_path, scores, tasks=("cycle", "swap", "shift")).answer()[0]
    assert "on 1 of 3 tasks (cycle)" in answer
    assert "On swap, q=k,v is not worse by more than the margin. On shift the differences are not clear" in answer
    assert "remedy" not in answer


def test_no_harm_is_said_only_when_shown(tmp_path):
    answer = keep(tmp_path, {"q,k,v": near(0.9), "q=k,v": near(0.9)[::-1]}, tasks=("cycle", "swap")).answer()[0]
    assert answer.startswith("Queries and keys did not need different weights on any of the 2 tasks: ")


@pytest.mark.parametrize(
    "designs", [("q=k,v", "q,k,v"), ("q=k,v", "q=k=v"), ("q,k,v", "q=k,v+cosine"), ("q,k,v", "q=k=x,v")]
)
def test_other_comparisons_do_not_claim_to_answer_for_shared_roles(tmp_path, designs):
    result = keep(tmp_path, {designs[0]: near(0.9), designs[1]: near(0.3)})
    assert result.answer() == [f"{designs[1]}: worse on cycle (0.300 against 0.900)."]


def test_lower_is_better_in_bits(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("".join(random.Random(0).choices(string.ascii_letters, k=9999)))
    task = TaskChoice("text", {"paths": [str(text)], "length": 16}, CONFIG)
    result = keep(tmp_path / "run", {"q,k,v": near(2.8), "q=k,v": near(2.9), "q,k=v": near(2.7)}, tasks=(task,))
    assert result.answer()[2] == "q=k,v: worse on text (2.900 against 2.800 bits per byte)."
    assert result.answer()[3] == "q,k=v: better on text (2.700 against 2.800 bits per byte)."
    assert "bits per byte, lower is better" in printed(result)


# Words


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
    assert words in in_words(Design.parse(design), SAY)


def test_both_languages_fill_in_the_same_places():
    for room in ("study", "inspection"):
        catalogue = tomllib.loads(files(f"querykey.{room}").joinpath("words.toml").read_text("utf-8"))
        for key, said in catalogue.items():
            assert said.keys() == {"en", "zh"}, key
            places = [{name for _, name, *_ in string.Formatter().parse(text) if name} for text in said.values()]
            assert places[0] == places[1], key


def test_the_answer_in_chinese(remedied):
    _, answer, *_ = remedied.answer("zh")
    assert "查询和键在全部 2 个任务（cycle 和 swap）上需要不同的权重" in answer
    text = printed(remedied.terminal("zh"))
    assert "更差" in text
    assert not re.search(r"\b(worse|task|design|mean)\b", text)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_language_is_refused():
    with pytest.raises(ValueError, match="the language is 'fr', expected one of en, zh"):
        Words("study", "fr")


def test_the_questions_of_shipped_plans_are_asked_in_chinese(tmp_path):
    for name in ("why", "claims"):
        question = load_plan(name).question
        result = keep(tmp_path / name, {"q,k,v": near(0.9), "q=k,v": near(0.3)}, question=question)
        assert result.answer()[0] == question
        assert re.search(r"[\u4e00-\u9fff]", result.answer("zh")[0])
        assert f"<h1>{result.answer('zh')[0]}</h1>" in result.html("zh")
