"""Imports go one way, and `import querykey` needs torch and jaxtyping only."""

import ast
import subprocess
import sys
from pathlib import Path

import querykey

ROOT = Path(querykey.__file__).parent

# Each room with the rooms that it may import from, beside itself.
GROUND = {"design", "layout", "extras", "threads"}
MAY_IMPORT = {
    "design": {"layout"},
    "layout": {"design"},
    "extras": set(),
    "threads": set(),
    "attention": GROUND,
    "generation": set(),
    "transformer": {"attention", "generation", *GROUND},
    "tasks": {"extras"},
    "figures": {"extras"},
    "pages": set(),
    "study": {"tasks", "transformer", "attention", "figures", "pages", *GROUND},
    "bilinear": set(),
    "checkpoint": {"extras", "threads"},
    "inspection": {"checkpoint", "bilinear", "figures", "pages", "extras", "threads"},
    "bench": {"attention", "figures", *GROUND},
    "explorer": {"inspection", "study", "checkpoint", "bilinear", "attention", "transformer", "tasks", *GROUND},
    "cli": {"", "study", "inspection", "explorer", "bench", *GROUND},
    "": {"attention", "study", "inspection", "explorer", *GROUND},  # querykey/__init__.py, the face
}


def imports():
    """(room, room that it imports from, file) of every import in the package."""
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        room = "" if parts == ("__init__",) else parts[0]
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                names = [node.module] + [
                    f"{node.module}.{alias.name}" for alias in node.names if node.module == "querykey"
                ]
            for name in names:
                if name.split(".")[0] == "querykey" and not (name == "querykey" and isinstance(node, ast.ImportFrom)):
                    yield room, name.split(".")[1] if "." in name else "", path


def test_imports_go_one_way():
    found = list(imports())
    assert len(found) > 50
    for room, source, path in found:
        if source != room:
            assert source in MAY_IMPORT[room], f"{path} imports from {source or 'the face'}, which {room} may not"


def test_importing_querykey_loads_torch_and_jaxtyping_only():
    script = (
        "import sys, torch, jaxtyping; before = set(sys.modules); import querykey;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) - set(sys.stdlib_module_names) == {"querykey"}


def test_without_an_extra_the_error_names_it():
    script = "import sys; sys.modules['pandas'] = None; import querykey; querykey.compare"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "this needs pandas, which is not installed; it comes with: pip install 'querykey[study]'" in done.stderr
    script = "import sys; sys.modules['pandas'] = None; from querykey.cli import main; sys.exit(main(['compare']))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("querykey: this needs pandas")
