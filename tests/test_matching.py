"""Matching: equal parameters or FLOPs, counted on the real model."""

import dataclasses

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from querykey import Design
from querykey.study.config import Config, PlanError
from querykey.study.matching import TOLERANCE, cost, matched
from querykey.study.plan import from_mapping
from querykey.study.training import build
from querykey.tasks import make_task

BASELINE = Design.parse("q,k,v")
OTHERS = ["q=k,v", "q=k=v", "q=k,v+core=full", "q,k=v+kv_heads=2", "q,k,v+qk_dim=4"]


def blocks(model):
    """Parameters of attention and MLP of the real model: all matrices but embedding and unembedding."""
    inner = [
        parameter for name, parameter in model.named_parameters() if name.startswith("blocks") and "norm" not in name
    ]
    return sum(parameter.numel() for parameter in inner)


def flops(model, length):
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        x = torch.zeros(1, length, model.norm.weight.shape[0])
        for block in model.blocks:
            block.attention(x, return_weights=True)  # explicit, so that every product is counted
            if block.up is not None:
                block.down(block.up(x))
    return counter.get_total_flops()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("mlp", [0.0, 4.0])
@pytest.mark.parametrize("design", OTHERS)
@pytest.mark.parametrize("rule", ["parameters", "flops"])
def test_matched_models_cost_the_same(rule, design, mlp):
    config = Config(layers=2, dim=192, heads=4, mlp=mlp, positions="none")
    task = make_task("induction")
    sizes = {}
    for name in ("q,k,v", design):
        own = matched(config, Design.parse(name), BASELINE, rule, task.length)
        plan = from_mapping({"designs": [name], "tasks": {"induction": dataclasses.asdict(own)}}, "one")
        model = build(plan.cells({"induction": task})[0], task)
        sizes[name] = blocks(model) if rule == "parameters" else flops(model, task.length)
        assert sizes[name] == cost(own, Design.parse(name), rule, task.length)
    assert abs(sizes[design] / sizes["q,k,v"] - 1) <= TOLERANCE
    assert matched(config, Design.parse(design), BASELINE, "width", task.length) == config


def test_the_mlp_takes_what_sharing_saves_to_the_last_unit():
    config = Config(layers=1, dim=64, heads=4, mlp=4.0)
    own = matched(config, Design.parse("q=k,v"), BASELINE, "parameters", 10)
    assert own.hidden == 256 + 32  # 64 × 64 parameters saved, 2 × 64 for each hidden unit
    assert cost(own, Design.parse("q=k,v"), "parameters", 10) == cost(config, BASELINE, "parameters", 10)


def test_what_no_size_can_match_is_refused_with_the_nearest():
    config = Config(layers=1, dim=16, heads=4, head_dim=4, mlp=0)
    with pytest.raises(
        PlanError, match=r"cannot be matched to q,k,v in parameters within 2%: .* a head size of 5, 6\.2% off"
    ):
        matched(config, Design.parse("q=k,v"), BASELINE, "parameters", 10)


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_rule_is_refused():
    with pytest.raises(PlanError, match="match must be one of width, parameters, flops, cache, not 'depth'"):
        from_mapping({"designs": ["q,k,v"], "match": "depth", "tasks": {"cycle": {}}}, "bad").cells(
            {"cycle": make_task("cycle")}
        )


def test_a_plan_gives_each_design_its_own_size():
    plan = from_mapping({"designs": ["q,k,v", "q=k,v"], "match": "parameters", "tasks": {"cycle": {}}, "seeds": 2}, "m")
    cells = plan.cells(plan.make_tasks())
    assert [cell.task.config.hidden for cell in cells] == [256, 288, 256, 288]
    assert len({cell.key for cell in cells}) == 4


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("mlp", [0.0, 4.0])
def test_a_saved_cache_goes_into_the_head_size(mlp):
    """Counted on the caches of real models, after decoding."""
    config = Config(layers=2, dim=48, heads=4, mlp=mlp, positions="rotary")
    task = make_task("induction")
    kept, mlps = {}, set()
    for name in ("q,k,v", "q,k=v", "q,k,v+kv_heads=2", "q,k,v+kv_heads=1", "q,k,v+qk_dim=4", "q=k,v"):
        own = matched(config, Design.parse(name), BASELINE, "cache", task.length)
        plan = from_mapping({"designs": [name], "tasks": {"induction": dataclasses.asdict(own)}}, "one")
        model = build(plan.cells({"induction": task})[0], task)
        caches = model.caches()
        model(task.sample(1, torch.Generator().manual_seed(0)).inputs, caches=caches)
        kept[name] = sum(cache.nbytes for cache in caches) / task.length
        mlps.add(own.hidden)
        assert own.layout(Design.parse(name)).cache_bytes() * 2 == cost(own, Design.parse(name), "cache", 1)
    assert len(mlps) == 1
    assert kept["q,k,v"] == 2 * 2 * 48 * 4
    for name, size in kept.items():
        assert abs(size / kept["q,k,v"] - 1) <= TOLERANCE, name


def test_a_cache_that_no_head_size_meets_is_refused():
    config = Config(dim=64, heads=4, head_dim=2, positions="rotary")
    with pytest.raises(
        PlanError, match=r"q,k,v\+qk_dim=8 cannot be matched to q,k,v in cache within 2%: the nearest is"
    ):
        matched(config, Design.parse("q,k,v+qk_dim=8"), BASELINE, "cache", 10)
