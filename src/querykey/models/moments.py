"""First and second moments of what a layer's heads compute, added up over batches of text."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.bilinear import BilinearForm
from querykey.checkpoint import HeadMap
from querykey.models.rotation import rotated
from querykey.models.trace import LayerTrace


class KeyValue(NamedTuple):
    """What one projection for keys and values has to keep, per key head.

    Covariance and mean of `[k v]`; `E[qᵀq]` and `W_O W_Oᵀ` summed over the query heads that read the key head.
    """

    covariance: Float[Tensor, "kv_heads both both"]
    mean: Float[Tensor, "kv_heads both"]
    query_moment: Float[Tensor, "kv_heads qk_dim qk_dim"]
    output_gram: Float[Tensor, "kv_heads v_dim v_dim"]


class Moments:
    """Of one attention layer: moments of every head's `[q k v]`, before any rotation, and the layer's inputs.

    `W_O` returns the output weights of every head; without it, values count as if it were the identity.
    """

    def __init__(
        self, layer: HeadMap, W_O: Callable[[], Float[Tensor, "heads v_dim dim"] | None] = lambda: None
    ) -> None:
        self.layer = layer
        self.tokens = 0
        self._W_O = W_O
        self._inputs: list[Tensor] = []
        self._sum = self._square = self._norms = torch.zeros(())

    def add(self, trace: LayerTrace) -> None:
        """Add one batch."""
        q, k = (rotated(x, self.layer.rotary, -1) for x in (trace.query, trace.key))
        together = torch.cat([q, k, trace.value], -1).transpose(0, 1).flatten(1, 2).double()  # heads, tokens, sizes
        self._sum = self._sum + together.sum(1).cpu()
        self._square = self._square + (together.mT @ together).cpu()
        self._norms = self._norms + torch.stack([x.norm(dim=-1).double().sum((0, 2)) for x in (q, k)]).cpu()
        self.tokens += together.shape[1]
        self._inputs.append(trace.x.flatten(0, -2).cpu())

    @property
    def head_dim(self) -> int:
        """Size of a query and of a key."""
        return self.layer.query.size

    @property
    def mean(self) -> Float[Tensor, "heads all"]:
        """Means of `[q k v]`."""
        return self._sum / self.tokens

    @property
    def covariance(self) -> Float[Tensor, "heads all all"]:
        """Of `[q k v]`."""
        mean = self.mean
        return self._square / self.tokens - mean[..., None] * mean[..., None, :]

    @property
    def temperature(self) -> Float[Tensor, " heads"]:
        """For each head the factor that makes the cosine of query and key about as large as their scores."""
        query, key = self._norms / self.tokens
        scaling = self.head_dim**-0.5 if self.layer.scaling is None else self.layer.scaling
        found: Tensor = query * key * scaling
        return found

    def form(self) -> BilinearForm:
        """The heads in the metric of their own queries and keys."""
        both = 2 * self.head_dim
        return BilinearForm.from_covariance(self.covariance[:, :both, :both], self.mean[:, :both])

    def spectrum(self) -> Float[Tensor, " dim"]:
        """Eigenvalues of the covariance of the layer's inputs, descending, with zeros where tokens were too few."""
        x = torch.cat(self._inputs)
        values = torch.linalg.svdvals(x - x.mean(0)).square().double() / len(x)
        return torch.nn.functional.pad(values, (0, x.shape[1] - len(values)))

    def key_value(self) -> KeyValue:
        """What one projection for keys and values has to keep."""
        n, groups, W_O = self.head_dim, torch.tensor(self.layer.key_head), self._W_O()
        first = [self.layer.key_head.index(group) for group in range(int(groups.max()) + 1)]
        v = self.mean.shape[1] - 2 * n
        gram = torch.eye(v).expand(len(groups), v, v) if W_O is None else W_O @ W_O.mT

        def summed(heads: Float[Tensor, "heads size size"]) -> Float[Tensor, "kv_heads size size"]:
            return heads.new_zeros(len(first), *heads.shape[1:]).index_add(0, groups, heads)

        moment = self._square[:, :n, :n] / self.tokens
        return KeyValue(self.covariance[first, n:, n:], self.mean[first, n:], summed(moment), summed(gram.double()))
