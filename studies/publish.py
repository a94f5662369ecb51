"""From the records of finished studies to the tables of the documents.

    python studies/publish.py runs/core runs/claims     keep what was found, as studies/results/NAME.json
    python studies/publish.py                           write every table of docs/ and README from what is kept
    python studies/publish.py --check                   say which documents differ, exit code 1 if one does

A document marks its tables: `<!-- table: KIND STUDY options -->`, then the table, then `<!-- end of table -->`.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from querykey.design import Design
from querykey.report.numbers import signed
from querykey.report.words import Words
from querykey.stats.bootstrap import RESAMPLES
from querykey.stats.comparison import Comparison
from querykey.stats.statistics import SignFlips, mean_sd, paired_difference, unseen_rate
from querykey.stats.statistics import differences as differences_of
from querykey.study.claims import Found
from querykey.study.conclusions import conclude, judgements
from querykey.study.notes import advice, notes
from querykey.study.result import Result, read
from querykey.study.tables import choice_rows

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "studies" / "results"
DOCUMENTS = ("README.md", "README.zh-CN.md", "docs/*.md")
MARKED = re.compile(r"(<!-- table: (?P<words>[^>]+) -->\n)(?P<table>.*?)(<!-- end of table -->)", re.DOTALL)

Row = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", metavar="RUN", help="folders that querykey compare wrote to")
    parser.add_argument("--check", action="store_true", help="change nothing, and say which documents differ")
    chosen = parser.parse_args()
    for folder in chosen.runs:
        result = read(folder)
        path = RESULTS / f"{Path(folder).name}.json"
        path.write_text(json.dumps(summarise(result), indent=1, ensure_ascii=False) + "\n")
        print(f"{path.relative_to(ROOT)}: {len(result.records)} cells, {result.missing} missing")
    differing = [path for path in documents() if written(path.read_text()) != path.read_text()]
    if not chosen.check:
        for path in differing:
            path.write_text(written(path.read_text()))
    for path in differing:
        print(f"{path.relative_to(ROOT)}: {'differs from' if chosen.check else 'written from'} studies/results")
    return 1 if differing and chosen.check else 0


def documents() -> Iterator[Path]:
    for pattern in DOCUMENTS:
        yield from sorted(ROOT.glob(pattern))


def written(text: str) -> str:
    """The document with each of its tables made anew."""
    return MARKED.sub(lambda found: found[1] + _made(found["words"]) + found[4], text)


def _made(words: str) -> str:
    kind, study, *options = words.split()
    if kind not in KINDS:
        raise SystemExit(f"there is no table of kind {kind!r}; there are {', '.join(KINDS)}")
    kept = json.loads((RESULTS / f"{study}.json").read_text())
    return "\n".join(KINDS[kind](kept, **dict(option.split("=", 1) for option in options))) + "\n"


# What is kept of a study


def summarise(result: Result) -> dict[str, Any]:
    """All that a table needs: one row per task and design, and one per prediction of a claim."""
    machine = result.cells["provenance.machine.processor"].iloc[0] if len(result.records) else None
    return {
        "study": result.study.name,
        "question": result.study.question,
        "designs": result.study.designs,
        "seeds": result.study.seeds,
        "match": result.study.match,
        "cells": len(result.study.cells),
        "missing": result.missing,
        "machine": machine,
        "torch": result.cells["provenance.torch"].iloc[0],
        "hours": round(float(result.cells["seconds"].sum()) / 3600, 3),
        "notes": advice(result, Words("study")) + notes(result, Words("study")),
        "yardsticks": {task: facts.get("yardsticks", {}) for task, facts in result.study.tasks.items()},
        "rows": [_row(result, task, design) for task in result.study.tasks for design in result.study.designs_of(task)],
        "claims": [
            {
                "name": one.claim.name,
                "says": one.claim.says,
                "verdict": one.verdict,
                "found": [_found(found) for found in one.found],
            }
            for one in judgements(result)
        ],
    }


def _found(found: Found) -> Row:
    row: Row = {"task": found.task, "design": found.design, "expected": found.expected, "finding": found.finding}
    return row if found.comparison is None else row | _compared(found.comparison, found.changed)


def _compared(c: Comparison, changed: float) -> Row:
    """The numbers of a comparison. `unseen` is the failure rate that is not excluded where a design has one score."""
    d = c.difference
    row: Row = {"n": d.n, "difference": d.mean, "low": d.low, "high": d.high, "sd_difference": d.sd, "margin": c.margin}
    row |= {"p_holm": c.p_holm, "p_flip": d.p_flip, "verdict": str(c.verdict), "changed": changed}
    row |= {"within_margin": c.within_margin, "beyond_margin": c.beyond_margin, "smallest_effect": c.smallest_effect}
    row |= {"unseen": unseen_rate(d.n)} if d.n and not (c.design_sd and c.baseline_sd) else {}
    return _rounded(row)


def _row(result: Result, task: str, design: str) -> Row:
    facts = result.study.tasks[task]
    config = result.configs(task).get(design)
    row: Row = {"task": task, "kind": facts.get("task", task), "metric": facts["metric"], "design": design}
    row |= {"margin": _digits(result.margins[task]), "chance": _digits(facts["chance"])}
    if config is not None:
        layout = config.layout(Design.parse(design))
        row |= {"parameters": config.layers * layout.parameters, "cache": config.layers * layout.cache_bytes()}
        row |= {"steps": config.steps, "lr": config.lr}
    for name in ("test", "train", "argmax"):
        scores = np.array([*result.scores(task, design, name).values()])
        scores = scores[np.isfinite(scores)]
        if len(scores):
            row[name], row[f"{name}_sd"] = map(_digits, mean_sd(scores))
            row[f"{name}_least"], row[f"{name}_most"] = _digits(float(scores.min())), _digits(float(scores.max()))
    row |= _gap(result, task, design) | _solved(result, task, design) | _tying(result, task, design)
    for choice in choice_rows(result, task):
        if choice.design == design:
            row |= {"ceiling": str(choice.ceiling.fraction), "reason": choice.ceiling.reason}
    for c in result.comparisons:
        if (c.task, c.design) == (task, design):
            row |= _compared(c, result.changed[task, design]) | {"conclusion": conclude(result, c)}
    return _rounded(row)


def _rounded(row: Row) -> Row:
    return {name: _digits(value) if isinstance(value, float) else value for name, value in row.items()}


def _tying(result: Result, task: str, design: str) -> Row:
    """What tying costs like for like: Q = K less separate weights with the same options, paired by seed."""
    separate = design.replace("q=k,v", "q,k,v")
    if separate == design or separate not in result.study.designs_of(task):
        return {}
    mine, theirs = result.scores(task, design), result.scores(task, separate)
    seeds = sorted(mine.keys() & theirs.keys())
    d = differences_of(*(np.array([scores[seed] for seed in seeds]) for scores in (theirs, mine)))
    paired = paired_difference(d, SignFlips.of(d, np.random.default_rng(0)))
    return {"tying": paired.mean, "tying_low": paired.low, "tying_high": paired.high}


def _gap(result: Result, task: str, design: str) -> Row:
    """Held-out score less the score on seen text, and how far that is from the baseline's, paired by seed."""
    gaps = []
    for name in (design, result.study.designs[0]):
        test, train = (result.scores(task, name, metric) for metric in ("test", "train"))
        gaps.append(np.array([test[seed] - train[seed] for seed in sorted(test)]))
    if not np.isfinite(gaps[0]).all():
        return {}
    d = differences_of(gaps[1], gaps[0])
    paired = paired_difference(d, SignFlips.of(d, np.random.default_rng(0)))
    found = dict(zip(("gap", "gap_sd"), mean_sd(gaps[0]), strict=True))
    return found | {"gap_difference": paired.mean, "gap_low": paired.low, "gap_high": paired.high}


SOLVED = 0.9  # accuracy on validation


def _solved(result: Result, task: str, design: str) -> Row:
    """Of an accuracy: the step at which each seed was first seen above `SOLVED`, those that never were as None."""
    if result.study.tasks[task]["metric"] != "accuracy":
        return {}
    curves = result.curves
    mine = curves[(curves["task"] == task) & (curves["design"] == design)]
    above = mine[mine["validation"] > SOLVED].groupby("seed")["step"].min()
    return {"solved_at": [int(above[seed]) if seed in above else None for seed in sorted(set(mine["seed"]))]}


def _digits(x: float) -> float | None:
    """Six significant digits are what a table needs, and keep the files small."""
    return float(f"{x:.6g}") if math.isfinite(x) else None


# Tables

WORDS = {
    "en": {
        "design": "design", "task": "task", "difference": "difference and 95 % interval", "found": "found",
        "turn": "bootstrap: finding changes", "score": "score", "nats": "nats per byte",
        "right": "highest weight right",
        "most": "at most", "solved": "seeds above 0.9", "after": "first seen there at step",
        "because": "because", "train": "seen text", "test": "held-out text", "gap": "gap", "parameters": "parameters",
        "predicted": "predicted", "worse": "worse", "not worse": "not worse", "cannot tell": "cannot tell",
        "not tested": "not tested", "better": "better", "no different": "no different", "baseline": "baseline",
        "undertrained": "undertrained", "so far": " ({} so far)", "perhaps": "perhaps within the margin",
        "margin": "margin", "cache": "cached bytes per token", "counting": "counting {}s",
        "unseen": "0 of {} fail: rate ≤ {:.0%}", "encoder": "encoder", "decoder": "decoder", "plain": "no self-mask",
        "selfmask": "self-mask", "accuracy": "accuracy", "bits per byte": "bits per byte",
    },
    "zh": {
        "design": "设计", "task": "任务", "difference": "差值与 95 % 区间", "found": "结论",
        "turn": "重抽样后结论改变", "score": "得分", "nats": "每字节奈特", "right": "最大权重落对", "most": "上限",
        "solved": "超过 0.9 的种子", "after": "首次达到的步数",
        "because": "原因", "train": "训练过的文本", "test": "未见文本", "gap": "差距", "parameters": "参数量",
        "predicted": "预测", "worse": "更差", "not worse": "并不更差", "cannot tell": "无法判断",
        "not tested": "未检验", "better": "更好", "no different": "无差别", "baseline": "基线",
        "undertrained": "训练不足", "so far": "（目前{}）", "perhaps": "差异可能在界限内",
        "margin": "界限", "cache": "每词元缓存字节", "counting": "{} 计数",
        "unseen": "{} 次无失败：失败率 ≤ {:.0%}", "encoder": "编码器", "decoder": "解码器", "plain": "无自掩码",
        "selfmask": "自掩码", "accuracy": "准确率", "bits per byte": "每字节比特",
    },
}  # fmt: skip
CEILING_ZH = {
    "s_ij says nothing": "s_ij 与 s_ji 无关，每个词元可以任意选择",
    "s_ij ≤ s_ii": "s_ij ≤ s_ii，每个词元只会选自己",
    "s_ij = s_ji, so": "s_ij = s_ji，两个词元可以互选",
    "where i chooses j, s_ii": "沿着“谁选谁”的路径，键的范数严格增大，环无法闭合",
    "where i chooses j and": "沿着“谁选谁”的路径，打分严格增大，长度超过 2 的环无法闭合",
}


def scores(
    kept: dict[str, Any], tasks: str = "", designs: str = "", lang: str = "en", intervals: str = ""
) -> Iterator[str]:
    """Designs by tasks: mean ± sd, what was found against the baseline and, if asked for, the difference."""
    words = WORDS[lang]
    wanted = tasks.split(";") if tasks else list(dict.fromkeys(row["task"] for row in kept["rows"]))
    shown = designs.split(";") if designs else kept["designs"]
    cells = {(row["task"], row["design"]): row for row in kept["rows"]}
    yield _line([words["design"], *wanted])
    yield _line(["---"] + ["---"] * len(wanted))
    for design in shown:
        if any((task, design) in cells for task in wanted):
            yield _line([f"`{design}`", *(_score(cells.get((task, design)), words, intervals) for task in wanted)])


MARKS = {"better": "✓", "no different": "✓", "worse": "✗", "cannot tell": "?", "undertrained": "?"}


def marks(kept: dict[str, Any], tasks: str = "", designs: str = "", lang: str = "en") -> Iterator[str]:
    """Designs by tasks, one sign each: ✓ better or no different, ✗ worse, ? undecided."""
    words = WORDS[lang]
    wanted = tasks.split(";") if tasks else list(dict.fromkeys(row["task"] for row in kept["rows"]))
    cells = {(row["task"], row["design"]): row for row in kept["rows"]}
    yield _line([words["design"], *wanted])
    yield _line(["---"] + [":-:"] * len(wanted))
    for design in designs.split(";") if designs else kept["designs"][1:]:
        rows = (cells.get((task, design)) for task in wanted)
        yield _line([f"`{design}`", *("" if row is None else MARKS[row["conclusion"]] for row in rows)])


def differences(
    kept: dict[str, Any],
    task: str,
    designs: str = "",
    lang: str = "en",
    unit: str = "score",
    cost: str = "parameters",
) -> Iterator[str]:
    """One task: cost and score of each design, its difference to the baseline, the finding and its bootstrap.

    With the unit "nats", bits per byte are nats per byte. The cost is "parameters" or "cache". Text ends with the
    levels of counting n-grams.
    """
    words = WORDS[lang]
    margin = next(row["margin"] for row in _rows(kept, task))
    factor = math.log(2) if unit == "nats" else 1.0
    found = f"{words['found']} ({words['margin']} {margin * factor:.3g})"
    yield _line([words["design"], words[cost], words[unit], words["difference"], found, words["turn"]])
    yield _line(["---"] * 6)
    for row in _rows(kept, task, designs):
        row = row | {name: factor * row[name] for name in BITS if row.get(name) is not None}
        said = [_said(row, words), _turn(row, words)]
        yield _line([f"`{row['design']}`", f"{row[cost]:,}", _mean(row, "test"), _difference(row), *said])
    for name, level in kept.get("yardsticks", {}).get(task, {}).items():
        if name in ("trigram", "5-gram"):
            yield _line([words["counting"].format(name), "", f"{factor * level:.3f}", "", "", ""])


def claim(kept: dict[str, Any], name: str, lang: str = "en") -> Iterator[str]:
    """What was found of each prediction of one claim."""
    words = WORDS[lang]
    (mine,) = (one for one in kept["claims"] if one["name"] == name)
    yield _line(words[column] for column in ("task", "design", "predicted", "difference", "margin", "found", "turn"))
    yield _line(["---"] * 7)
    for one in mine["found"]:
        found = words[one["finding"]]
        strong = f"**{found}**" if one["finding"] == one["expected"] else found
        margin = f"{one['margin']:.3g}" if "margin" in one else ""
        numbers = [words[one["expected"]], _difference(one), margin, strong, _turn(one, words)]
        yield _line([one["task"], f"`{one['design']}`", *numbers])


def ceilings(kept: dict[str, Any], task: str, lang: str = "en") -> Iterator[str]:
    """How often the highest weight of a head lies right, beside what is possible."""
    words = WORDS[lang]
    yield _line(words[name] for name in ("design", "right", "most", "because"))
    yield _line(["---"] * 4)
    for row in _rows(kept, task):
        reason = row.get("reason", "")
        if lang == "zh":
            reason = next((text for start, text in CEILING_ZH.items() if reason.startswith(start)), reason)
        yield _line([f"`{row['design']}`", _mean(row, "argmax"), row.get("ceiling", "–"), reason])


def tying(kept: dict[str, Any], tasks: str, lang: str = "en") -> Iterator[str]:
    """What Q = K costs against separate weights with the same options: in encoder and decoder, without and with mask.

    `tasks` are the first parts of names that end in -encoder and -decoder.
    """
    words = WORDS[lang]
    cells = {(row["task"], row["design"]): row for row in kept["rows"]}
    masks = {"q=k,v": words["plain"], "q=k,v+selfmask": words["selfmask"]}
    yield _line(
        [words["task"], *(f"{words[kind]}, {mask}" for kind in ("encoder", "decoder") for mask in masks.values())]
    )
    yield _line(["---"] * 5)
    for task in tasks.split(";"):
        rows = [cells[f"{task}-{kind}", design] for kind in ("encoder", "decoder") for design in masks]
        yield _line([f"{task} ({words[rows[0]['metric']]})", *(_difference(row, *TYING) for row in rows)])


def gaps(kept: dict[str, Any], task: str, lang: str = "en") -> Iterator[str]:
    """The loss on text that was trained on, on text that was not, and the difference."""
    words = WORDS[lang]
    yield _line(words[name] for name in ("design", "train", "test", "gap", "difference"))
    yield _line(["---"] * 5)
    for number, row in enumerate(_rows(kept, task)):
        difference = _difference(row, "gap_difference", "gap_low", "gap_high") if number else ""
        yield _line([f"`{row['design']}`", *(_mean(row, name) for name in ("train", "test", "gap")), difference])


def solved(kept: dict[str, Any], task: str, lang: str = "en") -> Iterator[str]:
    """How many seeds came above 0.9 on validation, and when each was first seen there."""
    words = WORDS[lang]
    yield _line(words[name] for name in ("design", "parameters", "score", "solved", "after"))
    yield _line(["---"] * 5)
    for row in _rows(kept, task):
        steps = sorted(step for step in row["solved_at"] if step is not None)
        many = f"{len(steps)} of {len(row['solved_at'])}"
        after = ", ".join(f"{step:,}" for step in steps)
        yield _line([f"`{row['design']}`", f"{row['parameters']:,}", _mean(row, "test"), many, after])


TYING = ("tying", "tying_low", "tying_high")
BITS = ("test", "test_sd", "difference", "low", "high")  # what is in bits per byte where a task is text

KINDS: dict[str, Callable[..., Iterator[str]]] = {
    "scores": scores,
    "marks": marks,
    "differences": differences,
    "claim": claim,
    "ceilings": ceilings,
    "gaps": gaps,
    "tying": tying,
    "solved": solved,
}


def _rows(kept: dict[str, Any], task: str, designs: str = "") -> list[Row]:
    shown = designs.split(";") if designs else None
    return [row for row in kept["rows"] if row["task"] == task and (shown is None or row["design"] in shown)]


def _score(row: Row | None, words: dict[str, str], intervals: str = "") -> str:
    if row is None or "test" not in row:
        return ""
    found = "" if "conclusion" not in row else f"<br>{_said(row, words)}"
    return _mean(row, "test") + found + (f"<br>{_difference(row)}" if found and intervals else "")


def _mean(row: Row, name: str) -> str:
    return f"{row[name]:.3f} ± {row[f'{name}_sd']:.3f}" if name in row else "–"


def _difference(row: Row, *names: str) -> str:
    """A difference with its interval, by the names of its three numbers."""
    names = names or ("difference", "low", "high")
    if row.get(names[0]) is None:
        return ""
    numbers = [signed(row[name]) for name in names]
    return f"{numbers[0]} [{numbers[1]}, {numbers[2]}]"


def _said(row: Row, words: dict[str, str]) -> str:
    """The conclusion, as the report has it."""
    if "conclusion" not in row:
        return words["baseline"]
    word = row["conclusion"]
    if word in ("better", "worse"):
        return f"**{words[word]}**" + ("" if row["beyond_margin"] else f", {words['perhaps']}")
    direction = {"design better": "better", "baseline better": "worse"}.get(row["verdict"])
    return words[word] + (words["so far"].format(words[direction]) if word == "undertrained" and direction else "")


def _turn(row: Row, words: dict[str, str]) -> str:
    if row.get("changed") is None:
        return ""
    share = f"{100 * row['changed']:.1f} %" if row["changed"] else f"< {100 / RESAMPLES:.1f} %"
    return share + (f"; {words['unseen'].format(row['n'], row['unseen'])}" if "unseen" in row else "")


def _line(cells) -> str:
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    sys.exit(main())
