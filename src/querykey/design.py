"""A design says which of the three projections of attention are shared, in one word.

    q,k,v    q=k,v    q,k=v    q=v,k    q=k=v

are all the partitions of the three roles. A part may also hold `x`, the input itself, unprojected: `q=k=x,v` takes
the input as query and as key. Options follow, each with a plus sign: `q=k,v+core=full+selfmask`.

A design has no sizes. `Layout.of` takes a design and sizes, and refuses impossible combinations.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple, get_args

from querykey.spelling import unknown

Similarity = Literal["dot", "cosine", "l2"]
Core = Literal["signed", "symmetric", "full"]

ROLES = ("q", "k", "v")
PARTITIONS = ("q,k,v", "q=k,v", "q,k=v", "q=v,k", "q=k=v")


class DesignError(ValueError):
    """A design that cannot be read, or that cannot be."""


@dataclass(frozen=True)
class Design:
    """Which projections are shared, and the options beside it. Hashable; equal whenever the spellings mean the same.

    Args:
        sharing: the partition of q, k and v (and x, the unprojected input), such as ``"q=k,v"``.
        core: only where q = k: a learned matrix C per query head, ``q = (xW) C`` and ``k = xW``. ``"signed"`` is
            diagonal, initially ±1 alternating; ``"symmetric"`` and ``"full"`` are initially N(0, 1/k).
        selfmask: after all other masks, a position may not attend to itself unless nothing else is left
            (Kitaev et al., 2001.04451, mask it so for shared queries and keys).
        similarity: ``"dot"`` is q·k/√d_k; ``"cosine"`` τ·cos(q, k) with τ learned per head, initially √d_k;
            ``"l2"`` −‖q − k‖²/(2√d_k) (Kim et al., 2006.04710).
        qknorm: RMS norm of queries and keys over the head size, with learned gains (Henry et al., 2010.04245).
        qk_dim: head size of queries and keys where it differs from that of values.
        kv_heads: number of key and value heads (grouped queries, Ainslie et al., 2305.13245); 1 is multi-query.
        latent: width R of a latent ``c = x B`` that the shared roles read, each through a matrix of its own:
            ``"q,k=v+latent=192"`` is ``k = c A_k``, ``v = c A_v``, and a cache keeps c (as in DeepSeek-V2, 2405.04434,
            without its separate rotary part).
        xsa: the component along a position's own value is taken out of each head's result, ``y − (y·v) v / ‖v‖²``
            (exclusive self-attention, Zhai, 2603.09078).
        qkscale: factor on the initial W_Q and W_K, not on a core.
        tiedstart: separate W_Q and W_K that start with the same values, as a shared weight would.

    Raises:
        DesignError: if a field is not one of its values.
    """

    sharing: str = "q,k,v"
    core: Core | None = None
    selfmask: bool = False
    similarity: Similarity = "dot"
    qknorm: bool = False
    qk_dim: int | None = None
    kv_heads: int | None = None
    latent: int | None = None
    xsa: bool = False
    qkscale: float = 1.0
    tiedstart: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "sharing", _canonical(self.sharing))
        _check_choice("core", self.core, (None, *get_args(Core)))
        _check_choice("similarity", self.similarity, get_args(Similarity))
        for name in ("qk_dim", "kv_heads", "latent"):
            value = getattr(self, name)
            if value is not None and not (type(value) is int and value > 0):
                raise DesignError(f"{name} must be a positive whole number, not {value!r}")
        if not (math.isfinite(self.qkscale) and self.qkscale > 0):
            raise DesignError(f"qkscale must be a positive number, not {self.qkscale!r}")
        object.__setattr__(self, "qkscale", float(self.qkscale))

    @classmethod
    def parse(cls, text: str | Design) -> Design:
        """The design that a word such as ``"q=k,v+core=full"`` spells; a `Design` is given back as it is.

        Raises:
            DesignError: if the word is not a partition of q, k and v followed by known options, each once.
        """
        if isinstance(text, Design):
            return text
        sharing, *words = "".join(text.lower().split()).split("+")
        fields: dict[str, Any] = {}
        try:
            for word in words:
                name, value = _read_option(word)
                if name in fields:
                    raise DesignError(f"{name} is given twice")
                fields[name] = value
            return cls(sharing, **fields)
        except DesignError as error:
            raise DesignError(f"cannot read the design {text!r}: {error}") from None

    def __str__(self) -> str:
        return self.sharing + "".join("+" + word for word in self._option_words())

    def _option_words(self) -> list[str]:
        words = []
        for field in dataclasses.fields(self)[1:]:
            value = getattr(self, field.name)
            if value == field.default:
                continue
            if field.name == "similarity":
                words.append(value)
            elif value is True:
                words.append(field.name)
            else:
                words.append(f"{field.name}={_plain_number(value)}")
        return words

    @cached_property
    def parts(self) -> tuple[tuple[str, ...], ...]:
        """The partition: for ``q=k,v`` it is ``(("q", "k"), ("v",))``."""
        return tuple(tuple(part.split("=")) for part in self.sharing.split(","))

    def shares(self, first: str, second: str) -> bool:
        """Whether two of the roles q, k, v and the input x are one tensor. Roles that read one latent are not."""
        return any(first in part and second in part for part in self.parts if part != self.latent_roles)

    @cached_property
    def latent_roles(self) -> tuple[str, ...]:
        """The roles that read the latent, or none: for ``q,k=v+latent=192`` they are ``("k", "v")``."""
        shared = (part for part in self.parts if self.latent is not None and len({*part} & {*ROLES}) > 1)
        return next(shared, ())


def check_combination(design: Design, *, rotary: bool = False) -> None:
    """Raise for a combination of options that is impossible at any size.

    Raises:
        DesignError: if the options exclude each other.
    """
    tied = design.shares("q", "k")
    with_values = design.shares("q", "v") or design.shares("k", "v")
    unprojected = {role for role in ("q", "k") if design.shares(role, "x")}
    _check_latent(design)
    if design.tiedstart and (tied or with_values or unprojected or design.latent or design.kv_heads):
        raise DesignError(
            "tiedstart copies the initial W_Q to W_K, which must be two matrices of one size that share with nothing; "
            "write q,k,v without latent and kv_heads, or leave tiedstart out"
        )
    if design.core and not tied:
        raise DesignError("a core acts where queries and keys are shared; write q=k, or leave the core out")
    if design.core == "symmetric" and rotary:
        raise DesignError(
            "a symmetric core does not commute with rotary positions, so its scores would not be symmetric; "
            "take core=signed or core=full"
        )
    if design.kv_heads and design.shares("q", "v") and not tied:
        raise DesignError("q = v gives as many value heads as query heads, so kv_heads cannot be chosen")
    if design.kv_heads and tied and design.core != "full":
        raise DesignError(
            "q = k with kv_heads needs core=full: each query head then has its own core over its group's keys"
        )
    if design.qk_dim and with_values:
        raise DesignError("queries or keys that are shared with values have their head size; leave qk_dim out")
    if design.qkscale != 1.0:
        if design.similarity == "cosine":
            raise DesignError("cosine similarity ignores the scale of W_Q and W_K; leave qkscale out")
        if with_values:
            raise DesignError("qkscale would also scale the values that share the weight; leave it out")
        if unprojected == {"q", "k"}:
            raise DesignError("qkscale has no weight to scale where queries and keys are the input; leave it out")


def _check_latent(design: Design) -> None:
    if design.latent is None:
        return
    if not design.latent_roles:
        raise DesignError("a latent is read by roles that share; write q=k, k=v or q=k=v, or leave the latent out")
    if "x" in design.latent_roles:
        raise DesignError("a latent is a projection of the input, so its roles cannot be x; leave x or the latent out")
    if design.core:
        raise DesignError("queries and keys that read a latent have a matrix each already; leave the core out")


def _canonical(sharing: str) -> str:
    """Roles within a part in the order q, k, v, x, and parts by their first role."""
    order = (*ROLES, "x")
    parts = [part.split("=") for part in sharing.split(",")]
    named = [role for part in parts for role in part]
    expected = f"the roles q, k and v once each, such as {', '.join(map(repr, PARTITIONS))}"
    for role in named:
        if role not in order:
            raise DesignError(f"{role!r} is no role; expected {expected}, and x for the unprojected input")
    for role in ROLES:
        if named.count(role) != 1:
            raise DesignError(f"{role} is named {named.count(role)} times; expected {expected}")
    if named.count("x") > 1 or ["x"] in parts:
        raise DesignError("x, the unprojected input, stands once and beside a role, such as 'q=k=x,v'")
    ordered = sorted(sorted(map(order.index, part)) for part in parts)
    return ",".join("=".join(order[role] for role in part) for part in ordered)


class _Option(NamedTuple):
    """How an option is written: the field that it sets, how its value is read, or the value of a bare word, and an
    example of a value.
    """

    field: str
    value: Callable[[str], Any] | Any
    example: str = ""


_OPTIONS = {
    "core": _Option("core", str, "full"),
    "selfmask": _Option("selfmask", True),
    "cosine": _Option("similarity", "cosine"),
    "l2": _Option("similarity", "l2"),
    "qknorm": _Option("qknorm", True),
    "qk_dim": _Option("qk_dim", int, "16"),
    "kv_heads": _Option("kv_heads", int, "2"),
    "latent": _Option("latent", int, "192"),
    "xsa": _Option("xsa", True),
    "qkscale": _Option("qkscale", float, "0.25"),
    "tiedstart": _Option("tiedstart", True),
}


def _read_option(word: str) -> tuple[str, Any]:
    """`core=full` -> ("core", "full"); `selfmask` -> ("selfmask", True)."""
    name, equals, text = word.partition("=")
    if name not in _OPTIONS:
        raise DesignError(unknown("option", name, _OPTIONS))
    field, value, example = _OPTIONS[name]
    if not example:
        if equals:
            raise DesignError(f"{name} takes no value, but came with {text!r}")
        return field, value
    if not text:
        raise DesignError(f"{name} needs a value, such as {name}={example}")
    try:
        return field, value(text)
    except ValueError:
        raise DesignError(f"{name} needs a {'whole ' * (value is int)}number, not {text!r}") from None


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        known = ", ".join(str(choice) for choice in choices if choice is not None)
        raise DesignError(f"{name} must be one of {known}, not {value!r}")


def _plain_number(value: object) -> str:
    """0.25 -> "0.25", 2.0 -> "2": the shortest text that reads back as the same number."""
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
