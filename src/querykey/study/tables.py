"""The tables of a report, as rows of words for any page or terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import isfinite, isnan
from typing import Any, NamedTuple

import numpy as np

from querykey.design import Design
from querykey.stats.statistics import mean_sd, minimum_seeds
from querykey.stats.verdict import Comparison, Verdict
from querykey.study.answer import unlearned
from querykey.study.ceilings import ceiling
from querykey.study.claims import Found, Judgement
from querykey.study.matching import cost
from querykey.study.result import Result
from querykey.tasks import Relation

NOTHING = "–"


class Row(NamedTuple):
    """A design on a task. What is compared is empty for the baseline, `kind` is better, worse, same or open."""

    design: str
    score: str
    difference: str = ""
    interval: str = ""
    p_t: str = ""
    p_flip: str = ""
    verdict: str = "the baseline"
    kind: str = ""


class Amount(NamedTuple):
    """A cost, and its ratio to that of the baseline, NaN where that is not known."""

    number: str
    ratio: float

    @property
    def times(self) -> str:
        """`0.75×`."""
        return "" if isnan(self.ratio) else f"{self.ratio:.2f}×"


class Cost(NamedTuple):
    """What the attention of a design costs."""

    design: str
    parameters: Amount
    flops: Amount
    cache: Amount


class Choice(NamedTuple):
    """How often the highest weight of a design's one head lies right, and how often it can at most, with the reason."""

    design: str
    right: str
    ceiling: str
    reason: str


class Evidence(NamedTuple):
    """What was found of one prediction on one task; `kind` is met, against or open."""

    task: str
    design: str
    expected: str
    finding: str
    difference: str
    reversal: str
    kind: str


class ClaimRow(NamedTuple):
    """A claim with its verdict and what it rests on; `kind` is holds, mixed, fails or open."""

    name: str
    says: str
    verdict: str
    kind: str
    evidence: list[Evidence]


def task_title(result: Result, task: str) -> str:
    """`cycle: accuracy, 6 seeds (chance 0.125, best 1, margin 0.01)`."""
    facts = result.study.tasks[task]
    levels = [f"chance {facts['chance']:.3g}", f"best {facts['best']:.3g}"]
    levels += [f"margin {result.margins[task]:.3g}"] if len(result.study.designs) > 1 else []
    lower = "," if result.higher_is_better(task) else ", lower is better,"
    seeds = "1 seed" if result.study.seeds == 1 else f"{result.study.seeds} seeds"
    return f"{task}: {facts['metric']}{lower} {seeds} ({', '.join(levels)})"


def task_rows(result: Result, task: str) -> list[Row]:
    """One row per design, the baseline first."""
    baseline = result.study.designs[0]
    scores = np.array([*result.scores(task, baseline).values()], dtype=float)
    compared = [_row(c, result.words[task, c.design]) for c in result.comparisons if c.task == task]
    return [Row(baseline, mean_and_sd(*mean_sd(scores[np.isfinite(scores)]))), *compared]


def overview(result: Result) -> list[tuple[str, list[Row | None]]]:
    """By design, the row of each task, None where it is not tried: for a table of designs by tasks."""
    rows = {(task, row.design): row for task in result.study.tasks for row in task_rows(result, task)}
    return [(design, [rows.get((task, design)) for task in result.study.tasks]) for design in result.study.designs]


def choice_rows(result: Result, task: str) -> list[Choice]:
    """One row per design, for a fixed relation and models of one layer and one head; none else."""
    if result.study.tasks[task].get("task", task) != Relation.name:
        return []
    relation = Relation(**result.options(task))
    rows = []
    for design, setting in result.configs(task).items():
        bound = ceiling(relation, Design.parse(design), setting)
        if bound is not None:
            shares = np.array([*result.scores(task, design, "argmax").values()])
            rows.append(Choice(design, mean_and_sd(*mean_sd(shares)), str(bound.fraction), bound.reason))
    return rows


def claim_rows(result: Result) -> list[ClaimRow]:
    """One row per claim of the plan, with what was found of each prediction."""
    return [_claim(judgement) for judgement in result.judgements]


def cost_title(result: Result) -> str | None:
    """Of which model the costs are; None as long as there is no cell."""
    task = _largest(result)
    if task is None:
        return None
    setting = next(iter(result.configs(task).values()))
    sizes = f"{_plural(setting.layers, 'layer')}, dim {setting.dim}, {_plural(setting.heads, 'head')}"
    sizes += f" of {setting.head_dim}" if setting.head_dim else ""
    return f"Cost of attention in the model of {task}: {sizes}, {result.study.tasks[task]['length']} positions"


def cost_rows(result: Result, task: str | None = None) -> list[Cost]:
    """One row per design, for a task; where none is given, for the one whose model is the largest."""
    costs = result.costs[result.costs["task"] == (task or _largest(result))]
    return [
        Cost(row["design"], *(_amount(row, name) for name in ("parameters", "flops", "cache_bytes")))
        for row in costs.to_dict("records")
    ]


def mismatch(result: Result, task: str) -> dict[str, tuple[float, float]]:
    """By design, parameters and FLOPs of all blocks, attention and MLP, over those of the baseline."""
    settings, length = result.configs(task), result.study.tasks[task]["length"]
    costs = {
        design: [cost(setting, Design.parse(design), rule, length) for rule in ("parameters", "flops")]
        for design, setting in settings.items()
    }
    base = costs.get(result.study.designs[0])
    return {design: (own[0] / base[0], own[1] / base[1]) for design, own in costs.items()} if base else {}


def notes(result: Result) -> list[str]:
    """What has to be known beside the tables, in a sentence each."""
    about = (_on_missing, _on_chance, _on_diverged, _on_seeds, _on_matching, _on_rates, _on_length)
    return [note for notes_of in about for note in notes_of(result)]


def _on_missing(result: Result) -> Iterator[str]:
    total = len(result.study.cells)
    if result.missing:
        yield f"{total - result.missing} of {total} cells are there; run the same command again for the rest."


def _on_chance(result: Result) -> Iterator[str]:
    baseline = result.study.designs[0]
    for task, mean in unlearned(result.study, result.comparisons).items():
        chance = result.study.tasks[task]["chance"]
        yield (
            f"On {task} the baseline {baseline} itself learned nothing ({mean:.3f}, where chance is {chance:.3f}), "
            "so no comparison there says anything; train for longer, or at another rate."
        )


def _on_diverged(result: Result) -> Iterator[str]:
    rows = result.diverged[["design", "task", "seed"]].to_dict("records")
    cells = [f"{row['design']} on {row['task']}, seed {row['seed']}" for row in rows]
    if cells:
        named = cells if len(cells) <= 6 else [*cells[:5], f"{len(cells) - 5} more"]
        yield f"Training diverged, and the pair is left out of the comparison: {'; '.join(named)}."


def _on_seeds(result: Result) -> Iterator[str]:
    enough = minimum_seeds(result.rule.alpha)
    if any(c.verdict is Verdict.TOO_FEW for c in result.comparisons):
        yield (
            f"A verdict takes at least {enough} seeds; with fewer, all pairs can point the same way by chance."
            + (
                f" Run again with --seeds {enough}: cells that are there are kept."
                if result.study.seeds < enough
                else ""
            )
        )


def _on_matching(result: Result) -> Iterator[str]:
    rule = result.study.match
    if rule != "width":
        ratios = [pair[rule == "flops"] for task in result.study.tasks for pair in mismatch(result, task).values()]
        off = max((abs(ratio - 1) for ratio in ratios), default=0.0)
        yield f"Designs are matched in {'FLOPs' if rule == 'flops' else rule}, at most {off:.1%} off."


def _on_rates(result: Result) -> Iterator[str]:
    """The learning rates of a task whose designs have different ones: they were chosen."""
    for task in result.study.tasks:
        rates = {design: setting.lr for design, setting in result.configs(task).items()}
        if len(set(rates.values())) > 1:
            chosen = ", ".join(f"{design} {rate:g}" for design, rate in rates.items())
            yield f"On {task} the learning rates chosen on validation are: {chosen}."


def _on_length(result: Result) -> Iterator[str]:
    """Comparisons whose better side was still getting better."""
    frame = result.convergence[result.convergence["improving"] > 0.5]
    improving = set(zip(frame["task"], frame["design"], strict=True))
    for task in result.study.tasks:
        ahead = {c.better for c in result.comparisons if c.task == task} - {None}
        ahead = {design for design in ahead if (task, design) in improving}
        if ahead:
            named = " and ".join(design for design in result.study.designs if design in ahead)
            still = "was still improving" if len(ahead) == 1 else "were still improving"
            yield f"On {task}, {named} {still} when training ended: this says who is ahead, not who would win."


def _row(c: Comparison, words: str) -> Row:
    d = c.difference
    if not d.n:
        return Row(c.design, NOTHING, NOTHING, NOTHING, NOTHING, NOTHING, "no finished pair", "open")
    tested = d.n > 1
    return Row(
        c.design,
        mean_and_sd(c.design_mean, c.design_sd),
        signed(d.mean),
        f"[{signed(d.t_low)}, {signed(d.t_high)}]" if isfinite(d.t_low) else NOTHING,
        probability(c.p_holm) if tested else NOTHING,
        probability(d.p_flip) if tested else NOTHING,
        words,
        _kind(c),
    )


def _claim(judgement: Judgement) -> ClaimRow:
    verdict = judgement.verdict
    starts = {"holds only": "mixed", "holds": "holds", "does not": "fails"}
    kind = next((kind for start, kind in starts.items() if verdict.startswith(start)), "open")
    evidence = [_evidence(found) for found in judgement.found]
    return ClaimRow(judgement.claim.name, judgement.claim.says, verdict, kind, evidence)


def _evidence(found: Found) -> Evidence:
    row = _row(found.comparison, "") if found.comparison else None
    difference = f"{row.difference} {row.interval}" if row else NOTHING
    reversal = NOTHING if isnan(found.reversal) else f"{100 * found.reversal:.1f} %"
    kind = "open" if found.finding in ("cannot tell", "not tested") else "met" if found.met else "against"
    return Evidence(found.task, found.design, found.expected, found.finding, difference, reversal, kind)


def _kind(c: Comparison) -> str:
    if not c.decided:
        return "open"
    return "same" if c.better is None else "better" if c.better == c.design else "worse"


def mean_and_sd(mean: float, sd: float) -> str:
    """`0.296 ± 0.216`; without the second where there is but one value."""
    if isnan(mean):
        return NOTHING
    return f"{mean:.3f}" if isnan(sd) else f"{mean:.3f} ± {sd:.3f}"


def signed(x: float) -> str:
    """`+0.123`, `−0.123`, and `0.000` for what rounds to it."""
    return f"{x:+.3f}".replace("-", "−") if abs(x) >= 0.0005 else "0.000"


def probability(p: float) -> str:
    """Two digits, and `<0.0001` below that."""
    return "<0.0001" if p < 1e-4 else f"{p:.2g}"


def _largest(result: Result) -> str | None:
    """The task whose models have the most parameters in their attention, of equals the one with more FLOPs."""
    costs = result.costs.sort_values(["parameters", "flops"], kind="stable")
    return str(costs["task"].iloc[-1]) if len(costs) else None


def _amount(row: Mapping[Any, Any], name: str) -> Amount:
    number = row[name]
    return Amount(f"{number / 1e6:,.3f} M" if number >= 1e7 else f"{number:,}", row[f"{name}_ratio"])


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
