"""A comparison of a design with the baseline on one task: its numbers, its verdict, and the verdict in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Literal, NamedTuple

from querykey.stats.statistics import PairedDifference, Tested, minimum_seeds, sufficient_seeds

Key = tuple[str, str]
Finding = Literal["better", "worse", "no different", "cannot tell"]


class Arms(NamedTuple):
    """Scores by seed on one task, of the baseline and of a design; a diverged cell is NaN, one not yet run absent.

    `margin` is the difference that does not matter, in units of the metric, declared before the runs.
    """

    baseline: Mapping[int, float]
    design: Mapping[int, float]
    higher_is_better: bool
    margin: float

    def paired(self, seeds: Iterable[int] | None = None) -> Arms:
        """These arms with only the seeds that both have, out of `seeds` where given."""
        common = sorted(self.baseline.keys() & self.design.keys() & set(self.baseline if seeds is None else seeds))
        baseline, design = ({seed: arm[seed] for seed in common} for arm in (self.baseline, self.design))
        return self._replace(baseline=baseline, design=design)


@dataclass(frozen=True)
class Rule:
    """How verdicts are reached, declared before a plan runs.

    Args:
        alpha: family-wise error of each kind of statement.
        confidence: of the intervals, each for itself.
        power: that planned numbers of seeds and smallest effects refer to.
    """

    alpha: float = 0.05
    confidence: float = 0.95
    power: float = 0.8

    def __post_init__(self) -> None:
        """Raise ValueError for what is no probability."""
        for name in ("alpha", "confidence", "power"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must lie between 0 and 1, not {getattr(self, name)}")


class Verdict(StrEnum):
    """What can be said of a design against the baseline."""

    DESIGN_BETTER = "design better"
    BASELINE_BETTER = "baseline better"
    EQUIVALENT = "no difference within the margin"
    UNDECIDED = "cannot tell"
    TOO_FEW = "too few seeds"


@dataclass(frozen=True)
class Comparison:
    """A design against the baseline on one task: all numbers, and the words. Differences are design minus baseline.

    `p_holm` and `p_flip_holm`, of a difference, and `p_within_holm` and `p_beyond_holm`, of a difference within and
    beyond the margin (t tests), are adjusted over the family. `diverged` counts the pairs that were left out because a
    cell of theirs has no finite score. `within_margin` and `beyond_margin` say whether the difference is shown to lie
    there; both may be open where a design is shown to be better. `smallest_effect` is what so many pairs with this
    noise show with the rule's power at `level`, the share of alpha that one comparison has in Holm's strictest step.
    """

    task: str
    design: str
    baseline: str
    higher_is_better: bool
    verdict: Verdict
    design_mean: float
    design_sd: float
    baseline_mean: float
    baseline_sd: float
    diverged: int
    difference: PairedDifference
    margin: float
    within: Tested
    beyond: Tested
    p_holm: float
    p_flip_holm: float
    p_within_holm: float
    p_beyond_holm: float
    within_margin: bool
    beyond_margin: bool
    smallest_effect: float
    level: float
    rule: Rule

    @property
    def decided(self) -> bool:
        """Whether more seeds are not needed."""
        return self.verdict not in (Verdict.UNDECIDED, Verdict.TOO_FEW)

    @property
    def better(self) -> str | None:
        """The name of the better design, None where none is shown to be."""
        names = {Verdict.DESIGN_BETTER: self.design, Verdict.BASELINE_BETTER: self.baseline}
        return names.get(self.verdict)

    @property
    def finding(self) -> Finding:
        """What is found of the design with respect to the margin: only a difference shown to exceed it counts."""
        if self.beyond_margin:
            return "better" if self.better == self.design else "worse"
        return "no different" if self.within_margin else "cannot tell"

    @property
    def sufficient_seeds(self) -> int | None:
        """How many seeds would do if the observed mean and noise were the true ones; None beyond 1000."""
        d = self.difference
        if d.n < 2:
            return minimum_seeds(self.rule.alpha)
        return sufficient_seeds(
            d.mean, d.sd, margin=self.margin, alpha=self.level, power=self.rule.power, more_than=d.n
        )

    @property
    def words(self) -> str:
        """The verdict in words."""
        margin = f"the margin ({self.margin:.3g})"
        if self.better is not None:
            amount = "by more than" if self.beyond_margin else "by less than" if self.within_margin else ""
            return f"{self.better} is better" + (
                f", {amount} {margin}" if amount else f", perhaps by less than {margin}"
            )
        if self.verdict is Verdict.EQUIVALENT:
            return f"no difference within {margin}"
        if self.verdict is Verdict.TOO_FEW:
            return f"too few seeds for a verdict ({minimum_seeds(self.rule.alpha)} would do)"
        enough = self.sufficient_seeds
        would_do = "more than 1000 would be needed" if enough is None else f"about {enough} would do"
        return f"cannot tell with {self.difference.n} seeds ({would_do})"

    def row(self) -> dict[str, str | float | bool]:
        """All numbers and the words as one flat record, for a table."""
        flat = asdict(self) | {"within": self.within._asdict(), "beyond": self.beyond._asdict()}
        nested = {name: flat.pop(name) for name in ("difference", "within", "beyond")}
        del flat["rule"]
        flat |= {f"{name}_{field}": x for name, values in nested.items() for field, x in values.items()}
        return flat | {"verdict": str(self.verdict), "words": self.words, "finding": self.finding}
