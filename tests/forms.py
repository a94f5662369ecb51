"""The bilinear form of a sample of queries and keys, from its definition."""

import torch
from torch import Tensor

from querykey.bilinear import BilinearForm


def form_of_sample(q: Tensor, k: Tensor) -> BilinearForm:
    """Of (…, tokens, head_dim) each, taken before any rotation; as many heads of keys as of queries."""
    both = torch.cat([q, k], -1)
    mean = both.mean(-2)
    centred = both - mean.unsqueeze(-2)
    return BilinearForm.from_covariance(centred.mT @ centred / q.shape[-2], mean)
