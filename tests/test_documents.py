"""Documents: their tables are those of the kept results, and what they link to is there."""

import json
import re
import runpy
import sys
from dataclasses import fields
from pathlib import Path

import pytest

import glossary
import querykey
from querykey.design import _OPTIONS, Design
from querykey.report.words import Words
from querykey.study.plan import load_plan

ROOT = Path(__file__).parent.parent
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/*.md")), ROOT / "studies" / "LOG.md"]
LINK = re.compile(r"\]\((?!https?://)([^)#\s]*)(?:#[^)]*)?\)")


def test_every_table_is_written_from_the_kept_results(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["publish.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "studies" / "publish.py"), run_name="__main__")
    assert ended.value.code == 0, f"run: python studies/publish.py\n{capsys.readouterr().out}"


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path):
    for target in filter(None, LINK.findall(path.read_text())):
        assert (path.parent / target).exists(), f"{path.name} links to {target}, which is not there"


@pytest.mark.parametrize("name", ["why.md", "why.zh-CN.md"])
def test_each_claim_of_the_plan_is_answered_in_its_place(name):
    text = (ROOT / "docs" / name).read_text()
    for claim in load_plan("claims").claims:
        section = text.partition(f'<a id="{claim.name.lower()}"></a>')[2].partition("<a id=")[0]
        assert f"table: claim claims name={claim.name}" in section


def test_studies_ran_to_their_end():
    kept = sorted((ROOT / "studies" / "results").glob("*.json"))
    assert kept
    for path in kept:
        found = json.loads(path.read_text())
        assert found["missing"] == 0, path.name
        assert all(row["test"] is not None for row in found["rows"])


def test_no_head_of_the_claims_exceeds_its_ceiling():
    rows = [row for row in json.loads((ROOT / "studies/results/claims.json").read_text())["rows"] if "ceiling" in row]
    assert len(rows) == 12
    for row in rows:
        over, _, under = row["ceiling"].partition("/")
        assert row["argmax_most"] <= int(over) / int(under or 1) + 1e-6  # six digits are kept


def test_no_replaced_word_is_left_in_sources_and_documents():
    """`make words` lists them."""
    assert list(glossary.found(glossary.USUAL)) == []


def test_replaced_words_are_found(tmp_path, monkeypatch):
    monkeypatch.setattr(glossary, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text("The buffer has a length.\nIts room is full; whoever asks is told.\n")
    assert list(glossary.found([tmp_path])) == ["a.md:2: room", "a.md:2: whoever asks"]


def test_each_option_of_a_design_is_in_the_readme_and_has_words_in_reports():
    words = Words("study")
    for name in ("README.md", "README.zh-CN.md"):
        assert [option for option in _OPTIONS if f"`+{option}" not in (ROOT / name).read_text()] == []
    assert [field.name for field in fields(Design)[1:] if f"option.{field.name}" not in words] == []


def test_the_citation_has_the_version_of_the_package():
    assert f"\nversion: {querykey.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_reference_names_all_that_the_package_gives():
    text = (ROOT / "docs" / "api.md").read_text()
    for name in querykey.__all__:
        assert re.search(rf"^::: querykey\.[\w.]+\.{name}$", text, re.MULTILINE), name
