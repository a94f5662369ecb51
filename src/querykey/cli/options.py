"""Parsers of commands: options from the fields of a dataclass, errors in one sentence, paths that can be written.

    parser = add_command(commands, "bench", "time designs", _run, {"querykey bench": "the default shapes"})
    add_options(parser, Config)         # one option for each field, with its type, its default and its description
    parser.add_argument("--out", type=output_folder)
    ...
    Config(**given(chosen, Config))     # the fields that the user has set

Nothing here imports torch, so that a wrong argument is answered at once.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin

from querykey.spelling import hint, unknown

Run = Callable[[argparse.Namespace], int]


class Parser(argparse.ArgumentParser):
    """A parser that answers a wrong argument with one sentence, the nearest known name included."""

    def error(self, message: str) -> NoReturn:
        """Print the sentence and exit with code 2."""
        more = "" if " --help" in message else f"; see {self.prog} --help"
        self.exit(2, f"querykey: {message}{more}\n")

    def parse_known_args(self, *given: Any, **named: Any) -> tuple[Any, list[str]]:
        """Refuse what the parser does not know here, where the options of the command are at hand."""
        chosen, more = super().parse_known_args(*given, **named)
        if more and not more[0].startswith("-"):
            self.error(f"{more[0]!r} is one argument too many; see {self.prog} --help")
        if more:
            option = more[0].partition("=")[0]
            self.error(f"unknown option {option!r}{hint(option, self._option_string_actions)}; see {self.prog} --help")
        return chosen, more

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            command = isinstance(action, argparse._SubParsersAction)
            sentence = unknown("command" if command else "value", value, map(str, action.choices))
            raise argparse.ArgumentError(None if command else action, sentence)


def add_command(
    commands: Any,
    name: str,
    about: str,
    run: Run,
    examples: Mapping[str, str],
    stopped: str = "stopped",
    **more: Any,
) -> argparse.ArgumentParser:
    """The parser of a new command.

    Args:
        commands: what `add_subparsers` gives.
        name: of the command.
        about: what it does, for both helps.
        run: called with the parsed arguments; gives the exit code.
        examples: command lines with what they do, shown at the end of the help.
        stopped: what is said when the user interrupts the command.
        more: arguments of `argparse.ArgumentParser`.
    """
    lines = [f"  {line}\n      {what}" for line, what in examples.items()]
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        description=about[0].upper() + about[1:] + ".",
        epilog="\n".join(["examples:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **more,
    )
    parser.set_defaults(command=run, stopped=stopped)
    return parser


def add_options(parser: Any, source: Callable[..., Any], without: Iterable[str] = ()) -> None:
    """One option for each field of a dataclass, or for each argument of a function.

    Types come from the annotations: numbers, flags, literals (as choices), classes with a method `parse`, and tuples of
    these. Help comes from the section "Args" of the docstring, with the default.
    """
    about = described(source)
    for name, parameter in inspect.signature(source).parameters.items():
        if name in without:
            continue
        kind = _kind(parameter.annotation, vars(sys.modules[source.__module__]))
        words: dict[str, Any] = {
            "dest": name,
            "default": argparse.SUPPRESS,
            "help": about[name] + _default(parameter.default),
        }
        if kind is bool:
            words["action"] = "store_true"
        else:
            many = get_origin(kind) in (tuple, Sequence)
            words |= _reader(get_args(kind)[0] if many else kind) | ({"nargs": "+"} if many else {})
            words["required"] = parameter.default is parameter.empty
        parser.add_argument(f"--{name.replace('_', '-')}", **words)


def add_format(parser: argparse.ArgumentParser, *formats: str) -> None:
    """The option ``--format`` of the standard output; the first is the default."""
    parser.add_argument(
        "--format", choices=formats, default=formats[0], metavar="NAME",
        help=f"standard output: {', '.join(formats)} (default: {formats[0]})",
    )  # fmt: skip


def given(chosen: argparse.Namespace, source: Callable[..., Any]) -> dict[str, Any]:
    """The fields or arguments of `source` that were set on the command line; lists are tuples."""
    names = inspect.signature(source).parameters
    found = {name: value for name, value in vars(chosen).items() if name in names}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items()}


def described(source: Callable[..., Any]) -> dict[str, str]:
    """The descriptions in the section "Args" of a docstring, by name; ``a, b: text`` describes both."""
    section = inspect.cleandoc(source.__doc__ or "").partition("Args:\n")[2]
    section = re.split(r"^\S", section, maxsplit=1, flags=re.MULTILINE)[0]
    found: dict[str, str] = {}
    for entry in re.split(r"\n(?=\S)", dedent(section).strip()):
        names, _, text = entry.partition(":")
        plain = " ".join(text.replace("`", "").replace("%", "%%").split()).removesuffix(".")
        found |= {name.strip(): plain for name in names.split(",")}
    return found


def output_folder(text: str) -> Path:
    """A folder that exists or can be made, and that can be written to; nothing is left in it."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a file, expected a folder; choose another path")
    _try_to_write(text, path)
    return path


def output_file(text: str) -> Path:
    """A file that can be written; one that is there will be replaced."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a folder, expected a file; add a name to the path")
    _try_to_write(text, path.parent)
    return path


def _try_to_write(text: str, folder: Path) -> None:
    """A temporary file in the nearest folder that is there."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    try:
        tempfile.TemporaryFile(dir=there).close()
    except OSError as error:
        raise argparse.ArgumentTypeError(
            f"{text} cannot be written: {error.strerror or error}: {there}; choose another path"
        ) from None


def reading(read: Callable[[str], Any], expected: str = "") -> Callable[[str], Any]:
    """`read` for argparse, with what was expected, or else the message of its ValueError, as the parser's error."""

    def read_or_refuse(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"expected {expected}, not {text!r}" if expected else str(error)) from None

    return read_or_refuse


whole_number = reading(int, "a whole number")
real_number = reading(float, "a number")


def _kind(annotation: Any, names: Mapping[str, Any]) -> Any:
    """The type that an annotation stands for, without None; `str` if only type checkers know its names."""
    try:
        kind = eval(annotation, dict(names)) if isinstance(annotation, str) else annotation
    except NameError:
        return str
    optional = [one for one in get_args(kind) if one is not NoneType]
    return optional[0] if NoneType in get_args(kind) else kind


def _reader(kind: Any) -> dict[str, Any]:
    """How argparse reads one value of this type; of a union, of its first member."""
    if isinstance(kind, UnionType):
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind), "metavar": "NAME"}
    if kind in (int, float):
        return {"type": whole_number if kind is int else real_number, "metavar": "N"}
    if hasattr(kind, "parse"):
        return {"type": reading(kind.parse), "metavar": kind.__name__.upper()}
    return {"metavar": "NAME"}


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty or value is None or value is False or value == ():
        return ""
    return f" (default: {' '.join(map(str, value)) if isinstance(value, tuple) else value})"
