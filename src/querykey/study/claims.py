"""Claims that a plan states before it runs, and what its comparisons say of each.

A claim predicts, of some designs on some tasks, that they are worse than the baseline by more than the margin, or that
they are not. A prediction may also compare with another design than the baseline (`against`), and its difference with
that on another task (`than`, `times`): does tying cost three times as much here as there?

What is said of a prediction rests on the verdict of the comparison, and on a bootstrap of it: where more than 5 % of
resamples of the seeds give another finding, nothing is said. What was not run is not tested.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from querykey.design import Design
from querykey.stats.comparison import Arms, Comparison, Key, Verdict
from querykey.study.config import check

Expected = Literal["worse", "not worse"]
Finding = Literal["worse", "not worse", "cannot tell", "not tested"]

MOST_CHANGED = 0.05  # share of resamples with another finding above which nothing is said


@dataclass(frozen=True)
class Prediction:
    """A design is `expected` to be worse, or not, on each of these tasks.

    Args:
        design: what the prediction is about.
        expected: "worse" by more than the margin, or "not worse".
        tasks: on each of these.
        against: the design that it is compared with; "" for the baseline of the plan.
        than: a task whose difference, `times` over, is subtracted; "" for none.
        times: see `than`.
    """

    design: str
    expected: Expected
    tasks: tuple[str, ...]
    against: str = ""
    than: str = ""
    times: float = 1.0

    def __post_init__(self) -> None:
        check("expected", self.expected in get_args(Expected), "worse or not worse", repr(self.expected))
        check("on", len(self.tasks) >= 1, "at least one task", "none")
        check("times", 0 < self.times < float("inf"), "a positive number", self.times)

    @property
    def contrast(self) -> bool:
        """Whether it is no comparison with the baseline, which the plan makes anyway."""
        return bool(self.against or self.than)

    def key(self, task: str) -> Key:
        """The task and the design of its comparison; of a contrast, what they are made of."""
        where = f"{task} − {self.times:g} × {self.than}" if self.than else task
        return where, f"{self.design} − {self.against}" if self.against else self.design

    def arms(
        self, task: str, baseline: str, scores: Callable[[str, str], Mapping[int, float]]
    ) -> tuple[dict[int, float], dict[int, float]]:
        """By seed, the two numbers whose difference is predicted: for `than`, two differences."""
        other = self.against or baseline
        mine, theirs = scores(task, self.design), scores(task, other)
        if not self.than:
            return dict(theirs), dict(mine)
        there, reference = scores(self.than, self.design), scores(self.than, other)
        seeds = sorted(mine.keys() & theirs.keys() & there.keys() & reference.keys())
        return (
            {seed: self.times * (there[seed] - reference[seed]) for seed in seeds},
            {seed: mine[seed] - theirs[seed] for seed in seeds},
        )


@dataclass(frozen=True)
class Claim:
    """A claim in a sentence, by a short name, and what it predicts."""

    name: str
    says: str
    predictions: tuple[Prediction, ...]

    @classmethod
    def read(cls, name: str, table: Mapping[str, Any]) -> Claim:
        """A claim from plain values: ``says``, and ``predicts``, a list of tables.

        Each has ``design``, ``on`` and perhaps ``expected``, ``against``, ``than`` and ``times``; see `Prediction`.

        Raises:
            PlanError: if one of them is missing, unknown, or is not what it should be.
        """
        for needed in ("says", "predicts"):
            check(f"{needed} of claim {name}", bool(table.get(needed)), "given", "missing")
        tables = isinstance(table["predicts"], list) and all(isinstance(one, dict) for one in table["predicts"])
        check(f"predicts of claim {name}", tables, "a list of tables", repr(table["predicts"]))
        return cls(name, table["says"], tuple(_prediction(name, **one) for one in table["predicts"]))

    @property
    def plain(self) -> dict[str, Any]:
        """The same in plain values, as `read` takes them."""
        predicts = []
        for one in self.predictions:
            table: dict[str, Any] = {"design": one.design, "expected": one.expected, "on": [*one.tasks]}
            table |= {"against": one.against} if one.against else {}
            predicts.append(table | ({"than": one.than, "times": one.times} if one.than else {}))
        return {"name": self.name, "says": self.says, "predicts": predicts}


class Found(NamedTuple):
    """What was found of one design on one task, against what was predicted.

    `changed` is the share of resamples of the seeds that give another finding; NaN where nothing was tested.
    """

    task: str
    design: str
    expected: Expected
    finding: Finding
    changed: float
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
    claims: Iterable[Claim],
    comparisons: Iterable[Comparison],
    changed: Mapping[Key, float],
    undertrained: Callable[[Comparison], bool] = lambda c: False,
) -> list[Judgement]:
    """What the comparisons of a study say of each claim.

    Args:
        claims: with contrasts, if `comparisons` has those too.
        comparisons: with the baseline, and contrasts by `Prediction.key`.
        changed: by task and design, the share of resamples with another finding.
        undertrained: whether training was too short for a comparison, so that nothing is said of it.
    """
    known = {(c.task, c.design): c for c in comparisons}

    def find(prediction: Prediction, task: str) -> Found:
        key = prediction.key(task)
        c = known.get(key)
        if c is None or not c.difference.n:
            return Found(*key, prediction.expected, "not tested", float("nan"), None)
        share = float("nan") if c.verdict is Verdict.TOO_FEW else changed.get(key, 1.0)
        said = finding(c) if share <= MOST_CHANGED and not undertrained(c) else "cannot tell"
        return Found(*key, prediction.expected, said, share, c)

    return [
        Judgement(claim, tuple(find(one, task) for one in claim.predictions for task in one.tasks)) for claim in claims
    ]


def finding(c: Comparison) -> Finding:
    """Whether the design is shown to be worse by more than the margin, or shown not to be."""
    if c.finding == "worse":
        return "worse"
    return "not worse" if c.finding in ("better", "no different") or c.better == c.design else "cannot tell"


def contrasts(
    claims: Iterable[Claim],
    baseline: str,
    scores: Callable[[str, str], Mapping[int, float]],
    higher_is_better: Callable[[str], bool],
    margins: Mapping[str, float],
) -> dict[Key, Arms]:
    """The comparisons that predictions need beside those with the baseline, on tasks that the study has."""
    found = {}
    for one in (prediction for claim in claims for prediction in claim.predictions if prediction.contrast):
        for task in one.tasks:
            if task in margins and (not one.than or one.than in margins):
                arms = one.arms(task, baseline, scores)
                found[one.key(task)] = Arms(*arms, higher_is_better(task), margins[task])
    return found


def _prediction(claim: str, /, **table: Any) -> Prediction:
    known = ("design", "on", "expected", "against", "than", "times")
    for name in table:
        check(f"keys of a prediction of claim {claim}", name in known, f"among {', '.join(known)}", name)
    return Prediction(
        str(Design.parse(table["design"])),
        table.get("expected", "worse"),
        tuple(table["on"]),
        str(Design.parse(table["against"])) if "against" in table else "",
        table.get("than", ""),
        float(table.get("times", 1.0)),
    )
