"""The question of a study answered in plain words, from its comparisons alone.

First whether queries and keys needed different weights, where the study can say it: it must compare separate weights
with a shared one and nothing else changed. Then one sentence per design.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isnan, nan

from querykey.design import Design
from querykey.stats.statistics import minimum_seeds
from querykey.stats.verdict import Comparison, Verdict
from querykey.study.records import Study

NUMBERED = 5  # tasks up to which a sentence about a design gives its scores
LEARNED = 0.05  # of the way from chance to the best score: a baseline that is not so far has learned nothing
_ROLES = {"q": "queries", "k": "keys", "v": "values"}


def answer(
    study: Study, comparisons: Sequence[Comparison], missing: int = 0, improvement: Mapping[str, float] | None = None
) -> list[str]:
    """The question, what was found of it, and one sentence per design."""
    question = [study.question] if study.question else []
    return [*question, *headline(study, comparisons, missing), *on_designs(study, comparisons, improvement)]


def headline(study: Study, comparisons: Sequence[Comparison], missing: int = 0) -> list[str]:
    """How far the study is, if it has not ended, and whether queries and keys needed different weights, if it asks."""
    found = _on_two_matrices(study, comparisons)
    if len(study.designs) == 1:
        found = ["There is one design, so there is nothing to compare it with."]
    if missing:
        found.insert(0, f"So far, with {len(study.cells) - missing} of {len(study.cells)} cells:")
    return found


def unlearned(study: Study, comparisons: Sequence[Comparison]) -> dict[str, float]:
    """The tasks on which the baseline is at chance, with its mean: what is compared there says nothing."""
    found = {}
    for c in comparisons:
        chance, best = study.tasks[c.task]["chance"], study.tasks[c.task]["best"]
        if c.difference.n and (c.baseline_mean - chance) / (best - chance) < LEARNED:
            found[c.task] = c.baseline_mean
    return found


def on_designs(
    study: Study, comparisons: Sequence[Comparison], improvement: Mapping[str, float] | None = None
) -> list[str]:
    """For each design where it is better, worse, or no different from the baseline.

    With `improvement` also the chance, by design, that a run of it beats one of the baseline on a task of those.
    """
    by_design = {name: [c for c in comparisons if c.design == name] for name in study.designs[1:]}
    return [
        _about(name, mine) + _chance(name, study, mine, improvement or {}) for name, mine in by_design.items() if mine
    ]


def in_words(design: Design) -> str:
    """What a design is, in a few words for those who do not read its notation."""
    shared = [part for part in design.parts if len(part) > 1]
    said = [_shared(part) for part in shared] or ["a matrix each for queries, keys and values"]
    core = "diagonal" if design.core == "signed" else design.core
    options = {
        f"a {core} k × k matrix per head makes the queries out of the keys": design.core,
        "no position attends to itself": design.selfmask,
        f"{design.similarity} similarity": design.similarity != "dot",
        "normalised queries and keys": design.qknorm,
        f"queries and keys of size {design.qk_dim}": design.qk_dim,
        f"{design.kv_heads} key and value heads": design.kv_heads,
        f"initial queries and keys × {design.qkscale:g}": design.qkscale != 1,
        "the two start with the same values": design.tiedstart,
    }
    return "; ".join([*said, *(words for words, chosen in options.items() if chosen)])


def _shared(part: tuple[str, ...]) -> str:
    if "x" in part:
        roles = [_ROLES[role] for role in part if role != "x"]
        return f"{_and(roles)} are the input itself"
    return f"one matrix for {_and([_ROLES[role] for role in part])}"


def _on_two_matrices(study: Study, comparisons: Sequence[Comparison]) -> list[str]:
    nothing = unlearned(study, comparisons)
    comparisons = [c for c in comparisons if c.task not in nothing]
    if nothing and not comparisons:
        return [f"Nothing was learned: {study.designs[0]} itself is at chance on {_and([*nothing])}. Train for longer."]
    by_design = {name: [c for c in comparisons if c.design == name] for name in study.designs[1:]}
    baseline = Design.parse(study.designs[0])
    tied = (name for name, mine in by_design.items() if mine and _ties_alone(Design.parse(name), baseline))
    bare = next(tied, None)
    if bare is None:
        return []
    worse, same, unclear = _sorted_out(by_design[bare])
    if not worse and unclear:
        return [f"Whether queries and keys need different weights, these runs cannot tell{_why(by_design[bare])}."]
    if not worse:
        of_tasks = "the task" if len(same) == 1 else f"any of the {len(same)} tasks"
        return [
            f"Queries and keys did not need different weights on {of_tasks}: "
            f"with one matrix for both, {bare} is nowhere worse beyond the margin."
        ]
    found = f"Queries and keys needed different weights on {_count(worse, len(study.tasks))}: "
    found += f"with one matrix for both, {bare} is worse there."
    if same:
        found += f" On {_and(same)} it is no worse beyond the margin."
    if unclear:
        found += f" On {_and(unclear)} these runs cannot tell."
    found += _remedies(by_design, bare, worse)
    return [found]


def _ties_alone(design: Design, baseline: Design) -> bool:
    """Whether the design differs from the baseline in that queries and keys share their matrix, and in nothing else."""
    return (
        design.shares("q", "k")
        and not any(baseline.shares(*pair) for pair in ("qx", "kx"))
        and not design.shares("q", "x")
        and design.shares("q", "v") == baseline.shares("q", "v")
        and design.shares("v", "x") == baseline.shares("v", "x")
        and replace(design, sharing=baseline.sharing) == baseline
    )


def _sorted_out(comparisons: Sequence[Comparison]) -> tuple[list[str], list[str], list[str]]:
    """The tasks on which a design is worse, not worse beyond the margin, and those that nothing is known of."""
    worse: list[str] = []
    same: list[str] = []
    unclear: list[str] = []
    for c in comparisons:
        if c.verdict is Verdict.BASELINE_BETTER and not c.within_margin:
            worse.append(c.task)
        else:
            (same if c.decided else unclear).append(c.task)
    return worse, same, unclear


def _remedies(by_design: dict[str, list[Comparison]], bare: str, worse: Sequence[str]) -> str:
    """Which designs with one matrix for queries and keys lose nothing where the bare one does, on most of the tasks."""
    tied = [name for name in by_design if name != bare and Design.parse(name).shares("q", "k")]
    mended = {name: [task for task in worse if task in _sorted_out(by_design[name])[1]] for name in tied}
    most = max(mended.values(), key=len, default=[])
    if not most:
        return ""
    names = [name for name, tasks in mended.items() if tasks == most]
    where = "there" if most == worse else f"on {_and(most)}"
    loses = "loses" if len(names) == 1 else "lose"
    return f" But a second matrix is not the only remedy: {_and(names)} {loses} nothing beyond the margin {where}."


def _why(comparisons: Sequence[Comparison]) -> str:
    if all(c.verdict is Verdict.TOO_FEW for c in comparisons):
        pairs, enough = max(c.difference.n for c in comparisons), minimum_seeds(comparisons[0].rule.alpha)
        return f": a verdict takes {enough} seeds, and there {'is' if pairs == 1 else 'are'} {pairs}"
    return f": on {_and(_sorted_out(comparisons)[2])} the differences are not clear enough"


def _about(design: str, comparisons: Sequence[Comparison]) -> str:
    """`q=k,v`: worse on cycle (0.33 against 1.00) and text (2.93 against 2.75 bits per byte); cannot tell on ..."""
    said: dict[str, list[str]] = {}
    for c in comparisons:
        unit = "" if c.higher_is_better else " bits per byte"
        numbers = f" ({c.design_mean:.3f} against {c.baseline_mean:.3f}{unit})" if c.difference.n else " (no pair yet)"
        said.setdefault(_kind(c), []).append(c.task + (numbers if len(comparisons) <= NUMBERED else ""))
    return f"{design}: " + "; ".join(f"{kind} {_and(tasks)}" for kind, tasks in said.items()) + "."


def _chance(design: str, study: Study, comparisons: Sequence[Comparison], improvement: Mapping[str, float]) -> str:
    chance = improvement.get(design, nan)
    if len(comparisons) < 2 or isnan(chance):
        return ""
    return f" Over these tasks, a run of it beats one of {study.designs[0]} with probability {chance:.2f}."


def _kind(c: Comparison) -> str:
    if not c.decided:
        return "cannot tell on"
    if c.better is None:
        return "no difference beyond the margin on"
    direction = "better" if c.better == c.design else "worse"
    return f"{direction}, but by less than the margin, on" if c.within_margin else f"{direction} on"


def _and(words: Sequence[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _count(some: Sequence[str], of: int) -> str:
    every = {1: "the task", 2: "both tasks"}.get(of, f"all {of} tasks")
    return f"{every} ({_and(some)})" if len(some) == of else f"{len(some)} of {of} tasks ({_and(some)})"
