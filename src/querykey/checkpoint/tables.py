"""From rows of stored weights to the matrices of the heads."""

from __future__ import annotations

from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

from querykey.checkpoint.headmap import CheckpointError, Norm, Projection, Rows
from querykey.checkpoint.parameters import Parameters


class Tables:
    """The rows that some projections need, each read once, all vectors, and the matrices put together from them."""

    def __init__(self, parameters: Parameters, projections: list[Projection], dtype: torch.dtype | None) -> None:
        wanted: dict[tuple[str, bool], list[Int[Tensor, " n"]]] = {}
        vectors: set[str] = set()
        for part in (part for projection in projections for part in projection.every_part()):
            wanted.setdefault((part.weight, part.transposed), []).append(part.rows)
            vectors |= set(part.parameters) - {part.weight}
        self.rows = {key: torch.cat(several).unique() for key, several in wanted.items()}
        self.content = {key: parameters.rows(key[0], rows, columns=key[1]) for key, rows in self.rows.items()}
        self.dtype = dtype or self._stored([part for role in projections for part in role.every_part()])
        self.vectors = {name: parameters.rows(name, None).flatten().to(self.dtype) for name in vectors}

    def heads(
        self, projection: Projection
    ) -> tuple[Float[Tensor, "heads dim size"], Float[Tensor, "heads size"] | None]:
        """W and b of a projection, per head."""
        W, b = self._matrix(projection)
        W = W.view(projection.heads, projection.size, -1).transpose(1, 2)
        return W, None if b is None else b.view(projection.heads, projection.size)

    def _stored(self, parts: list[Rows]) -> torch.dtype:
        """The type of the weights, but float32 at least where they are multiplied with something."""
        stored = reduce(torch.promote_types, {values.dtype for values in self.content.values()})
        plain = all(not part.norm and not part.inner and bool((part.scale == 1).all()) for part in parts)
        return stored if plain else torch.promote_types(stored, torch.float32)

    def _matrix(self, projection: Projection) -> tuple[Float[Tensor, "n dim"], Float[Tensor, " n"] | None]:
        """W and b of a projection, a row per channel."""
        parts = [(part.at, *self._part(part)) for part in projection.parts]
        if len(parts) == 1:  # whose channels are all, in order
            return parts[0][1:]
        W = parts[0][1].new_empty(projection.heads * projection.size, parts[0][1].shape[1])
        b = W.new_zeros(len(W)) if any(bias is not None for _, _, bias in parts) else None
        for at, weight, bias in parts:
            W[at] = weight
            if b is not None and bias is not None:
                b[at] = bias
        return W, b

    def _part(self, part: Rows) -> tuple[Float[Tensor, "n dim"], Float[Tensor, " n"] | None]:
        W = self._pick(part.weight, part.transposed, part.rows)
        added = [self.vectors[bias.name][bias.places] for bias in part.biases]
        b = torch.stack(added).sum(0) if added else None
        if part.inner:
            inner, inner_bias = self._matrix(part.inner)
            if inner_bias is not None:
                b = W @ inner_bias if b is None else W @ inner_bias + b
            W = W @ inner
        if part.norm and part.gain is not None:
            W, b = self._behind(part.norm, part.gain, W, b)
        if not bool((part.scale == 1).all()):
            W, b = W * part.scale.to(W)[:, None], None if b is None else b * part.scale.to(b)
        return W, b

    def _pick(self, name: str, columns: bool, rows: Int[Tensor, " n"]) -> Float[Tensor, "n size"]:
        held, values = self.rows[name, columns], self.content[name, columns]
        return (values if held.equal(rows) else values[torch.searchsorted(held, rows)]).to(self.dtype)

    def _behind(
        self, norm: Norm, gain: Int[Tensor, " n"], W: Float[Tensor, "n dim"], b: Float[Tensor, " n"] | None
    ) -> tuple[Float[Tensor, "n dim"], Float[Tensor, " n"] | None]:
        """W and b as they are behind a normalisation, but for its division by the rms."""
        if norm.centred:
            W, b = _centred(W, norm), None if b is None else _centred(b, norm)
        factor = W.new_tensor(norm.offset).expand(len(W))
        if norm.weight:
            factor = norm.offset + norm.slope * self.vectors[norm.weight][gain]
        W, b = W * factor[:, None], None if b is None else b * factor
        if norm.bias:
            b = self.vectors[norm.bias][gain] + (0 if b is None else b)
        return W, b


def _centred(x: Float[Tensor, "n ..."], norm: Norm) -> Float[Tensor, "n ..."]:
    """`x` without its mean over the channels of each statistic."""
    if len(x) % norm.size:
        raise CheckpointError(f"the mean of {norm.weight} runs over channels that are not all of this projection")
    groups = x.reshape(-1, norm.size, *x.shape[1:])
    return (groups - groups.mean(1, keepdim=True)).reshape(x.shape)
