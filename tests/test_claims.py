"""Claims of a plan: what the comparisons say of them, and that nothing is said of what was not run."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from querykey.design import Design
from querykey.report.words import Words
from querykey.stats.bootstrap import changed_findings
from querykey.stats.comparison import Arms, Rule, Verdict
from querykey.stats.verdict import compare_family
from querykey.study import notes, tables
from querykey.study.claims import Claim, Prediction, finding, judge
from querykey.study.compare import adjust, describe, facts_of
from querykey.study.conclusions import judgements
from querykey.study.config import PlanError
from querykey.study.plan import from_mapping, load_plan
from querykey.study.report import read
from querykey.study.training import Outcome
from studied import new_records, printed

TABLE = {
    "designs": ["q,k,v", "q=k,v"],
    "seeds": 8,
    "model": {"layers": 1, "dim": 12, "heads": 1, "mlp": 0, "steps": 2, "batch": 2, "evaluations": 1},
    "tasks": {"cycle": {}, "swap": {}, "cycles": {"task": "relation", "kind": "3-cycles"}},
    "claims": {"C": {"says": "It loses.", "predicts": [{"design": "q=k,v", "on": ["cycle", "swap"]}]}},
}


def keep(folder, plan, score):
    """Records of a plan with score(task, design, seed), None for a cell that has not been trained."""
    made = plan.make_tasks()
    cells = plan.cells(made)
    with new_records(folder) as records:
        records.keep_study(describe(plan, facts_of(plan, made, folder), cells))
        for cell in cells:
            found = score(cell.task.name, str(cell.design), cell.seed)
            if found is not None:
                metrics = {"test": found, "validation": found, "argmax": found}
                records.add(cell, Outcome("finished", metrics, {"step": [2], "loss": [1.0], "validation": [found]}))
    return read(folder)


def noise(seed):
    return 0.01 * (seed * 5 % 8 - 3.5) / 3.5


def gap(size, of=0.9):
    """The baseline at `of`, the other design `size` below it, and noise that the two do not share."""
    return lambda task, design, seed: of + noise(seed) if design == "q,k,v" else of - size + noise(7 - seed)


# In words


WORSE, BETTER, SAME, OPEN = (
    Verdict.BASELINE_BETTER,
    Verdict.DESIGN_BETTER,
    Verdict.EQUIVALENT,
    Verdict.UNDECIDED,
)


def compared(task, verdict, found=None, n=8):
    better = {Verdict.BASELINE_BETTER: "q,k,v", Verdict.DESIGN_BETTER: "q=k,v"}.get(verdict)
    usual = {WORSE: "worse", BETTER: "better", SAME: "no different"}
    return SimpleNamespace(
        task=task,
        design="q=k,v",
        verdict=verdict,
        better=better,
        finding=found or usual.get(verdict, "cannot tell"),
        difference=SimpleNamespace(n=n),
    )


def verdict(findings, expected="worse", changed=0.0, **options):
    claim = Claim("C", "It loses.", (Prediction("q=k,v", expected, ("a", "b")),))
    return judge([claim], findings, {(one.task, "q=k,v"): changed for one in findings}, **options)[0].verdict


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (WORSE, WORSE, "holds"),
        (WORSE, SAME, "holds only on a; does not hold on b"),
        (BETTER, SAME, "does not hold"),
        (WORSE, OPEN, "holds on a; cannot tell on b"),
        (OPEN, SAME, "does not hold on b; cannot tell on a"),
        (OPEN, OPEN, "cannot tell"),
        (None, None, "not tested"),
        (None, WORSE, "holds on b; not tested on a"),
        (OPEN, None, "cannot tell"),
    ],
)
def test_a_claim_says_no_more_than_its_comparisons(first, second, said):
    findings = [compared(task, found) for task, found in (("a", first), ("b", second)) if found is not None]
    assert verdict(findings) == said


@pytest.mark.usefixtures("unchecked")
def test_not_worse_is_met_by_what_is_better_or_no_different_or_worse_within_the_margin():
    assert verdict([compared("a", SAME), compared("b", BETTER)], "not worse") == "holds"
    assert verdict([compared("a", WORSE), compared("b", WORSE)], "not worse") == "does not hold"
    within = compared("a", WORSE, "no different")
    assert verdict([within, compared("b", WORSE)], "not worse").startswith("holds only on a")


@pytest.mark.usefixtures("unchecked")
def test_worse_by_an_amount_that_is_open_says_nothing_of_the_margin_and_better_is_never_worse():
    assert verdict([compared("a", WORSE, "cannot tell"), compared("b", WORSE)]) == "holds on b; cannot tell on a"
    assert verdict([compared("a", BETTER, "cannot tell"), compared("b", SAME)], "not worse") == "holds"


@pytest.mark.usefixtures("unchecked")
def test_what_other_seeds_might_change_is_not_said():
    findings = [compared("a", WORSE), compared("b", WORSE)]
    assert verdict(findings, changed=0.05) == "holds"
    assert verdict(findings, changed=0.06) == "cannot tell"


@pytest.mark.usefixtures("unchecked")
def test_nothing_is_said_where_training_was_too_short():
    findings = [compared("a", SAME), compared("b", WORSE)]
    said = verdict(findings, "not worse", undertrained=lambda c: c.task == "a")
    assert said == "does not hold on b; cannot tell on a"


@pytest.mark.usefixtures("unchecked")
def test_a_comparison_without_a_pair_is_not_tested():
    assert verdict([compared("a", Verdict.TOO_FEW, n=0), compared("b", WORSE)]) == "holds on b; not tested on a"


# The bootstrap of a verdict


def arms(baseline, design):
    return Arms(dict(enumerate(map(float, baseline))), dict(enumerate(map(float, design))), True, 0.05)


def test_a_clear_gap_is_never_turned_and_a_doubtful_one_often():
    rng = np.random.default_rng(7)
    base = 0.9 + 0.01 * rng.standard_normal(8)
    family = {
        ("clear", "q=k,v"): arms(base, base - 0.4 + 0.01 * rng.standard_normal(8)),
        ("equal", "q=k,v"): arms(base, base + 0.001 * rng.standard_normal(8)),
        ("doubtful", "q=k,v"): arms(base, base - [0.06, 0.16, 0.08, 0.14, 0.055, 0.12, 0.1, 0.15]),
    }
    found = compare_family(family, "q,k,v", rng, rule=Rule())
    turned = changed_findings(family, found, Rule(), finding, resamples=200)
    assert turned["clear", "q=k,v"] == turned["equal", "q=k,v"] == 0
    assert 0.05 < turned["doubtful", "q=k,v"] < 0.95
    assert turned == changed_findings(
        family, found, Rule(), finding, resamples=200
    )  # the same records, the same numbers


@pytest.mark.usefixtures("unchecked")
def test_the_chance_agrees_with_fresh_seeds():
    """Against many studies with seeds that are truly fresh: the estimate is within a factor that eight seeds allow."""
    rng = np.random.default_rng(3)

    def study():
        base = 0.9 + 0.01 * rng.standard_normal(8)
        return {("a", "q=k,v"): arms(base, base - 0.03 + 0.02 * rng.standard_normal(8))}

    def found(family):
        return compare_family(family, "q,k,v", rng, rule=Rule())

    findings = [finding(found(study())[0]) for _ in range(300)]
    estimates, truths = [], []
    for _ in range(30):
        family = study()
        mine = found(family)
        estimates.append(changed_findings(family, mine, Rule(), finding, resamples=60)["a", "q=k,v"])
        truths.append(np.mean([other != finding(mine[0]) for other in findings]))
    assert np.mean(truths) == pytest.approx(np.mean(estimates), abs=0.15)


def test_each_task_draws_from_its_own_seeds():
    rng = np.random.default_rng(7)
    family = {
        (task, "q=k,v"): arms(0.9 + 0.01 * rng.standard_normal(n), 0.5 + 0.01 * rng.standard_normal(n))
        for task, n in (("few", 6), ("many", 12))
    }
    found = compare_family(family, "q,k,v", rng, rule=Rule())
    assert changed_findings(family, found, Rule(), finding, resamples=50) == dict.fromkeys(family, 0.0)


def test_seeds_that_one_arm_lacks_are_left_out():
    family = {("a", "q=k,v"): Arms({0: 0.9, 1: 0.8, 2: 0.9}, {0: 0.3, 2: 0.4}, True, 0.01)}
    found = compare_family(family, "q,k,v", np.random.default_rng(0), rule=Rule())
    assert changed_findings(family, found, Rule(), finding, resamples=5) == {
        ("a", "q=k,v"): 0.0
    }  # too few seeds, whatever they are
    assert changed_findings({("a", "q=k,v"): Arms({}, {}, True, 0.01)}, found, Rule(), finding, resamples=5) == {}


# From a plan to a report


def test_claims_of_a_plan_are_judged_by_its_records(tmp_path):
    result = keep(tmp_path, from_mapping(TABLE, "mine"), gap(0.4))
    (judgement,) = judgements(result)
    assert judgement.verdict == "holds"
    assert judgement.kind == "holds"
    table = tables.claim_table(result, judgement, Words("study"))
    assert [row[3].style for row in table.rows] == ["good", "good"]
    assert (table.rows[0][4].text, table.rows[0][5]) == ("−0.400", "< 0.2 %")
    assert table.rows[0][4].detail.startswith("[−0.4")
    assert "C It loses." in printed(result)
    page = result.html()
    assert "It loses." in page
    assert "−0.400" in page
    assert '"verdict": "holds"' in result.json()


def test_tasks_that_were_left_out_leave_a_claim_untested(tmp_path):
    plan = adjust(from_mapping(TABLE, "mine"), tasks=["cycle"])
    assert judgements(keep(tmp_path / "some", plan, gap(0.4)))[0].verdict == "holds on cycle; not tested on swap"
    plan = adjust(from_mapping(TABLE, "mine"), tasks=["cycles"])
    assert judgements(keep(tmp_path / "none", plan, gap(0.4)))[0].verdict == "not tested"
    unfinished = keep(tmp_path / "not yet", from_mapping(TABLE, "mine"), lambda *_: None)
    assert judgements(unfinished)[0].verdict == "not tested"


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("claim", "sentence"),
    [
        ({"says": "x", "predicts": [{"design": "q=k=v", "on": ["cycle"]}]}, "design of claim C must be one of q=k,v"),
        ({"says": "x", "predicts": [{"design": "q=k,v", "on": ["cycel"]}]}, "task of claim C must be one of cycle, sw"),
        ({"says": "x", "predicts": [{"design": "q=k,v", "on": []}]}, "on must be at least one task, not none"),
        ({"says": "x", "predicts": [{"design": "q=k,v"}]}, "a table lacks the key 'on'"),
        (
            {"says": "x", "predicts": [{"design": "q=k,v", "on": ["swap"], "expected": "bad"}]},
            "must be worse or not worse, not 'bad'",
        ),
        ({"predicts": []}, "says of claim C must be given"),
    ],
)
def test_a_claim_that_cannot_be_judged_is_refused(claim, sentence):
    with pytest.raises(PlanError, match=sentence):
        from_mapping({**TABLE, "claims": {"C": claim}}, "mine")


def test_the_plan_of_the_claims_has_all_of_the_article():
    plan = load_plan("claims")
    assert [claim.name for claim in plan.claims] == ["C0", "C1", "C2", "C3", "C4", "C5", "C6"]
    assert [Claim.read(claim.name, claim.plain) for claim in plan.claims] == [*plan.claims]
    declared = {(choice.name, str(design)) for choice in plan.tasks for design in plan.designs_of(choice)}
    for claim in plan.claims:
        for one in claim.predictions:
            assert {(task, one.design) for task in one.tasks} <= declared  # nothing is predicted that is not run


# What stands beside scores


def test_a_fixed_relation_has_its_ceiling_beside_what_was_reached(tmp_path):
    result = keep(tmp_path, from_mapping(TABLE, "mine"), gap(0.4))
    rows = tables.choice_rows(result, "cycles")
    assert [(row.design, str(row.ceiling.fraction)) for row in rows] == [("q,k,v", "1"), ("q=k,v", "2/3")]
    assert rows[1].right[0] == "0.500"
    assert tables.choice_rows(result, "cycle") == []
    assert "cycles: share of positions whose highest attention weight" in printed(result)
    assert "<td>2/3</td>" in result.html()


def test_learning_rates_that_differ_are_told(tmp_path):
    plan = from_mapping(TABLE, "mine")
    made = plan.make_tasks()
    cells = plan.cells(made)
    tied = Design.parse("q=k,v")
    slower = [
        dataclasses.replace(
            cell, task=dataclasses.replace(cell.task, config=dataclasses.replace(cell.task.config, lr=0.003))
        )
        if cell.design == tied and cell.task.name == "swap"
        else cell
        for cell in cells
    ]
    with new_records(tmp_path) as records:
        records.keep_study(describe(plan, facts_of(plan, made, tmp_path), slower))
        for cell in slower:
            records.add(cell, Outcome("finished", {"test": 0.5, "validation": 0.5}, {}))
    said = "On swap the learning rates chosen on validation are: q,k,v 0.01, q=k,v 0.003."
    assert said in notes.notes(read(tmp_path), Words("study"))


CONTRASTS = {
    "designs": ["q,k,v", "q=k,v", "q,k=v"],
    "seeds": 8,
    "model": TABLE["model"],
    "tasks": {"cycle": {}, "swap": {}},
    "claims": {
        "against": {"says": "Tying costs more than K = V.", "predicts": [
            {"design": "q=k,v", "against": "q,k=v", "on": ["cycle", "swap"]}]},
        "times": {"says": "Three times as much on cycle as on swap.", "predicts": [
            {"design": "q=k,v", "on": ["cycle"], "than": "swap", "times": 3}]},
        "four": {"says": "Four times as much.", "predicts": [
            {"design": "q=k,v", "on": ["cycle"], "than": "swap", "times": 4, "expected": "not worse"}]},
    },
}  # fmt: skip


def test_predictions_may_compare_other_designs_and_tasks(tmp_path):
    lost = {("cycle", "q=k,v"): 0.35, ("cycle", "q,k=v"): 0.1, ("swap", "q=k,v"): 0.1, ("swap", "q,k=v"): 0.1}

    def score(task, design, seed):
        return 0.9 + noise(seed) / 5 - lost.get((task, design), 0) + noise((3 * seed + len(design)) % 8) / 50

    result = keep(tmp_path, from_mapping(CONTRASTS, "mine"), score)
    by_name = {one.claim.name: one for one in judgements(result)}
    assert by_name["against"].verdict == "holds only on cycle; does not hold on swap"
    assert by_name["times"].verdict == by_name["four"].verdict == "holds"
    (times,) = by_name["times"].found
    assert (times.task, times.design) == ("cycle − 3 × swap", "q=k,v")
    assert times.comparison.difference.mean == pytest.approx(-0.35 + 0.3, abs=0.01)
    (first, _) = by_name["against"].found
    assert first.comparison.difference.mean == pytest.approx(-0.25, abs=0.01)
    assert [Claim.read(one["name"], one) for one in result.study.claims] == result.claims
    assert "cycle − 3 × swap" in printed(result)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"than": "cycles"}, "task of claim times must be one of cycle, swap, not cycles"),
        ({"against": "q=k=v"}, "against of claim times must be one of q,k,v, q=k,v, q,k=v, not q=k=v"),
        ({"times": 0}, "times must be a positive number, not 0.0"),
        ({"then": "swap"}, "keys of a prediction of claim times must be among design, .*, not then"),
    ],
)
def test_contrasts_that_cannot_be_are_refused(change, sentence):
    (table,) = CONTRASTS["claims"]["times"]["predicts"]
    claims = {"times": {"says": "It loses.", "predicts": [table | change]}}
    with pytest.raises(PlanError, match=sentence):
        from_mapping(CONTRASTS | {"claims": claims}, "bad")
