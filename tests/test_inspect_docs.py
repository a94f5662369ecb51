"""The numbers in docs/inspect.md are those of the command; `python tests/test_inspect_docs.py` prints its tables."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import pytest

import querykey
from querykey.inspection import tables
from querykey.inspection.columns import BEHAVIOUR, ON_WEIGHTS
from querykey.inspection.inspect import Inspection, examine
from querykey.inspection.names import layer_names
from querykey.report.table import Cell, Table
from test_inspect import minilm

PAGE = Path(__file__).parent.parent / "docs" / "inspect.md"


def markdown(table: Table) -> str:
    cells = [[" · ".join(filter(None, cell)) for cell in _plain(row)] for row in table.rows]
    heads = [column.title for column in table.columns]
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _plain(row: Sequence[Cell | str]) -> list[tuple[str, str]]:
    return [(cell, "") if isinstance(cell, str) else (cell.text, cell.detail) for cell in row]


def weights_table(heads: pd.DataFrame) -> str:
    return markdown(tables.layer_table(heads, ON_WEIGHTS, "", summed=True))


def behaviour_table(found: Inspection) -> str:
    return markdown(tables.layer_table(found.heads, BEHAVIOUR, ""))


def forecast_table(found: Inspection) -> str:
    assert found.data is not None
    return markdown(tables.forecast_table(found.data, layer_names(found.heads)))


def on_topics(folder: Path) -> Inspection:
    """MiniLM on the text that the page names."""
    from pydoc_data.topics import topics

    text = folder / "topics.txt"
    text.write_text("\n\n".join(topics[name] for name in sorted(topics)), encoding="utf-8")
    return examine(minilm(), text=text, forecast="layer")


@pytest.mark.usefixtures("unchecked")
def test_the_table_of_weights_and_what_is_said_of_it() -> None:
    heads, page = querykey.inspect(minilm()), PAGE.read_text(encoding="utf-8")
    assert weights_table(heads) in page
    layers = heads.groupby("layer")
    above = layers["layer_symmetry"].first() > layers["symmetry"].max()
    assert above[above].index.tolist() == [1, 3, 4, 5]
    assert "In layers 1, 3, 4 and 5 the sum is more symmetric than any of its heads" in page


@pytest.mark.slow
def test_the_tables_of_the_text(tmp_path: Path) -> None:
    """Other versions of Python have other texts, and other processors other last digits: within 0.03."""
    found, page = on_topics(tmp_path), PAGE.read_text(encoding="utf-8")
    for made in (forecast_table(found), behaviour_table(found)):
        there = page[page.index(made.partition("\n")[0]) :].partition("\n\n")[0]
        assert numbers(made) == pytest.approx(numbers(there), abs=0.03)


def numbers(table: str) -> list[float]:
    return [float(number.replace("−", "-")) for number in re.findall(r"−?\d+(?:\.\d+)?", table)]


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        found = on_topics(Path(folder))
    print(weights_table(found.heads), forecast_table(found), behaviour_table(found), sep="\n\n")
