"""Words that the glossary has replaced, where they are left: `python tests/glossary.py [PATH …]`.

CONTRIBUTING says which words to use. Without arguments: src/, docs/ and the READMEs. Exit code 1 if a word is found.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
USUAL = [ROOT / "src", ROOT / "docs", *ROOT.glob("README*.md")]
KINDS = (".py", ".md", ".js", ".html", ".j2", ".toml")

# The replaced word, as a pattern, with the one to use. Where a word has another, plain sense, the pattern names the
# sense that was replaced; names in double quotes are keys of files, which stay.
WORDS = {
    r"\bsymbols?\b(?! font)": "tokens",
    r"\bfloors?\b(?!\()": "lower bound",
    r"\brooms?\b": "buffer, capacity (of a cache); package (of the source tree)",
    r"(?<!\")\bsettings?\b(?!\")": "config",
    r"(?<![.\w\"])origins?\b": "provenance",
    r"\bwho(ever)? (stops|lacks|asks|sees|compiles|watches)\b": "name the actor",
    r"\bloops? on (itself|themselves)\b": "self-loop",
    r"\brung|(?<!her )ladder\b": "step, or the name of the variant",
    r"\b(does|do|would|that) (not )?feels?\b": "depends on, has an effect on",
    r"\bkind to\b": "say what happens",
    r"\bLayerRun|LiveModel\b": "Trace, the adapter",
    r"\bhow it lies|lies? as\b": "layout of the tensor in memory",
}
PATTERN = re.compile("|".join(f"(?:{word})" for word in WORDS), re.IGNORECASE)


def found(paths: list[Path]) -> Iterator[str]:
    """``path:line: word`` for each replaced word."""
    for path in sorted(file for one in paths for file in ([one] if one.is_file() else one.rglob("*"))):
        if path.suffix in KINDS:
            for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                for word in PATTERN.finditer(line):
                    yield f"{path.relative_to(ROOT)}:{number}: {word[0]}"


if __name__ == "__main__":
    lines = list(found([Path(name).resolve() for name in sys.argv[1:]] or USUAL))
    print(*lines, sep="\n")
    print(f"{len(lines)} replaced words", file=sys.stderr)
    sys.exit(bool(lines))
