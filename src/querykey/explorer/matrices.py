"""Which matrices make queries, keys and values, as trained and after an intervention, and what they imply.

| scores | implied for the scores | cycles of i → argmax_j |
|---|---|---|
| separate | any | any length |
| core | any: one matrix and a full core C, q = (xW) C | any length |
| symmetric | s_ij = s_ji | at most 2 |
| tied | s_ij = k_i · k_j | 1 |
"""

from __future__ import annotations

from typing import Any, Literal

from querykey.design import Design
from querykey.explorer.subjects import Shown

Scores = Literal["separate", "core", "symmetric", "tied"]


def matrices(intervention: Shown, design: Design) -> dict[str, str]:
    """The product that gives each role from x, as HTML, such as ``{"q": "W<sub>Q</sub>", …}``.

    Of a converted model, `design` says which roles read the latent x B.
    """
    found = {role: _name(part) for part in design.parts for role in part if role != "x"}
    shared = _name(("q", "k", *(["v"] if design.sharing == "q=k=v" else [])))
    if design.core:
        found["q"] += " C"
    match intervention:
        case "copied":
            found["k"] = found["q"]
        case "tied":
            found["q"] = found["k"] = shared
        case "signed" | "core":
            found |= {"q": f"{shared} C", "k": shared}
        case "key_value":
            found |= {"k": f"{_name(('k', 'v'))} A", "v": f"{_name(('k', 'v'))} B"}
        case "converted":
            found |= {role: f"B A<sub>{role.upper()}</sub>" for part in design.parts if len(part) > 1 for role in part}
    return found


def scores(intervention: Shown, design: Design) -> Scores:
    """What the scores are bound to be; see the table above."""
    bound: dict[str, Scores] = {"copied": "tied", "tied": "tied", "signed": "symmetric", "core": "core"}
    bound |= {"converted": "separate"}  # whatever shares a latent has a matrix of its own behind it
    if intervention in bound:
        return bound[intervention]
    if not design.shares("q", "k"):
        return "separate"
    return {None: "tied", "full": "core"}.get(design.core, "symmetric")  # type: ignore[return-value]


def described(intervention: Shown, design: Design) -> dict[str, Any]:
    """An intervention for the page."""
    return {"name": intervention, "matrices": matrices(intervention, design), "scores": scores(intervention, design)}


def _name(part: tuple[str, ...]) -> str:
    """W with the roles that share it; I for the input itself."""
    return "I" if "x" in part else f"W<sub>{''.join(part).upper()}</sub>"
