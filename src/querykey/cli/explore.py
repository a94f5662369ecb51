"""querykey explore: a page that shows what happens to attention heads if queries and keys share one matrix."""

from __future__ import annotations

import argparse
from typing import Any

from querykey.cli.options import add_command, output_file, reading
from querykey.explorer.names import known_or_elsewhere
from querykey.extras import needs
from querykey.spelling import existing_or_repository

EXAMPLES = {
    "querykey explore cycle": "a task that one head cannot do with W_Q = W_K",
    "querykey explore ./model --text 'The cat sat.'": "a checkpoint of yours",
    "querykey explore ./half --against ./model": "what querykey convert made of a model, beside that model",
    "querykey explore runs/why --export page.html": "a run of compare as one file",
}

MOST_PORT = 65_535


def add_to(commands: Any) -> None:
    """The command and its options."""
    about = "open a page that shows what happens to attention heads if queries and keys share one matrix"
    parser = add_command(commands, "explore", about, _run, EXAMPLES)
    parser.add_argument(
        "model",
        nargs="?",
        type=reading(known_or_elsewhere),
        metavar="MODEL",
        help="a run of compare, a checkpoint folder, a repository on the Hub, or cycle, cycle-tied, bytes, minilm "
        "(default: cycle, a small model that is trained on first use)",
    )
    parser.add_argument(
        "--against",
        type=reading(existing_or_repository),
        metavar="ORIGINAL",
        help="the original of a converted MODEL, shown beside it (default: the one that its config.json names, if it "
        "is still there)",
    )
    parser.add_argument("--text", metavar="TEXT", help="what to show first")
    parser.add_argument(
        "--port", type=reading(_port), default=8420, metavar="N", help="or the next free one (default: 8420)"
    )
    parser.add_argument(
        "--export", type=output_file, metavar="FILE.html", help="write the page as one file that needs no network"
    )
    parser.add_argument("--no-browser", action="store_true", help="print the address, open nothing")
    parser.add_argument("--revision", metavar="NAME", help="branch, tag or commit of a repository")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the code that a checkpoint brings")


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > MOST_PORT:
        raise ValueError(f"expected a port from 0 to {MOST_PORT:,}, not {text!r}")
    return int(text)


def _run(chosen: argparse.Namespace) -> int:
    with needs("explore"):
        from querykey.explorer.open import export, show
    given = {"text": chosen.text, "revision": chosen.revision, "trust_remote_code": chosen.trust_remote_code}
    given |= {"against": chosen.against}
    if chosen.export:
        print(f"page: {export(chosen.model, chosen.export, **given)}")
    else:
        show(chosen.model, port=chosen.port, browse=not chosen.no_browser, **given)
    return 0
