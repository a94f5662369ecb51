"""Sentences of reports in several languages, from a TOML file of the package that prints them.

[worse]                                   say = Words("study", "zh")
en = "worse on {tasks}"                   say("worse", tasks=say.join(["cycle", "shift"]))
zh = "在 {tasks} 上更差"
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Literal, get_args

Language = Literal["en", "zh"]


class Words:
    """The sentences of a package, such as "study", in one language.

    Raises:
        ValueError: if the language is unknown.
    """

    def __init__(self, package: str, language: Language = "en") -> None:
        if language not in get_args(Language):
            raise ValueError(f"the language is {language!r}, expected one of {', '.join(get_args(Language))}")
        self.package, self.language = package, language

    def __call__(self, key: str, /, **values: object) -> str:
        """The sentence of this key with its places filled in."""
        said = _catalogue(self.package)[key][self.language].format(**values)
        said = said.replace(" %", "%") if self.language == "zh" else said
        return said.replace("） ", "）")  # a full-width bracket brings its own space

    def __contains__(self, key: str) -> bool:
        return key in _catalogue(self.package)

    def join(self, names: Sequence[str]) -> str:
        """`a, b and c`, `a、b 和 c`."""
        comma, last = (", ", " and ") if self.language == "en" else ("、", " 和 " if "".join(names).isascii() else "和")
        return last.join([comma.join(names[:-1]), names[-1]] if len(names) > 1 else names)


@cache
def _catalogue(package: str) -> dict[str, dict[str, str]]:
    return tomllib.loads(files(f"querykey.{package}").joinpath("words.toml").read_text("utf-8"))
