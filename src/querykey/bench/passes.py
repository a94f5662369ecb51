"""The passes that are timed: of a layer, and of its lower bound.

    prefill     forward without a graph
    training    forward, and the gradients of the input and of all weights
    decoding    one new position after `cached` others, without a graph

The lower bound of a pass is its bare matrix products (input, core, output) and PyTorch's stock kernel, each on tensors
that are contiguous in the order that it reads; for decoding, the same for one position and a contiguous cache. A layer
can be faster on a CPU, where blocks of rows, or the products of a single query, beat the stock kernel.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from querykey.attention import masks
from querykey.attention.cache import KVCache
from querykey.attention.layer import SelfAttention
from querykey.bench.case import Case
from querykey.bench.timing import Run
from querykey.layout import Layout


class LayerPass(NamedTuple):
    """A pass of a layer, the kernel that it takes, and the cached bytes per token of a decoding step."""

    run: Run
    backend: str
    cache_bytes: int | None


def of_layer(layer: SelfAttention, x: Tensor, case: Case) -> LayerPass:
    """The pass of a querykey layer over `x`, the input of the case."""
    if not case.decoding:
        leaves = (x, *layer.parameters()) if case.training else ()
        with torch.set_grad_enabled(case.training):
            backend = layer.backend(x)
        return LayerPass(differentiated(lambda: layer(x), leaves), backend, None)
    with torch.no_grad():
        cache = filled(layer, x, case.cached)
        backend = layer.backend(x, cache=cache)
    # Each step starts from a shallow copy, which shares the buffer but not the length: the cache never grows.
    step = torch.no_grad()(lambda: layer(x, cache=copy.copy(cache)))
    return LayerPass(step, backend, cache.nbytes // (case.shape.batch * cache.stored))


def of_lower_bound(layout: Layout, case: Case) -> Run:
    """The bare products and the stock kernel of a design's pass, one after the other."""
    runs = [
        differentiated(partial(function, *tensors), tensors if case.training else ())
        for function, tensors in _parts(layout, case)
    ]

    def run() -> None:
        for one in runs:
            one()

    return run


def differentiated(forward: Callable[[], Tensor], leaves: Iterable[Tensor]) -> Run:
    """A forward pass without a graph if there are no leaves, else one with the gradients of the leaves.

    Gradients are returned, not accumulated in `.grad`: that would cost the lower bound, with its many leaves, more.
    """
    wanted = list(leaves)
    if not wanted:
        return torch.no_grad()(forward)
    direction = torch.randn_like(forward())
    return lambda: torch.autograd.grad(forward(), wanted, direction)


def filled(layer: SelfAttention, x: Float[Tensor, "batch 1 dim"], cached: int) -> KVCache:
    """A cache of that many positions, all of them `x`, whose buffer has capacity for more."""
    cache = KVCache()
    layer(x, cache=cache)
    repeated = {name: tensor.expand(-1, -1, cached - 2, -1) for name, tensor in cache.contents().items()}
    cache.append(layer.window, **repeated)
    layer(x, cache=cache)
    return cache


# The lower bound

_Part = tuple[Callable[..., Tensor], list[Tensor]]  # a function and the tensors that it takes


def _parts(layout: Layout, case: Case) -> list[_Part]:
    rows = case.shape.batch * (1 if case.decoding else case.shape.length)
    projected = sum(heads * size for heads, size in layout.projections.values())
    inner = layout.heads * layout.head_dim
    parts: list[_Part] = [(F.linear, [case.numbers(rows, layout.dim), case.numbers(projected, layout.dim)])]
    if layout.design.core in ("symmetric", "full"):
        size = layout.qk_dim
        parts.append((torch.bmm, [case.numbers(layout.heads, rows, size), case.numbers(layout.heads, size, size)]))
    if layout.ups:
        parts.append((F.linear, [case.numbers(size, layout.latent) for size in _read_latents(layout, case, rows)]))
    parts.append(_kernel(layout, case))
    parts.append((F.linear, [case.numbers(rows, inner), case.numbers(layout.dim, inner)]))
    return parts


def _read_latents(layout: Layout, case: Case, rows: int) -> tuple[int, int]:
    """How many latents are read, and the numbers that are made of each; a cache of latents gives keys alone."""
    sizes = {name: heads * size for name, (heads, size) in layout.ups.items()}
    if case.decoding and "kv" in layout.cached:
        return case.shape.batch * case.seen, sizes["k_up"]
    return rows, sum(sizes.values())


def _kernel(layout: Layout, case: Case) -> _Part:
    """The stock kernel on as many tensors as the design has: roles that share a tensor share it here too."""
    widest = max(layout.qk_dim, layout.head_dim)  # fused kernels take one size for all
    decoding = case.decoding
    queries, keys = (1, case.seen) if decoding else (case.shape.length, case.shape.length)
    reads = {role: (name, layout.head_shape(role)[0]) for role, name in layout.reads.items()}
    if layout.design.core is not None or decoding:
        reads["q"] = ("q", layout.heads)
    tensors = {
        (name, heads): case.numbers(case.shape.batch, heads, queries if name == "q" else keys, widest)
        for name, heads in reads.values()
    }
    places = [list(tensors).index(reads[role]) for role in "qkv"]
    grouped, causal, mask = layout.heads != layout.kv_heads, case.causal and not decoding, None
    if causal and case.window is not None and case.window < keys:  # the stock kernels have no window but a mask
        mask, causal = masks.combine(None, keys, keys, causal=True, window=case.window, device=case.device), False

    def kernel(*given: Tensor) -> Tensor:
        q, k, v = (given[place] for place in places)
        return F.scaled_dot_product_attention(q, k, v, mask, is_causal=causal, enable_gqa=grouped)

    return kernel, list(tensors.values())
