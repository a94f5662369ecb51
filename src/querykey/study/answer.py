"""The question of a study answered in plain words, from its comparisons alone.

First whether the roles that share a matrix needed different weights, where the study can say it: it must compare
separate weights with shared ones and change nothing else. Then one sentence per design.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from math import isnan, nan

from querykey.design import Design
from querykey.report.numbers import ratio
from querykey.report.words import Words
from querykey.stats.comparison import Comparison, Verdict
from querykey.stats.statistics import minimum_seeds
from querykey.study.conclusions import Conclusion, conclude, so_far, unlearned
from querykey.study.result import Result

NUMBERED = 5  # tasks up to which a sentence about a design gives its scores


def answer(result: Result, say: Words) -> list[str]:
    """The question, what was found of it, and one sentence per design."""
    return [*filter(None, [asked(result, say)]), *headline(result, say), *on_designs(result, say)]


def asked(result: Result, say: Words) -> str:
    """The question of the study, in the language where a plan that ships with querykey asks it; "" without one."""
    question = result.study.question
    return say(question) if question in say else question


def headline(result: Result, say: Words) -> list[str]:
    """How far the study is, if it has not ended; whether shared roles needed different weights; what sharing saves."""
    total = len(result.study.cells)
    found = [say("so-far", done=total - result.missing, total=total)] if result.missing else []
    nothing = unlearned(result)
    if len(result.study.designs) == 1:
        return [*found, say("one-design")]
    if nothing and nothing.keys() == {c.task for c in result.comparisons}:
        return [*found, say("nothing-learned", baseline=result.study.designs[0], tasks=say.join([*nothing]))]
    bare = shared_alone(result)
    if bare is None:
        return found
    return [*found, _on_sharing(result, bare, say), *_on_saving(result, bare, say)]


def shared_alone(result: Result) -> str | None:
    """The first design that differs from the baseline in that roles share their matrix, and in nothing else."""
    baseline = Design.parse(result.study.designs[0])
    compared = [design for design in result.study.designs[1:] if _of(result, design)]
    return next((design for design in compared if _ties_alone(Design.parse(design), baseline)), None)


def on_designs(result: Result, say: Words) -> list[str]:
    """For each design where it is better, worse or no different, and how often a run of it beats the baseline."""
    by_design = {design: _of(result, design) for design in result.study.designs[1:]}
    return [
        _about(result, design, mine, say) + _chance(result, design, mine, say)
        for design, mine in by_design.items()
        if mine
    ]


def in_words(design: Design, say: Words) -> str:
    """What a design is, for those who do not read its notation."""
    shared = [part for part in design.parts if len(part) > 1]
    said = [_part(part, say) for part in shared] or [say("separate")]
    chosen = {option.name: getattr(design, option.name) for option in fields(design)[1:]}
    changed = {option.name for option in fields(design)[1:] if chosen[option.name] != option.default}
    return say("option.and").join([*said, *(_option(name, chosen[name], say) for name in chosen if name in changed)])


def _option(name: str, value: object, say: Words) -> str:
    """An option in words; one without words of its own as it is written."""
    words = say(f"{name}.{value}") if f"{name}.{value}" in say else f"{value:g}" if isinstance(value, float) else value
    return say(f"option.{name}", value=words) if f"option.{name}" in say else f"{name} {words}"


def _part(part: Sequence[str], say: Words) -> str:
    roles = say.join([say(f"role.{role}") for role in part if role != "x"])
    return say("unprojected" if "x" in part else "one-matrix", roles=roles)


def _of(result: Result, design: str) -> list[Comparison]:
    return [c for c in result.comparisons if c.design == design]


def _ties_alone(design: Design, baseline: Design) -> bool:
    tied = _tied(design)
    return (
        bool(tied)
        and all((role,) in baseline.parts for role in tied)
        and replace(design, sharing=baseline.sharing) == baseline
        and {part for part in design.parts if part != tied} <= set(baseline.parts)
    )


def _tied(design: Design) -> tuple[str, ...]:
    """The first roles that share a learned matrix."""
    return next((part for part in design.parts if len(part) > 1 and "x" not in part), ())


def _on_sharing(result: Result, bare: str, say: Words) -> str:
    """Where the roles needed different weights, and what else would do."""
    by_word = _by_word(result, bare)
    worse, same = by_word["worse"], [*by_word["no different"], *by_word["better"]]
    tied = _tied(Design.parse(bare))
    roles = say.join([say(f"role.{role}") for role in tied])
    if not worse and (by_word["cannot tell"] or by_word["undertrained"]):
        return say("roles-open", roles=roles) + (_same(same, bare, say) if same else "") + _open(result, bare, say)
    if not worse:
        return _capital(say("roles-same", roles=roles, where=_where(same, len(same), say, "any"), design=bare))
    found = say("roles-worse", roles=roles, where=_where(worse, len(result.study.tasks), say), design=bare)
    found += _same(same, bare, say) if same else ""
    return _capital(found + _open(result, bare, say) + _remedies(result, bare, worse, say))


def _by_word(result: Result, design: str) -> dict[Conclusion, list[str]]:
    found: dict[Conclusion, list[str]] = {
        "worse": [], "better": [], "no different": [], "cannot tell": [], "undertrained": [],
    }  # fmt: skip
    for c in _of(result, design):
        found[conclude(result, c)].append(c.task)
    return found


def _same(tasks: Sequence[str], design: str, say: Words) -> str:
    return say("roles-not-worse", tasks=say.join(tasks), design=design)


def _open(result: Result, design: str, say: Words) -> str:
    """The tasks that say nothing, with the reason."""
    by_word, mine = _by_word(result, design), _of(result, design)
    early, unclear = by_word["undertrained"], by_word["cannot tell"]
    found = say("roles-early", tasks=say.join(early)) if early else ""
    few = [c for c in mine if c.task in unclear and c.verdict is Verdict.TOO_FEW]
    if few and len(few) == len(unclear):
        pairs, needed = max(c.difference.n for c in few), minimum_seeds(result.rule.alpha)
        return found + say("roles-few", tasks=say.join(unclear), needed=needed, pairs=pairs)
    return found + (say("roles-unclear", tasks=say.join(unclear)) if unclear else "")


def _remedies(result: Result, bare: str, worse: Sequence[str], say: Words) -> str:
    """Which designs that share the same roles lose nothing where the bare one does, on most of these tasks."""
    tied = _tied(Design.parse(bare))
    others = [d for d in result.study.designs[1:] if d != bare and _shares(Design.parse(d), tied)]
    mended = {d: [task for task in worse if task in _not_worse(result, d)] for d in others}
    most = max(mended.values(), key=len, default=[])
    if not most:
        return ""
    names = [name for name, tasks in mended.items() if tasks == most]
    where = "" if most == worse else say("on", tasks=say.join(most))
    return say("remedy", designs=say.join(names), where=where)


def _shares(design: Design, roles: Sequence[str]) -> bool:
    return all(design.shares(roles[0], role) for role in roles)


def _not_worse(result: Result, design: str) -> list[str]:
    by_word = _by_word(result, design)
    return by_word["no different"] + by_word["better"]


def _on_saving(result: Result, design: str, say: Words) -> list[str]:
    """What the attention of a design stores and costs, as shares of the baseline's."""
    row = next((row for row in result.largest_costs if row["design"] == design), None)
    if row is None or isnan(row["parameters_ratio"]):
        return []
    names = ("cache_bytes", "parameters", "flops")
    cache, parameters, flops = (ratio(row[f"{name}_ratio"]) for name in names)
    baseline = result.study.designs[0]
    return [say("saving", design=design, baseline=baseline, cache=cache, parameters=parameters, flops=flops)]


def _about(result: Result, design: str, comparisons: Sequence[Comparison], say: Words) -> str:
    """`q=k,v`: worse on cycle (0.33 against 1.00) and text (2.93 against 2.75 bits per byte); cannot tell on ..."""
    said: dict[str, list[str]] = {}
    for c in comparisons:
        numbers = _numbers(c, say) if len(comparisons) <= NUMBERED else ""
        said.setdefault(_kind(result, c), []).append(c.task + numbers)
    parts = [say(f"about.{kind}", tasks=say.join(tasks)) for kind, tasks in said.items()]
    return say("about", design=design, found=say("option.and").join(parts))


def _numbers(c: Comparison, say: Words) -> str:
    if not c.difference.n:
        return say("no-pair")
    unit = "" if c.higher_is_better else say("bits")
    return say("against", own=f"{c.design_mean:.3f}", base=f"{c.baseline_mean:.3f}", unit=unit)


def _kind(result: Result, c: Comparison) -> str:
    """The conclusion, and whether a difference within the margin is nevertheless clear."""
    word = conclude(result, c)
    clear = word == "no different" and c.better is not None
    return f"{so_far(c)}-within" if clear else word.replace(" ", "-")


def _chance(result: Result, design: str, comparisons: Sequence[Comparison], say: Words) -> str:
    chance = result.improvement.get(design, nan)
    if len(comparisons) < 2 or isnan(chance):
        return ""
    return say("beats", baseline=result.study.designs[0], chance=f"{chance:.2f}")


def _where(some: Sequence[str], of: int, say: Words, every: str = "all") -> str:
    """`the task`, `both tasks (a and b)`, `all 3 tasks (…)`, `1 of 3 tasks (a)`."""
    if len(some) == of == 1:
        return say("where.one")
    key = f"where.{every}" if len(some) == of else "where.some"
    return say(key, count=len(some), total=of, tasks=say.join(some))


def _capital(sentence: str) -> str:
    return sentence[0].upper() + sentence[1:]
