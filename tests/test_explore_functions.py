"""The pure functions of the explorer's page, tested under node by `explore_page.test.js`."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

from explored import needed
from querykey.explorer.export import PAGE

NODE = needed("node")
TESTS = Path(__file__).with_name("explore_page.test.js")


def test_the_pure_functions_of_the_page(tmp_path: Path) -> None:
    shutil.copytree(PAGE, tmp_path / "page")
    shutil.copy(TESTS, tmp_path)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    done = subprocess.run([NODE, "--test", TESTS.name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    passed = re.search(r"pass (\d+)", done.stdout)
    assert passed
    assert int(passed[1]) == TESTS.read_text(encoding="utf-8").count("\ntest(")
