"""All commands behind one parser, and the exit code of each outcome.

0 done; 1 a fault of the program; 2 input that cannot be used, with one sentence; 130 stopped by the user.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from types import ModuleType

import querykey
from querykey.cli import bench, compare, convert, cost, explore, inspect, report
from querykey.cli.options import Parser
from querykey.extras import MissingExtra

COMMANDS = (compare, report, cost, bench, inspect, convert, explore)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ± still shows the table
    parser = _parser()
    chosen = parser.parse_args(arguments)
    if "command" not in chosen:
        parser.error("no command is given, expected one of " + ", ".join(map(_name, COMMANDS)))
    try:
        code: int = chosen.command(chosen)
        sys.stdout.flush()  # a reader that has left is noticed here
        return code
    except (ValueError, MissingExtra) as error:
        print(f"querykey: {' '.join(str(error).split())}", file=sys.stderr)  # libraries quote over several lines
        return 2
    except BrokenPipeError:  # the reader has seen enough, as in `querykey … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"querykey: {error.strerror or error}{where}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"querykey: {chosen.stopped}", file=sys.stderr)
        return 130


def _parser() -> Parser:
    parser = Parser(
        prog="querykey", description=querykey.__doc__, epilog="querykey COMMAND --help shows options and examples."
    )
    parser.add_argument("--version", action="version", version=f"querykey {querykey.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")
    for command in COMMANDS:
        command.add_to(commands)
    return parser


def _name(command: ModuleType) -> str:
    return command.__name__.rpartition(".")[2]
