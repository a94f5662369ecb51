"""Packed sequences: attention within documents, or among the tokens of rows with padding, piece by piece.

(batch, heads, length, size) is cut along its tokens; each piece attends to itself, and padding gives zeros. No mask of
all pairs is made, and nothing is computed between pieces.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

from querykey.attention import masks
from querykey.attention.buffers import Cache
from querykey.attention.checks import Inputs
from querykey.attention.sequence import Span
from querykey.attention.tracing import wants_plain


class Pieces(NamedTuple):
    """Lengths of consecutive pieces of a batch, row after row, and which of them are tokens rather than padding."""

    lengths: list[int]
    tokens: list[bool]


def pieces(call: Inputs, return_weights: bool) -> Pieces | None:
    """The pieces of a call with documents or padding; None where a mask must do.

    Raises:
        ValueError: if the tokens of a document are no neighbours.
    """
    if wants_plain(call.x) or not call.x.numel():
        return None
    batch, length = call.x.shape[:2]
    if call.document is not None:
        found = _runs(call.document.expand(batch, length))
        _check_neighbours(found, length)
        whole = call.key_padding is None
    else:
        assert call.key_padding is not None
        found = _runs(call.key_padding)
        rows = [start // length for start, real in zip(*found, strict=True) if real]
        whole = len(set(rows)) == len(rows)  # else some row has tokens on both sides of padding
    if not whole or return_weights or call.mask is not None:
        return None
    starts, ids = found
    lengths = [end - start for start, end in zip(starts, [*starts[1:], batch * length], strict=True)]
    return Pieces(lengths, [True] * len(ids) if call.document is not None else [bool(real) for real in ids])


def restricted(mask: Tensor | None, document: Tensor | None) -> Tensor | None:
    """`mask` within documents only."""
    if document is None:
        return mask
    return masks.restrict(mask, (document[:, :, None] == document[:, None, :])[:, None])


def own_tokens(
    key_padding: Bool[Tensor, "batch key"], cache: Cache | None, length: int
) -> Bool[Tensor, "batch length"]:
    """Of the last positions, which a step has just added to a cache, the tokens."""
    if cache is None:
        return key_padding
    own = cache.next_positions(length)  # after those of the step
    if isinstance(own, Span):
        return key_padding[:, own.start - length : own.start]
    return key_padding.index_select(1, own - length)


def attend(
    run: Callable[[Tensor, Tensor, Tensor], Tensor],
    together: Callable[[Tensor, Tensor, Tensor, list[int]], Tensor | None],
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pieces: Pieces,
) -> Tensor:
    """``run(q, k, v)`` on each piece that is tokens: (batch, heads, length, size), zeros elsewhere.

    ``together(q, k, v, lengths)`` is asked first for pieces of several lengths, and may give None.
    """
    batch, length = q.shape[0], q.shape[2]
    equal = all(pieces.tokens) and len(set(pieces.lengths)) == 1
    if not equal and (at_once := together(q, k, v, pieces.lengths)) is not None:
        if all(pieces.tokens):
            return at_once
        lengths = torch.tensor(pieces.lengths, device=q.device)
        tokens = torch.tensor(pieces.tokens, device=q.device).repeat_interleave(lengths, output_size=batch * length)
        return at_once.masked_fill(~tokens.view(batch, 1, length, 1), 0.0)
    flat = [tensor.transpose(1, 2).flatten(0, 1) for tensor in (q, k, v)]  # (tokens, heads, size)
    if equal:
        stacked = (tensor.unflatten(0, (len(pieces.lengths), -1)).transpose(1, 2) for tensor in flat)
        out = run(*stacked).transpose(1, 2).flatten(0, 1)
    else:
        parts = zip(*(tensor.split(pieces.lengths) for tensor in flat), strict=True)
        out = torch.cat(
            [
                run(*(tensor.transpose(0, 1).unsqueeze(0) for tensor in part)).squeeze(0).transpose(0, 1)
                if real
                else v.new_zeros(len(part[0]), q.shape[1], v.shape[-1])
                for real, part in zip(pieces.tokens, parts, strict=True)
            ]
        )
    whole: Tensor = out.unflatten(0, (batch, length)).transpose(1, 2)
    return whole


def _runs(ids: Tensor) -> tuple[list[int], list[int]]:
    """Where each run of equal ids starts, counted over all rows one after the other, and its id."""
    edges = torch.ones_like(ids, dtype=torch.bool)
    edges[:, 1:] = ids[:, 1:] != ids[:, :-1]
    starts = edges.flatten().nonzero().flatten()
    return starts.tolist(), ids.flatten()[starts].tolist()


def _check_neighbours(runs: tuple[list[int], list[int]], length: int) -> None:
    seen = set()
    for start, document in zip(*runs, strict=True):
        row, position = divmod(start, length)
        if (row, document) in seen:
            raise ValueError(
                f"the tokens of a document must be neighbours, but document {document} of row {row} starts again at "
                f"position {position}; sort the tokens, or give a mask"
            )
        seen.add((row, document))
