"""What the pages of reports share: rules for templates, the style sheet `style.css` and the script `page.js`.

A page is one file that needs nothing beside itself, so both go into it.
"""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from querykey.report.figures import COLOURS


def environment(package: str) -> Environment:
    """For the templates of one package, such as "study": a name that is not given is an error, and all text is escaped.

    A template says ``{{ stylesheet }}`` for the common style and ``{{ script }}`` for the common script.
    """
    found = Environment(
        loader=PackageLoader(f"querykey.{package}", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    own = files("querykey").joinpath("report")
    found.globals["stylesheet"] = Markup(_colours() + own.joinpath("style.css").read_text("utf-8"))
    found.globals["script"] = Markup(own.joinpath("page.js").read_text("utf-8"))
    return found


def _colours() -> str:
    """The colours of designs as variables, and a class for each."""
    light, dark = (
        " ".join(f"--d{n}: {getattr(colour, scheme)};" for n, colour in enumerate(COLOURS))
        for scheme in ("light", "dark")
    )
    classes = " ".join(f".d{n} {{ color: var(--d{n}); }}" for n in range(len(COLOURS)))
    return f":root {{ {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n{classes}\n"
