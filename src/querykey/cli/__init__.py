"""The command line: parsing, printing and exit codes. One file per command; `options` holds what they share.

No command imports torch before its arguments are checked.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and give its exit code; see `querykey.cli.commands`."""
    try:
        from querykey.cli.commands import run

        return run(arguments)
    except KeyboardInterrupt:  # while modules are imported
        print("querykey: stopped", file=sys.stderr)
        return 130
