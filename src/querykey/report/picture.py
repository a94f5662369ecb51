"""A matplotlib figure as an SVG file that stands alone, in light and in dark.

Text stays text. What is drawn in `INK` takes the colour of the page's text, and the colour of a design from
`figures.palette` its shade for the scheme. The same data give the same bytes.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from html import escape
from io import StringIO
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from querykey.report.figures import COLOURS

INK = COLOURS[0].light
_PAPER = ("#ffffff", "#0d1117")
_STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "querykey",
    "font.family": "DejaVu Sans",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
} | dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK)


def picture(title: str, draw: Callable[[], Figure]) -> str:
    """What `draw` gives, as the text of an SVG file; the title is for those who cannot see it."""
    with matplotlib.rc_context(_STYLE):
        written = StringIO()
        draw().savefig(written, format="svg", transparent=True)
    svg = written.getvalue()
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    body = _body(svg[svg.index(">", box.end()) + 1 :], title)
    schemes = [
        "".join(f"--d{n}:{getattr(colour, scheme)};" for n, colour in enumerate(COLOURS)) + f"--paper:{paper}"
        for scheme, paper in zip(("light", "dark"), _PAPER, strict=True)
    ]
    style = (
        "svg{font-family:system-ui,'Segoe UI',Helvetica,Arial,sans-serif;stroke-linejoin:round;stroke-linecap:butt;"
        f"{schemes[0]}}}@media(prefers-color-scheme:dark){{svg{{{schemes[1]}}}}}"
    )
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {box[0]} role="img" aria-label="{escape(title)}">'
    ground = '<rect style="fill:var(--paper)" width="100%" height="100%"/>'
    return f"{opening}\n<style>{style}</style>\n{ground}{body}\n"


def _body(body: str, title: str) -> str:
    """Without metadata, style sheet and needless ids; colours of the palette become those of the scheme."""
    body = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r" font-family: [^;\"]*;?", "", body.replace("xlink:href", "href"))
    for number, colour in enumerate(COLOURS):
        body = body.replace(colour.light, f"var(--d{number})")
    prefix = f"f{hashlib.sha256((title + body).encode()).hexdigest()[:8]}-"
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', body))
    body = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}{m[1]}"' if m[1] in used else "", body)
    body = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}", body)
    body = re.sub(r'( d="[^"]*")', lambda m: re.sub(r"(\.\d\d)\d+", r"\1", m[1]), body)
    return re.sub(r"\s*\n\s*", "\n", body).strip()
