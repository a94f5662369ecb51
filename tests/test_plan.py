"""Plans: what ships, what is refused, and what makes a cell the same cell."""

import dataclasses

import pytest

from querykey.study.compare import adjust
from querykey.study.config import PlanError
from querykey.study.plan import Plan, from_mapping, load_plan

SMALL = {"designs": ["q,k,v", "q=k,v"], "tasks": {"cycle": {"length": 6, "steps": 5}}}


def test_the_plan_that_ships_asks_the_question():
    plan = load_plan("why")
    assert plan.question == "Do queries and keys need different weights?"
    assert [*map(str, plan.designs)] == ["q,k,v", "q=k,v", "q=k,v+selfmask", "q=k,v+core=full", "q,k=v"]
    assert [task.name for task in plan.tasks] == ["cycle", "shift", "induction", "text"]
    assert len(plan.cells(plan.make_tasks())) == (3 * 5 + 3) * 6


def test_files_in_toml_and_python_give_plans(tmp_path):
    toml = tmp_path / "mine.toml"
    toml.write_text(
        'designs = ["q,k,v", "q=k,v"]\nseeds = 7\n[model]\ndim = 24\n[tasks.swap]\nlength = 8\nlr = 0.001\n'
    )
    plan = load_plan(toml)
    assert (plan.name, plan.seeds, plan.tasks[0].options) == ("mine", 7, {"length": 8})
    assert (plan.tasks[0].config.dim, plan.tasks[0].config.lr) == (24, 0.001)
    python = tmp_path / "same.py"
    python.write_text(f"from querykey.study.plan import load_plan\ndef plan():\n    return load_plan({str(toml)!r})\n")
    assert load_plan(python) == plan
    assert load_plan(tmp_path / "same") == plan  # the suffix may be left out


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"designz": []}, "unknown key 'designz' .did you mean 'designs'"),
        ({"designs": []}, "designs must be at least one"),
        ({"designs": ["q,k,v", "v,k,q"]}, "each named once, not q,k,v more than once"),
        ({"designs": ["q=k"]}, "v is named 0 times"),
        ({"seeds": 0}, "seeds must be at least 1, not 0"),
        ({"tasks": {"cycel": {}}}, r"unknown task 'cycel' .did you mean 'cycle'"),
        ({"tasks": {"cycle": {"step": 5}}}, r"\[tasks.cycle\]: unknown key 'step' .did you mean 'steps'"),
        ({"tasks": {"cycle": {"steps": 0}}}, "steps must be at least 1"),
        ({"tasks": {"cycle": {"steps": "many"}}}, "wrong type"),
        ({"tasks": {"cycle": {"lr": 0}}}, "lr must be above 0"),
        ({"tasks": {"cycle": {"positions": "sideways"}}}, "positions must be one of none, learned, rotary"),
        ({"tasks": {"cycle": {"margin": -1}}}, "margin of cycle must be a positive number"),
        ({"model": {"length": 5}}, r"\[model\]: unknown key 'length'"),
    ],
)
def test_plans_that_cannot_be_are_refused_with_a_sentence(change, sentence):
    with pytest.raises(PlanError, match=sentence):
        from_mapping(SMALL | change, "bad")


def test_files_that_are_no_plans(tmp_path):
    with pytest.raises(
        PlanError, match=r"there is no plan 'wy' .did you mean 'why'.*; the plans that ship with querykey are .*why"
    ):
        load_plan("wy")
    for name, text, sentence in [
        ("a.toml", "designs = [", "is not TOML"),
        ("b.py", "raise RuntimeError('broken')", "raised RuntimeError: broken"),
        ("c.py", "x = 1", r"must define a function plan\(\)"),
    ]:
        path = tmp_path / name
        path.write_text(text)
        with pytest.raises(PlanError, match=sentence):
            load_plan(path)


def test_a_design_that_cannot_be_at_a_tasks_sizes_is_refused_before_anything_trains():
    plan = from_mapping(SMALL | {"designs": ["q,k,v", "q=k,v+kv_heads=2"]}, "bad")
    with pytest.raises(ValueError, match="needs core=full"):
        plan.cells(plan.make_tasks())


def test_the_key_is_of_all_that_decides_and_of_nothing_else(tmp_path):
    plan = from_mapping(SMALL, "one")
    (cell, *_), again = plan.cells(plan.make_tasks()), from_mapping(SMALL, "another name")
    assert again.cells(again.make_tasks())[0].key == cell.key
    keys = {cell.key}
    for change in ({"steps": 6}, {"dim": 32}, {"lr": 0.02}, {"dropout": 0.5}):
        other = adjust(plan, **change)
        keys.add(other.cells(other.make_tasks())[0].key)
    keys |= {dataclasses.replace(cell, seed=1).key, dataclasses.replace(cell, device="cuda:0").key}
    assert len(keys) == 7
    assert dataclasses.replace(cell, device="cuda:0").key == dataclasses.replace(cell, device="cuda:1").key


def test_a_text_goes_by_its_content_and_not_by_its_place(tmp_path):
    keys = []
    for folder, content in (
        ("a", b"to be or not to be " * 200),
        ("b", b"to be or not to be " * 200),
        ("c", b"no " * 999),
    ):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "text").write_bytes(content)
        plan = adjust(load_plan("why"), tasks=["text"], text=[tmp_path / folder / "text"])
        keys.append(plan.cells(plan.make_tasks())[0].key)
    assert keys[0] == keys[1] != keys[2]


@pytest.mark.usefixtures("unchecked")
def test_adjusting_a_plan():
    plan = adjust(load_plan("why"), tasks=["swap", "cycle"], designs=["k,q,v"], seeds=3, steps=7)
    assert isinstance(plan, Plan)
    assert [task.name for task in plan.tasks] == ["swap", "cycle"]
    assert [task.config.steps for task in plan.tasks] == [7, 7]
    assert [task.config.dim for task in plan.tasks] == [64, 32]  # a task of the plan keeps its other settings
    with pytest.raises(PlanError, match="no task reads text: swap"):
        adjust(load_plan("why"), tasks=["swap"], text=["here"])
    with pytest.raises(PlanError, match="each task can be named once"):
        adjust(load_plan("why"), tasks=["swap", "swap"])
    with pytest.raises(ValueError, match="shift: positions must be one of rotary, learned; got 'none'"):
        adjust(load_plan("why"), tasks=["shift"], positions="none").make_tasks()
    with pytest.raises(PlanError, match=r"unknown option 'step' .did you mean 'steps'"):
        adjust(load_plan("why"), step=3)
    with pytest.raises(PlanError, match="unknown option 'depth'; known are tasks, designs"):
        adjust(load_plan("why"), depth=3)


def test_a_task_may_be_there_twice_with_designs_of_its_own():
    plan = from_mapping(
        {
            "designs": ["q,k,v", "q=k,v", "q,k=v"],
            "seeds": 2,
            "tasks": {
                "small": {"task": "cycle", "length": 6, "steps": 5, "designs": ["q=k,v"]},
                "large": {"task": "cycle", "length": 9, "steps": 5},
            },
        },
        "twice",
    )
    tasks = plan.make_tasks()
    assert {name: task.length for name, task in tasks.items()} == {"small": 6, "large": 9}
    cells = [cell for cell in plan.cells(tasks) if cell.seed == 0]
    assert [(cell.task.name, str(cell.design)) for cell in cells] == [
        ("small", "q,k,v"), ("small", "q=k,v"), ("large", "q,k,v"), ("large", "q=k,v"), ("large", "q,k=v")
    ]  # fmt: skip
    assert {cell.plain["task"] for cell in cells} == {"cycle"}  # the same cell, whatever a plan calls it


def test_a_task_may_have_seeds_of_its_own():
    tables = {"cycle": {"steps": 5, "seeds": 2}, "swap": {"steps": 5}}
    plan = from_mapping({"designs": ["q,k,v", "q=k,v"], "seeds": 3, "tasks": tables}, "seeded")
    cells = plan.cells(plan.make_tasks())
    assert [(cell.task.name, cell.seed) for cell in cells if str(cell.design) == "q=k,v"] == [
        ("cycle", 0), ("swap", 0), ("cycle", 1), ("swap", 1), ("swap", 2)
    ]  # fmt: skip
    asked = adjust(plan, seeds=4)
    assert {cell.seed for cell in asked.cells(asked.make_tasks()) if cell.task.name == "cycle"} == {0, 1, 2, 3}
    with pytest.raises(PlanError, match="seeds of cycle must be at least 1, not 0"):
        from_mapping({"designs": ["q,k,v"], "tasks": {"cycle": {"seeds": 0}}}, "none")


@pytest.mark.usefixtures("unchecked")
def test_what_a_task_cannot_have_is_refused():
    table = {"task": "cycle", "designs": ["q=k=v"]}
    with pytest.raises(PlanError, match="designs of small must be among the plan's, not q=k=v"):
        from_mapping({**SMALL, "tasks": {"small": table}}, "bad")
    impossible = from_mapping({**SMALL, "tasks": {"cycle": {"margin": 1.5}}}, "bad")
    with pytest.raises(PlanError, match=r"margin of cycle must be below 1, since accuracies are, not 1\.5"):
        impossible.make_tasks()
