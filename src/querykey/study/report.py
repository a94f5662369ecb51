"""What `querykey.compare` returns: the result of a study with its reports.

    report = querykey.compare("why")        report = read("runs/why")
    report.answer()    plain words          report.summary     one row per comparison, and all else of `Result`
    rich.print(report)                      report.html()      one page that needs nothing beside itself

Each report is a pure function of the records: the same records give the same bytes, whenever and wherever it is made.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table as Grid
from rich.text import Text

from querykey.report.files import write_atomically
from querykey.report.words import Language, Words
from querykey.study import notes, tables
from querykey.study.answer import NUMBERED, answer, asked, headline, on_designs
from querykey.study.claims import Judgement
from querykey.study.conclusions import judgements
from querykey.study.page import as_html
from querykey.study.records import Records, Study
from querykey.study.result import Result
from querykey.study.result import read as read_result

_STYLES = {"holds": "green", "fails": "red", "open": "dim", "mixed": ""}


class Report(Result):
    """A result with its reports in English ("en") or Chinese ("zh")."""

    def answer(self, language: Language = "en") -> list[str]:
        """The study's question, then its answer in plain words, drawn from the numbers alone."""
        return answer(self, Words("study", language))

    def terminal(self, language: Language = "en") -> Terminal:
        """What rich prints: the answer, a table per task, the costs, and notes."""
        return Terminal(self, Words("study", language))

    def html(self, language: Language = "en") -> str:
        """One page that needs nothing beside itself."""
        return as_html(self, Words("study", language))

    def csv(self) -> str:
        """One row per cell, with its configuration, metrics and provenance; lists are written as JSON."""
        cells = self.cells.map(lambda value: json.dumps(value) if isinstance(value, list) else value)
        return cells.to_csv(index=False, lineterminator="\n")

    def json(self) -> str:
        """An object with ``study``, ``answer``, ``claims``, ``summary``, ``costs``, ``cells`` and ``curves``.

        Cells keep their nested configuration, metrics and provenance. What is no finite number is null.
        """
        curves = zip(self.records["key"], self.records["curve"], strict=True)
        parts = {
            "study": asdict(self.study),
            "missing": self.missing,
            "answer": self.answer(),
            "conclusions": {
                design: {task: tile.conclusion or "baseline" for task, tile in of_tasks.items()}
                for design, of_tasks in tables.tiles(self).items()
            },
            "claims": [_claim(judgement) for judgement in judgements(self)],
            "improvement": self.improvement,
            "summary": self.summary.to_dict("records"),
            "costs": self.costs.to_dict("records"),
            "cells": self.records.drop(columns="curve").to_dict("records"),
            "curves": [{"key": key, **curve} for key, curve in curves],
        }
        return json.dumps(_strict(parts), allow_nan=False, ensure_ascii=False) + "\n"

    def write_html(self, language: Language = "en") -> Path:
        """Write the page as ``report.html`` beside the records, whole or not at all.

        The report of a part of the study that the folder keeps is ``report-part.html``.
        """
        with Records(self.folder) as records:
            part = records.last_study().contains(cell.key for cell in self.study.cells)
        path = self.folder / ("report-part.html" if part else "report.html")
        with write_atomically(path) as partial:
            partial.write_text(self.html(language), encoding="utf-8")
        return path

    def __rich__(self) -> Terminal:
        return self.terminal()

    def _repr_html_(self) -> str:
        title = "querykey compare"
        return (
            f'<iframe srcdoc="{escape(self.html())}" style="width:100%;height:48rem;border:0" title="{title}"></iframe>'
        )


class Terminal:
    """A report for rich, as wide as the terminal allows."""

    def __init__(self, result: Result, say: Words) -> None:
        self.result, self.say = result, say

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        """The answer, then tables, then notes, and last the headline again, where lines have scrolled."""
        result, say = self.result, self.say
        yield from self._answer()
        for task in result.study.tasks:
            yield tables.task_table(result, task, say)
            yield ""
            if choices := tables.choice_table(result, task, say):
                yield from (choices, "")
        if costs := tables.cost_table(result, say):
            yield from (costs, "")
        for note in notes.notes(result, say):
            yield from (Text(say("note", note=note)), "")
        for judgement in judgements(result):
            yield Text.assemble((f"{judgement.claim.name} ", "bold"), judgement.claim.says)
            yield Text(tables.claim_verdict(judgement, say), _STYLES[judgement.kind])
            yield from (tables.claim_table(result, judgement, say), "")
        for line in headline(result, say):
            yield Text(line, "bold")

    def _answer(self) -> Iterator[RenderableType]:
        result, say = self.result, self.say
        if question := asked(result, say):
            yield Text(question, "bold")
        yield from map(Text, headline(result, say))
        yield ""
        if len(result.study.tasks) <= NUMBERED and len(result.study.designs) > 1:
            yield from (tables.overview(result, say), "")
        points = Grid.grid(padding=(0, 1, 0, 0))
        for line in on_designs(result, say):
            points.add_row("-", Text(line))
        yield points
        for line in notes.advice(result, say):
            yield Text(line, "yellow")
        yield ""


def read(folder: str | Path, study: Study | None = None) -> Report:
    """The report of a study, by default of the one that was run last under the folder.

    Raises:
        RecordsError: if there is none.
    """
    found = read_result(folder, study)
    return Report(found.study, found.records, found.folder, found.rule)


def _claim(judgement: Judgement) -> dict[str, Any]:
    evidence = [
        {name: getattr(one, name) for name in ("task", "design", "expected", "finding", "changed")}
        for one in judgement.found
    ]
    claim = judgement.claim
    return {"name": claim.name, "says": claim.says, "verdict": judgement.verdict, "evidence": evidence}


def _strict(value: Any) -> Any:
    """For JSON: what is no finite number is None."""
    if isinstance(value, dict):
        return {name: _strict(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_strict(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
