"""Claims that a plan states before it runs, and what its comparisons say of each.

A claim predicts, of some designs on some tasks, that they are worse than the baseline, or that they are not. What is
said of a prediction rests on the verdict of the comparison, and on the chance that a fresh set of seeds would turn
it: above 5 % nothing is said. What was not run is not tested.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from querykey.design import Design
from querykey.stats.verdict import Arms, Comparison, Key, Rule, Verdict, compare_family
from querykey.study.config import check

Expected = Literal["worse", "not worse"]
Finding = Literal["worse", "not worse", "cannot tell", "not tested"]

RESAMPLES = 500
MOST_REVERSAL = 0.05  # above this chance that other seeds would give another verdict, nothing is said


@dataclass(frozen=True)
class Prediction:
    """A design is `expected` to be worse than the baseline, or not, on each of these tasks."""

    design: str
    expected: Expected
    tasks: tuple[str, ...]

    def __post_init__(self) -> None:
        check("expected", self.expected in get_args(Expected), "worse or not worse", repr(self.expected))
        check("on", len(self.tasks) >= 1, "at least one task", "none")


@dataclass(frozen=True)
class Claim:
    """A claim in a sentence, by a short name, and what it predicts."""

    name: str
    says: str
    predictions: tuple[Prediction, ...]

    @classmethod
    def read(cls, name: str, table: Mapping[str, Any]) -> Claim:
        """A claim from plain values: ``says``, and ``predicts``, a list of ``design``, ``expected`` and ``on``.

        Raises:
            PlanError: if one of them is missing or is not what it should be.
        """
        for needed in ("says", "predicts"):
            check(f"{needed} of claim {name}", bool(table.get(needed)), "given", "missing")
        tables = isinstance(table["predicts"], list) and all(isinstance(one, dict) for one in table["predicts"])
        check(f"predicts of claim {name}", tables, "a list of tables", repr(table["predicts"]))
        predictions = (
            Prediction(str(Design.parse(one["design"])), one.get("expected", "worse"), tuple(one["on"]))
            for one in table["predicts"]
        )
        return cls(name, table["says"], tuple(predictions))

    @property
    def plain(self) -> dict[str, Any]:
        """The same in plain values, as `read` takes them."""
        predicts = [{"design": one.design, "expected": one.expected, "on": [*one.tasks]} for one in self.predictions]
        return {"name": self.name, "says": self.says, "predicts": predicts}


class Found(NamedTuple):
    """What was found of one design on one task, against what was predicted.

    `reversal` is the chance that fresh seeds would find something else; NaN where nothing was tested.
    """

    task: str
    design: str
    expected: Expected
    finding: Finding
    reversal: float
    comparison: Comparison | None

    @property
    def met(self) -> bool:
        """Whether it is as predicted."""
        return self.finding == self.expected


@dataclass(frozen=True)
class Judgement:
    """A claim and all that was found of it."""

    claim: Claim
    found: tuple[Found, ...]

    @property
    def verdict(self) -> str:
        """`holds`, `holds only on …`, `does not hold`, `cannot tell` or `not tested`, with what each rests on."""
        met = [one for one in self.found if one.met]
        against = [one for one in self.found if one.finding in get_args(Expected) and not one.met]
        open_ = [one for one in self.found if one.finding == "cannot tell"]
        untested = [one for one in self.found if one.finding == "not tested"]
        if not met and not against:
            return "cannot tell" if open_ else "not tested"
        if met and against:
            said = f"holds only on {self._where(met)}; does not hold on {self._where(against)}"
        else:
            said = "holds" if met else "does not hold"
            said += f" on {self._where(met or against)}" if open_ or untested else ""
        said += f"; cannot tell on {self._where(open_)}" if open_ else ""
        return said + (f"; not tested on {self._where(untested)}" if untested else "")

    @property
    def kind(self) -> Literal["holds", "mixed", "fails", "open"]:
        """The verdict in one word: "mixed" where some predictions are met and others not, "open" where none is."""
        met = any(one.met for one in self.found)
        against = any(one.finding in get_args(Expected) and not one.met for one in self.found)
        if met and against:
            return "mixed"
        return "holds" if met else "fails" if against else "open"

    def _where(self, found: Iterable[Found]) -> str:
        """`cycle, shift`, or `cycle, shift with q=k,v and text with …` where the claim is about several designs."""
        by_design: dict[str, list[str]] = {}
        for one in found:
            by_design.setdefault(one.design, []).append(one.task)
        if len({one.design for one in self.found}) == 1:
            return ", ".join(*by_design.values())
        return " and ".join(f"{', '.join(tasks)} with {design}" for design, tasks in by_design.items())


def judge(
    claims: Iterable[Claim], comparisons: Iterable[Comparison], reversals: Mapping[Key, float]
) -> list[Judgement]:
    """What the comparisons of a study say of each claim."""
    known = {(c.task, c.design): c for c in comparisons}
    return [
        Judgement(
            claim,
            tuple(
                _find(task, one, known.get((task, one.design)), reversals)
                for one in claim.predictions
                for task in one.tasks
            ),
        )
        for claim in claims
    ]


def finding(c: Comparison) -> Finding:
    """Whether the design is worse than the baseline by more than the margin, as far as the comparison is decided."""
    if not c.decided:
        return "cannot tell"
    return "worse" if c.verdict is Verdict.BASELINE_BETTER and not c.within_margin else "not worse"


def reversals(
    family: Mapping[Key, Arms], comparisons: Iterable[Comparison], rule: Rule, resamples: int = RESAMPLES
) -> dict[Key, float]:
    """For each comparison, the chance that a fresh set of as many seeds gives another finding.

    Seeds are drawn with replacement, the same for all comparisons, as they are paired across all; each draw goes
    through the whole family's tests. So it counts the noise of seeds alone, and is itself an estimate from few.
    """
    rng = np.random.default_rng(0)
    given = {(c.task, c.design): finding(c) for c in comparisons}
    baseline = next((c.baseline for c in comparisons), "")
    seeds = sorted({seed for arms in family.values() for seed in arms.paired().design})
    if not seeds:
        return {}
    turned = dict.fromkeys(given, 0)
    for _ in range(resamples):
        drawn = rng.choice(seeds, len(seeds)).tolist()
        again = compare_family({key: _drawn(arms, drawn) for key, arms in family.items()}, baseline, rng, rule=rule)
        for c in again:
            turned[c.task, c.design] += finding(c) != given[c.task, c.design]
    return {key: count / resamples for key, count in turned.items()}


def _drawn(arms: Arms, drawn: Iterable[int]) -> Arms:
    """The arms with other seeds; those that one of them lacks are left out."""
    there = [seed for seed in drawn if seed in arms.baseline and seed in arms.design]
    baseline, design = (dict(enumerate(arm[seed] for seed in there)) for arm in (arms.baseline, arms.design))
    return arms._replace(baseline=baseline, design=design)


def _find(task: str, one: Prediction, c: Comparison | None, reversals: Mapping[Key, float]) -> Found:
    if c is None or not c.difference.n:
        return Found(task, one.design, one.expected, "not tested", float("nan"), None)
    reversal = float("nan") if c.verdict is Verdict.TOO_FEW else reversals.get((task, one.design), 1.0)
    found = finding(c) if reversal <= MOST_REVERSAL else "cannot tell"
    return Found(task, one.design, one.expected, found, reversal, c)
