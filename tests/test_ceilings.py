"""No trained head exceeds its ceiling, and the measure of it is right."""

from types import SimpleNamespace

import pytest
import torch

from querykey import Design
from querykey.study import ceilings
from querykey.study.ceilings import argmax_share, ceiling, kind_of_scores
from querykey.study.config import Config
from querykey.study.plan import from_mapping
from querykey.study.training import train
from querykey.tasks import Relation

ONE = {"layers": 1, "dim": 16, "heads": 1, "mlp": 0, "steps": 100, "batch": 16, "evaluations": 1}


@pytest.mark.parametrize(
    ("design", "kind"),
    [
        ("q,k,v", "general"), ("q,k=v", "general"), ("q=v,k", "general"), ("q=x,k,v", "general"),
        ("q=k,v", "psd"), ("q=k=v", "psd"), ("q=k=x,v", "psd"), ("q=k,v+qknorm", "psd"),
        ("q=k,v+core=signed", "symmetric"), ("q=k,v+core=symmetric", "symmetric"), ("q=k,v+core=full", "general"),
        ("q=k,v+cosine", "equal norms"), ("q=k=v+l2", "equal norms"),
    ],
)  # fmt: skip
def test_what_is_known_of_a_designs_scores(design, kind):
    assert kind_of_scores(Design.parse(design)) == kind


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", ["swap", "3-cycles"])
def test_no_trained_head_exceeds_its_ceiling(kind):
    designs = ["q,k,v", "q=k,v", "q=k,v+selfmask", "q=k,v+cosine"]
    plan = from_mapping({"designs": designs, "tasks": {"relation": ONE | {"kind": kind}}, "seeds": 1}, "ceilings")
    tasks = plan.make_tasks()
    reached = {}
    for cell in plan.cells(tasks):
        share = train(cell).metrics["argmax"]
        bound = ceiling(tasks["relation"], cell.design, cell.task.config).fraction
        assert share <= bound + 1e-9, (cell.design, share, bound)
        reached[str(cell.design)] = share
    assert reached["q,k,v"] > 0.9
    assert reached["q=k,v"] < 0.9


@pytest.mark.usefixtures("unchecked")
def test_the_share_by_hand(monkeypatch):
    weights = torch.tensor([[[[0.2, 0.5, 0.3], [0.6, 0.3, 0.1], [0.4, 0.35, 0.25]]]])
    monkeypatch.setattr(ceilings, "trace", lambda *_: SimpleNamespace(layers=[SimpleNamespace(weights=weights)]))

    task = Relation(kind="n-cycle", length=3)
    examples = task._examples(torch.tensor([[0, 1, 2]]), torch.tensor([[0, 0, 0]]))
    assert argmax_share(torch.nn.Identity(), examples.inputs, task.related_positions(examples.inputs)) == pytest.approx(
        2 / 3
    )  # 0 → 1, 1 → 0 (wrong), 2 → 0


def test_a_ceiling_is_of_one_head():
    assert ceiling(Relation(), Design.parse("q=k,v"), Config(layers=1, heads=2)) is None
    assert ceiling(Relation(), Design.parse("q=k,v"), Config(layers=2, heads=1)) is None
