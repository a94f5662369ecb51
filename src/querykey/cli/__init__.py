"""The command line: parsing, printing, exit codes; nothing else. One file per command.

Exit codes: 0 done; 1 a fault of ours; 2 input that cannot be used, said in a sentence; 130 stopped by the user.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

import querykey
from querykey.cli import bench, compare, cost, explore, inspect, report
from querykey.extras import MissingExtra


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that has no ± still gets its table
    parser = _parser()
    chosen = parser.parse_args(arguments)
    try:
        command: Callable[[argparse.Namespace], int] = chosen.command
        code = command(chosen)
        sys.stdout.flush()  # or a reader that has left would be noticed too late
        return code
    except (ValueError, MissingExtra) as error:
        print(f"querykey: {' '.join(str(error).split())}", file=sys.stderr)  # libraries quote over several lines
        return 2
    except BrokenPipeError:  # as in `querykey … | head`, whose reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        print(f"querykey: {error.strerror or error}{where}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("querykey: stopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="querykey", description=querykey.__doc__)
    parser.add_argument("--version", action="version", version=f"querykey {querykey.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (compare, report, cost, bench, inspect, explore):
        command.add_to(commands)
    return parser
