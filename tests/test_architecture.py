"""Imports go one way, and `import querykey` needs torch and jaxtyping only."""

import ast
import keyword
import re
import subprocess
import sys
from pathlib import Path

import querykey

ROOT = Path(querykey.__file__).parent

# Packages and modules, lowest first: each imports from lower rows only, and from no other in its own row.
ORDER = (
    {"extras", "spelling", "machine", "stats", "report", "modeling"},
    {"bilinear"},
    {"design", "positions"},
    {"layout", "checkpoint", "tasks"},
    {"attention", "sampling", "costs"},
    {"generation", "bench"},
    {"transformer"},
    {"models"},
    {"study", "inspection", "conversion"},
    {"explorer", "hf"},
    {""},  # querykey/__init__.py
    {"cli"},
)


def modules():
    """Each module of the package by its dotted name without the package's, with its path."""
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports():
    """Each module with the modules of the package that it imports, wherever in the file."""
    paths = dict(modules())
    found = {name: set() for name in paths}
    for name, path in paths.items():
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{path}: imports are absolute"
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for imported in names:
                package, _, inner = imported.partition(".")
                if package == "querykey":
                    found[name].add(inner if inner in paths else inner.rpartition(".")[0])
    return found


def package(module):
    return module.split(".")[0]


def test_imports_go_down():
    row = {name: number for number, names in enumerate(ORDER) for name in names}
    found = imports()
    assert sum(map(len, found.values())) > 200
    for module, sources in found.items():
        for source in sources:
            if package(source) != package(module):
                assert row[package(source)] < row[package(module)], f"{module} imports from {source}, in no lower row"


def test_no_module_imports_itself_through_others():
    found, circles = imports(), set()
    for start in found:
        reached, new = set(), {start}
        while new := {source for module in new for source in found[module]} - reached:
            reached |= new
        if start in reached:
            circles.add(start)
    assert not circles


TOKEN = re.compile(r'"(?:\\.|[^"\\])*"|\'(?:\\.|[^\'\\])*\'|\w+|\S')
IGNORED = re.compile(r"(from|import)\b|\w+: [^=]+(= .+)?,$|\W*$")  # imports, parameters of a signature, brackets alone


def shapes(path):
    """Number and shape of each line of code: names, numbers and strings count as alike."""
    without_docstrings = re.sub(r'"""[^"]*?"""', lambda found: "\n" * found[0].count("\n"), path.read_text())
    for number, line in enumerate(without_docstrings.splitlines(), 1):
        line = re.sub(r"(^|\s)(#|//|/\*).*", "", line).strip()
        if not IGNORED.match(line):
            words = (
                word if keyword.iskeyword(word) else re.sub(r"^(['\"]|\w).*", "·", word) for word in TOKEN.findall(line)
            )
            yield number, " ".join(words)


def repeats(root, lines=10):
    """Places with this many lines in a row that are those of an earlier place, but for names."""
    places, found = {}, []
    for path in sorted(path for path in root.rglob("*") if path.suffix in (".py", ".js", ".css")):
        code = [] if path.name == "strings.js" else list(shapes(path))  # a table of texts
        for at in range(len(code) - lines + 1):
            run = tuple(shape for _, shape in code[at : at + lines])
            place, before = places.setdefault(run, (path, at))
            if (
                (place, before) != (path, at)
                and (place != path or at >= before + lines)
                and len(set(run)) >= lines // 2
            ):
                found.append(f"{path.relative_to(root)}:{code[at][0]}")
    return found


def test_no_two_places_share_ten_lines(tmp_path):
    assert repeats(ROOT) == []
    lines = [f"a{n} = {'+' * n}b" for n in range(12)]
    (tmp_path / "one.py").write_text("\n".join(lines))
    (tmp_path / "two.py").write_text("\n".join(["x()", *lines[:10]]).replace("b", "c"))
    assert repeats(tmp_path) == ["two.py:2"]


def test_files_are_short():
    kinds = (".py", ".js", ".css", ".j2", ".html")
    long = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in ROOT.rglob("*")
        if path.suffix in kinds
    }
    assert {name: lines for name, lines in long.items() if lines > 320} == {}


def test_stats_need_no_torch():
    script = "import sys; sys.modules['torch'] = None; import querykey.stats.verdict, querykey.stats.convergence"
    subprocess.run([sys.executable, "-c", script], check=True)


def test_importing_querykey_loads_torch_and_jaxtyping_only():
    script = (
        "import sys, torch, jaxtyping; before = set(sys.modules); from querykey import SelfAttention, attend;"
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert set(loaded) - set(sys.stdlib_module_names) == {"querykey"}


def test_without_an_extra_the_error_names_it():
    script = (
        "import sys; sys.modules['pandas'] = None; import querykey; from querykey.cli import main\n"
        "try: querykey.compare\n"
        "except ImportError as error: print(error)\n"
        "sys.exit(main(['compare']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "this needs pandas, which is not installed; it comes with: pip install 'querykey[study]'" in done.stdout
    assert done.returncode == 2
    assert done.stderr.startswith("querykey: this needs pandas")
