"""What the highest score of one head can express, by the kind of its score matrix: exact bounds, with reasons.

Let s_ij = q_i · k_j be the scores of n tokens and say that i chooses the j with the highest s_ij, alone. A relation
made of directed cycles of c tokens, each to choose the next, is met in full by some head (fraction 1) or fails at one
token of each cycle at least (fraction (c − 1)/c). All bounds are attained, given enough dimensions.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal, NamedTuple

Kind = Literal["identity", "swap", "3-cycles", "n-cycle"]
Scores = Literal["equal norms", "psd", "symmetric", "general"]


class Ceiling(NamedTuple):
    """The largest fraction of tokens whose choice can be right, and why."""

    fraction: Fraction
    reason: str


def argmax_ceiling(kind: Kind, length: int, scores: Scores, selfmask: bool = False) -> Ceiling:
    """The ceiling of one head on a relation of `length` tokens.

    `scores` is what is known of the matrix s: "general" (separate queries and keys, or a full core), "symmetric"
    (one matrix and a signed or symmetric core), "psd" (one matrix: positive semidefinite), "equal norms" (one matrix
    and keys of equal norm, as with the cosine; also the l2 similarity). With `selfmask` no token may choose itself.
    """
    cycle = cycle_length(kind, length)
    if cycle == 1:
        return Ceiling(Fraction(0), "no token may choose itself") if selfmask else Ceiling(Fraction(1), _IDENTITY)
    if scores == "general":
        return Ceiling(Fraction(1), "s_ij says nothing of s_ji, so every token can choose as it likes")
    if scores == "equal norms" and not selfmask:
        return Ceiling(Fraction(0), "s_ij ≤ s_ii, so every token chooses itself")
    if scores == "psd" and not selfmask:
        return Ceiling(Fraction(cycle - 1, cycle), _PSD)
    return Ceiling(Fraction(1), _PAIR) if cycle == 2 else Ceiling(Fraction(cycle - 1, cycle), _SYMMETRIC)


def cycle_length(kind: Kind, length: int) -> int:
    """Tokens in each cycle of the relation."""
    return {"identity": 1, "swap": 2, "3-cycles": 3, "n-cycle": length}[kind]


_IDENTITY = "with orthogonal keys every token chooses itself"
_PAIR = "s_ij = s_ji, so two tokens can choose each other"
_PSD = (
    "where i chooses j, s_ii < s_ij ≤ √(s_ii s_jj), so s_jj > s_ii: along a path of choices the norm of the key grows, "
    "and no cycle closes"
)
_SYMMETRIC = (
    "where i chooses j and j chooses k ≠ i, s_ij = s_ji < s_jk: along a path of choices the score grows, and no cycle "
    "of more than two closes"
)
