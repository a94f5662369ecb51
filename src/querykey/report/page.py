"""What the pages of reports share: one set of rules for templates, and one stylesheet, `style.css`.

A page is one file that needs nothing beside itself, so the stylesheet goes into it.
"""

from __future__ import annotations

from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def environment(room: str) -> Environment:
    """For the templates of one room, such as "study": whatever is not given is an error, and all is escaped.

    A template says ``{{ stylesheet }}`` for the common rules.
    """
    found = Environment(
        loader=PackageLoader(f"querykey.{room}", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["stylesheet"] = Markup(files("querykey").joinpath("report/style.css").read_text("utf-8"))
    return found
