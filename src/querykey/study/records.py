"""The database of a study: one row per finished cell, written at once, read for every report.

A record is never changed. What was asked, the study, is kept beside the cells.
"""

from __future__ import annotations

import json
import platform
import sqlite3
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from filelock import FileLock, Timeout

from querykey import machine
from querykey.study.plan import Cell
from querykey.study.training import Outcome

SCHEMA = 1
_TABLES = """
create table cells (
    key text primary key, task text not null, design text not null, seed integer not null, status text not null,
    config text not null, metrics text not null, curve text not null, "origin" text not null,
    seconds real not null, finished_at text not null
);
create table studies (id integer primary key, name text not null, study text not null, asked_at text not null);
"""


class RecordsError(ValueError):
    """A database that cannot be opened, read or written."""


@dataclass(frozen=True)
class Declared:
    """A cell that a study means to train."""

    key: str
    task: str
    design: str
    seed: int


@dataclass(frozen=True)
class Study:
    """What was asked, in plain values: all that a report needs beside the cells.

    `tasks` has, by name, ``task`` (its kind), ``metric``, ``chance``, ``best``, ``length``, ``margin`` and ``designs``
    (those tried on it). The first design is the baseline. `looks` are the numbers of seeds at which a study that grows
    is looked at; [] where it does not. `claims` are those of the plan, see `Claim.plain`. `command` asks for the
    same again; empty for a plan that is no file.
    """

    name: str
    question: str
    designs: list[str]
    tasks: dict[str, dict[str, Any]]
    seeds: int
    cells: list[Declared]
    match: str = "width"
    looks: list[int] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    command: str = ""

    def designs_of(self, task: str) -> list[str]:
        """The designs that are tried on a task, the baseline first."""
        return list(self.tasks[task].get("designs", self.designs))

    def contains(self, keys: Iterable[str]) -> bool:
        """Whether it has all these cells and more."""
        return {cell.key for cell in self.cells} > set(keys)

    def seeds_of(self, task: str) -> int:
        """The number of seeds that a task is trained with."""
        return len({cell.seed for cell in self.cells if cell.task == task})


class Records:
    """The records under a folder, in ``records.sqlite``.

    Args:
        folder: where; made when `create` is set.
        create: whether there may be none yet.

    Raises:
        RecordsError: if there is no database, or it is none of ours, or another version made it.
    """

    def __init__(self, folder: str | Path, *, create: bool = False) -> None:
        self.folder = Path(folder)
        self.path = self.folder / "records.sqlite"
        if not self.path.exists() and not create:
            raise RecordsError(
                f"there are no records under {self.folder}; `querykey compare --out {self.folder}` makes them"
            )
        with self._failing_in_words():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._database = sqlite3.connect(self.path, isolation_level=None)
            try:
                self._make_tables()
            except BaseException:
                self.close()
                raise

    def _make_tables(self) -> None:
        (found,) = self._database.execute("pragma user_version").fetchone()
        (tables,) = self._database.execute("select count(*) from sqlite_master").fetchone()
        if not tables:
            self._database.executescript(f"begin immediate; {_TABLES} pragma user_version = {SCHEMA}; commit;")
        elif found != SCHEMA:
            raise RecordsError(
                f"{self.path} has layout {found}, made by another version of querykey; this one reads layout {SCHEMA}. "
                "Use another --out, or the version that made it"
            )

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder alone while a study runs.

        Raises:
            RecordsError: if another run holds it.
        """
        lock = FileLock(self.folder / "run.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RecordsError(
                f"another run is writing to {self.folder}; wait until it has ended, or use another --out"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def keep_study(self, study: Study) -> None:
        """Remember what was asked; the last study is the one that reports are about."""
        row = (study.name, json.dumps(asdict(study)), _now())
        with self._failing_in_words():
            self._database.execute("insert into studies (name, study, asked_at) values (?, ?, ?)", row)

    def asked(self) -> bool:
        """Whether any study was."""
        with self._failing_in_words():
            return self._database.execute("select 1 from studies limit 1").fetchone() is not None

    def last_study(self) -> Study:
        """The study that was asked last.

        Raises:
            RecordsError: if none was.
        """
        with self._failing_in_words():
            row = self._database.execute("select study from studies order by id desc limit 1").fetchone()
        if row is None:
            raise RecordsError(f"{self.path} holds no study yet; run `querykey compare --out {self.folder}` first")
        stored = json.loads(row[0])
        return Study(**stored | {"cells": [Declared(**cell) for cell in stored["cells"]]})

    def finished(self) -> set[str]:
        """The keys of the cells that are there, diverged ones among them."""
        with self._failing_in_words():
            return {key for (key,) in self._database.execute("select key from cells")}

    def add(self, cell: Cell, outcome: Outcome) -> None:
        """Write a cell at once; one that is there already stays as it is."""
        row = {
            "key": cell.key,
            "task": cell.task.name,
            "design": str(cell.design),
            "seed": cell.seed,
            "status": outcome.status,
            "config": json.dumps(cell.plain),
            "metrics": json.dumps(outcome.metrics),
            "curve": json.dumps(outcome.curve),
            "origin": json.dumps(dict(provenance()) | {"data_hash": cell.data_hash}),
            "seconds": outcome.seconds,
            "finished_at": _now(),
        }
        names = ", ".join(row)
        places = ", ".join(f":{name}" for name in row)
        with self._failing_in_words():
            self._database.execute(f"insert or ignore into cells ({names}) values ({places})", row)

    def cells(self, keys: Sequence[str] | None = None) -> pd.DataFrame:
        """One row per cell, in the order of `keys` (those that are there), with mappings for its parts."""
        with self._failing_in_words():
            frame = pd.read_sql_query("select * from cells", self._database).rename(columns={"origin": "provenance"})
        for column in ("config", "metrics", "curve", "provenance"):
            frame[column] = [json.loads(text) for text in frame[column]]
        if keys is None:
            return frame
        present = frame.set_index("key", drop=False)
        return present.loc[[key for key in keys if key in present.index]].reset_index(drop=True)

    @contextmanager
    def _failing_in_words(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise RecordsError(f"{self.path} cannot be used: {error}; what was finished before is kept") from error
        except OSError as error:
            raise RecordsError(f"{self.folder} cannot be used: {error.strerror or error}") from error


def weights_path(folder: Path, key: str) -> Path:
    """Where the trained weights of a cell are kept, if they are."""
    return folder / "weights" / f"{key}.safetensors"


@lru_cache
def provenance() -> Mapping[str, Any]:
    """Where results of this process come from: versions, commit and machine."""
    return {
        "querykey": version("querykey"),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": _commit(),
        "machine": machine.description(),
    }


def _commit() -> str | None:
    """The commit of this source tree, with a plus sign where files have changed since; None outside of one."""
    here = Path(__file__).parent
    try:
        shown = subprocess.run(
            ["git", "-C", str(here), "describe", "--always", "--abbrev=12", "--exclude=*", "--dirty=+"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        tracked = subprocess.run(
            ["git", "-C", str(here), "ls-files", "--error-unmatch", __file__],
            capture_output=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return shown.stdout.strip() if tracked.returncode == 0 else None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
