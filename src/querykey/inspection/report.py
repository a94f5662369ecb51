"""The report of an inspection, written to a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from querykey.inspection.inspect import Inspection
from querykey.inspection.page import as_html as as_html
from querykey.report.files import write_atomically


def write_html(inspections: Sequence[Inspection], folder: str | Path) -> Path:
    """Write the page as ``report.html`` into `folder`, which is made if need be; whole or not at all."""
    path = Path(folder) / "report.html"
    with write_atomically(path) as partial:
        partial.write_text(as_html(inspections), encoding="utf-8")
    return path
