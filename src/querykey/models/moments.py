"""First and second moments of what a layer's heads work with, gathered over batches of text."""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.bilinear import BilinearForm
from querykey.checkpoint import HeadMap
from querykey.models.rotation import rotated
from querykey.models.trace import LayerTrace


class KeyValue(NamedTuple):
    """Of one key head: covariance of `[k v]`, `E[qᵀq]` summed over the query heads that read it, and the means."""

    covariance: Float[Tensor, "both both"]
    query_moment: Float[Tensor, "qk_dim qk_dim"]
    mean_key: Float[Tensor, " qk_dim"]
    mean_value: Float[Tensor, " v_dim"]


class Moments:
    """Of one attention layer: moments of every head's `[q k v]`, before any rotation, and the layer's inputs.

    Layers that share their weights share their moments.
    """

    def __init__(self, layer: HeadMap) -> None:
        self.layer = layer
        self._inputs: list[Tensor] = []
        self._tokens = 0
        self._sum = self._square = torch.zeros(())

    def add(self, trace: LayerTrace) -> None:
        """Add one batch."""
        q, k = (rotated(x, self.layer.rotary, -1) for x in (trace.query, trace.key))
        together = torch.cat([q, k, trace.value], -1).transpose(0, 1).flatten(1, 2).double()  # heads, tokens, sizes
        self._sum = self._sum + together.sum(1)
        self._square = self._square + together.mT @ together
        self._tokens += together.shape[1]
        self._inputs.append(trace.x.flatten(0, -2))

    @property
    def head_dim(self) -> int:
        """Size of a query and of a key."""
        return self.layer.query.size

    @property
    def mean(self) -> Float[Tensor, "heads all"]:
        """Means of `[q k v]`."""
        return self._sum / self._tokens

    @property
    def covariance(self) -> Float[Tensor, "heads all all"]:
        """Of `[q k v]`."""
        mean = self.mean
        return self._square / self._tokens - mean[..., None] * mean[..., None, :]

    def form(self) -> BilinearForm:
        """The heads in the metric of their own queries and keys."""
        both = 2 * self.head_dim
        return BilinearForm.from_covariance(self.covariance[:, :both, :both], self.mean[:, :both])

    def spectrum(self) -> Float[Tensor, " dim"]:
        """Eigenvalues of the covariance of the layer's inputs, descending, with zeros where tokens were too few."""
        x = torch.cat(self._inputs)
        values = torch.linalg.svdvals(x - x.mean(0)).square().double() / len(x)
        return torch.nn.functional.pad(values, (0, x.shape[1] - len(values)))

    def key_value(self, key_head: int) -> KeyValue:
        """What a shared projection of keys and values has to keep for one key head."""
        mine = [head for head, own in enumerate(self.layer.key_head) if own == key_head]
        n, covariance, mean = self.head_dim, self.covariance[mine], self.mean[mine]
        moment = self._square[mine, :n, :n].sum(0) / self._tokens
        return KeyValue(covariance[0, n:, n:], moment, mean[0, n : 2 * n], mean[0, 2 * n :])
