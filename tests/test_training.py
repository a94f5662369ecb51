"""Cells: paired data and initial values, honest scores, and divergence that is recorded."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch

from querykey.study import training
from querykey.study.plan import from_mapping
from querykey.tasks import Examples, Text, make_task
from querykey.transformer import Transformer, initialisations


def cell(design="q,k,v", task="cycle", seed=0, options=None, **config):
    table = {"layers": 1, "dim": 12, "heads": 2, "steps": 9, "batch": 3, "evaluations": 3} | (options or {}) | config
    plan = from_mapping({"designs": [design], "tasks": {task: table}}, "one")
    return dataclasses.replace(plan.cells(plan.make_tasks())[0], seed=seed)


def test_designs_start_from_the_same_values_in_all_that_they_share():
    models = {
        design: dict(
            (name, parameter[rows].clone())
            for name, parameter, rows, _ in initialisations(training.build(cell(design, mlp=2.0), make_task("cycle")))
        )
        for design in ("q,k,v", "q=k,v", "q=k,v+core=full", "q,k=v", "q=k=v")
    }
    separate = models.pop("q,k,v")
    for design, tensors in models.items():
        assert len(tensors.keys() & separate.keys()) >= 6
        for name in tensors.keys() & separate.keys():
            assert torch.equal(tensors[name], separate[name]), (design, name)
    assert "blocks.0.k_proj" not in models["q=k,v"]
    assert torch.equal(models["q,k=v"]["blocks.0.k_proj"], separate["blocks.0.k_proj"])


def test_a_tied_start_is_that_of_shared_weights():
    models = {
        design: training.build(cell(design), make_task("cycle")).attentions[0].named_weights()
        for design in ("q,k,v", "q=k,v", "q,k,v+tiedstart")
    }
    started = models["q,k,v+tiedstart"]
    assert torch.equal(started["q_proj"], models["q=k,v"]["qk_proj"])
    assert torch.equal(started["k_proj"], models["q=k,v"]["qk_proj"])
    assert not torch.equal(models["q,k,v"]["k_proj"], started["k_proj"])


def test_other_seeds_give_other_values_and_no_two_parameters_are_alike():
    one, other = (training.build(cell(seed=seed), make_task("cycle")) for seed in (0, 1))
    pairs = zip(initialisations(one), initialisations(other), strict=True)
    drawn = [(a, b) for a, b in pairs if a.weight.init == "normal"]
    for (name, a, rows, weight), (_, b, _, _) in drawn:
        assert not torch.equal(a[rows], b[rows]), name
        assert abs(a[rows].std() / weight.scale - 1) < 0.4
    firsts = [a.parameter[a.rows].flatten()[0].item() for a, _ in drawn]
    assert len({round(first, 6) for first in firsts}) == len(firsts)


def test_designs_see_the_same_data_in_the_same_order(monkeypatch):
    seen = {}

    def spy(self, inputs, *rest):
        seen.setdefault(design, []).append(inputs.clone())
        return original(self, inputs, *rest)

    original = Transformer.forward
    monkeypatch.setattr(Transformer, "forward", spy)
    for design in ("q,k,v", "q=k,v+core=full"):
        training.train(cell(design))
    assert len(seen["q,k,v"]) > 9
    for a, b in zip(*seen.values(), strict=True):
        assert torch.equal(a, b)


def test_the_same_cell_gives_the_same_numbers_and_another_seed_others(tmp_path):
    one, same, other = (training.train(cell(seed=seed), tmp_path / "w.safetensors") for seed in (0, 0, 1))
    assert (one.status, one.metrics, one.curve) == (same.status, same.metrics, same.curve)
    assert one.metrics != other.metrics
    assert one.curve["step"] == [3, 6, 9]
    assert one.curve["validation"][-1] == one.metrics["validation"]


def test_kept_weights_give_the_model_that_was_scored(tmp_path):
    path = tmp_path / "deep" / "w.safetensors"
    mine = cell("q=k,v+core=full", "induction")
    outcome = training.train(mine, path)
    trained = training.load(path)
    model, example = trained.model, trained.example
    task = make_task("induction")
    test = task.sample(training.TEST, training.generator("induction", 0, "test"), "test")
    assert torch.equal(example, test.inputs[:1])
    assert make_task(trained.task, **trained.options) == task
    assert training.score(model, task, test, "test")[""] == outcome.metrics["test"]
    assert not list(path.parent.glob("*.partial"))


def test_three_sets_are_three():
    task = make_task("cycle")
    drawn = [task.sample(50, training.generator("cycle", 0, use)).inputs for use in ("train", "validation", "test")]
    flat = {tuple(example.flatten().tolist()) for part in drawn for example in part}
    assert len(flat) == 150


class Constant(torch.nn.Module):
    """Says class 1 with odds of 3 to 1 against class 0."""

    def forward(self, inputs):
        return torch.tensor([0.0, math.log(3.0)]).expand(*inputs.shape[:2], 2)


@pytest.mark.usefixtures("unchecked")  # the model and the task are stand-ins
def test_scores_by_hand():
    inputs = torch.zeros(2, 3, 1, dtype=torch.long)
    targets = torch.tensor([[1, 0, 0], [1, 1, 0]])
    counted = torch.tensor([[True, True, False], [True, True, False]])
    level = torch.tensor([[2, 2, 2], [2, 5, 5]])
    found = training.score(Constant(), make_task("cycle"), Examples(inputs, targets, counted, level), "test")
    assert found == {"": 0.75, "@2": pytest.approx(2 / 3), "@5": 1.0}
    bits = training.score(Constant(), TwoBytes(None), Examples(inputs, targets, counted), "test")
    assert bits[""] == pytest.approx((3 * math.log2(4 / 3) + math.log2(4)) / 4 / 2)


@dataclasses.dataclass(frozen=True)
class TwoBytes(Text):
    """Tokens that stand for two bytes each."""

    def __post_init__(self):
        pass

    def bytes_per_token(self, split):
        return {"test": 2.0}[split]


def test_the_learning_rate_rises_and_falls_in_straight_lines():
    config = cell(steps=100, warmup=0.1).task.config
    rates = [training.learning_rate(step, config) for step in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[55] == pytest.approx(0.5)
    assert rates[100] == 0.0


def test_a_loss_that_is_no_number_is_recorded_as_diverged():
    outcome = training.train(cell(lr=1e30))
    assert outcome.status == "diverged"
    assert outcome.metrics == {}


def test_a_text_that_has_changed_since_is_not_mixed_in(tmp_path):
    (tmp_path / "text").write_bytes(b"to be or not to be " * 200)
    mine = cell(task="text", options={"paths": [str(tmp_path / "text")], "length": 16})
    assert training.train(mine).status == "finished"
    training._make_task.cache_clear()
    (tmp_path / "text").write_bytes(b"that is the question " * 200)
    with pytest.raises(ValueError, match="the text has changed"):
        training.train(mine)


def test_bfloat16_changes_little():
    exact, other = (training.train(cell(task="induction", steps=30, bf16=bf16)) for bf16 in (False, True))
    assert other.status == "finished"
    assert other.metrics != exact.metrics
    assert other.metrics["test"] == pytest.approx(exact.metrics["test"], abs=0.02)
    assert len({cell(**chosen).key for chosen in ({}, {"bf16": True}, {"compile": True})}) == 3


COMPILED = """
from querykey.study.plan import from_mapping
from querykey.study.training import train

scores = []
for compiled in (False, True):
    table = {"layers": 1, "dim": 12, "heads": 2, "steps": 9, "batch": 3, "evaluations": 3, "compile": compiled}
    plan = from_mapping({"designs": ["q=k,v+selfmask"], "tasks": {"induction": table}}, "one")
    scores.append(train(plan.cells(plan.make_tasks())[0]).curve["loss"])
print(max(abs(one - other) for one, other in zip(*scores, strict=True)))
"""


@pytest.mark.slow
def test_a_compiled_step_trains_the_same_model():
    """In a fresh interpreter: the shape checks of the tests would break the graph."""
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    assert float(done.stdout) < 1e-4
