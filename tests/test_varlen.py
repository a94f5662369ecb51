"""What is given to the kernel for sequences side by side, which runs on CUDA alone; the formula stands in here."""

import pytest
import torch

from querykey import KVCache, SelfAttention
from querykey.attention import varlen

LENGTHS = [5, 1, 9, 7, 2]


def formula(q, k, v, starts_q, starts_k, longest_q, longest_k, *, scale, window_size):
    """As the documentation of `torch.nn.attention.varlen` describes the kernel: aligned to the last key."""
    assert starts_q.dtype == starts_k.dtype == torch.int32
    assert (longest_q, longest_k) == (int(starts_q.diff().max()), int(starts_k.diff().max()))
    left, right = (2**30 if side < 0 else side for side in window_size)
    out = torch.empty(len(q), q.shape[1], v.shape[-1], dtype=q.dtype)
    k, v = (tensor.repeat_interleave(q.shape[1] // k.shape[1], 1) for tensor in (k, v))
    for (a, b), (c, d) in zip(*(one.unfold(0, 2, 1).tolist() for one in (starts_q, starts_k)), strict=True):
        own, keys = torch.arange(d - c - (b - a), d - c)[:, None], torch.arange(d - c)
        hidden = (keys < own - left) | (keys > own + right)
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]) * scale
        out[a:b] = torch.einsum("hqk,khd->qhd", scores.masked_fill(hidden, -torch.inf).softmax(-1), v[c:d])
    return out


@pytest.fixture
def calls(monkeypatch):
    """The kernel takes what it would take on CUDA; how often it was called."""
    counted = []
    monkeypatch.setattr(varlen, "able", lambda q, k, v: q.shape[-1] == v.shape[-1] and k.shape[1] == v.shape[1])
    monkeypatch.setattr(
        varlen, "kernel", lambda: lambda *given, **more: (counted.append(1), formula(*given, **more))[1]
    )
    return counted


@pytest.fixture(params=["q,k,v", "q=k,v+core=full", "q,k=v+kv_heads=2", "q,k=v+latent=9", "q,k,v+selfmask"])
def layer(request):
    def make(**options):
        torch.manual_seed(0)
        return SelfAttention(40, 4, request.param, dtype=torch.float64, **options)

    return make


def ran(layer, x, calls, **inputs):
    """Output and gradient, and whether the kernel was called."""
    calls.clear()
    out = layer(x, **inputs)
    return *torch.autograd.grad(out.sin().sum(), x), out, bool(calls)


@pytest.mark.parametrize("options", [{"window": 6}, {"window": 6, "rotary": True}])
def test_windows(layer, options, calls, monkeypatch):
    layer, x = layer(causal=True, **options), torch.randn(2, 24, 40, dtype=torch.float64, requires_grad=True)
    *found, called = ran(layer, x, calls)
    assert called is not layer.design.selfmask
    monkeypatch.setattr(varlen, "able", lambda *_: False)
    *expected, _ = ran(layer, x, calls)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("options", [{}, {"causal": True, "rotary": True}, {"causal": True, "window": 4}])
@pytest.mark.parametrize("padding", [False, True], ids=["documents", "padding"])
def test_sequences_of_several_lengths(layer, options, padding, calls, monkeypatch):
    layer, x = layer(**options), torch.randn(2, 24, 40, dtype=torch.float64, requires_grad=True)
    if padding:
        inputs = {"key_padding": torch.arange(24) < torch.tensor([[24], [17]])}
    else:
        inputs = {"document": torch.arange(5).repeat_interleave(torch.tensor(LENGTHS))[None].expand(2, -1)}
    *found, called = ran(layer, x, calls, **inputs)
    assert called is not layer.design.selfmask
    monkeypatch.setattr(varlen, "able", lambda *_: False)
    *expected, _ = ran(layer, x, calls, **inputs)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("window", [None, 6])
def test_chunks_behind_a_cache(layer, window, calls):
    layer, x = layer(causal=True, window=window), torch.randn(2, 24, 40, dtype=torch.float64)
    cache = KVCache()
    parts = [layer(part, cache=cache) for part in x.split((9, 8, 7), 1)]
    sums_latents = layer.design.latent is not None  # in place of values, for so few queries
    assert bool(calls) is not (layer.design.selfmask or sums_latents)
    torch.testing.assert_close(torch.cat(parts, 1), layer(x), rtol=0, atol=1e-10)


def test_what_the_kernel_cannot_do_is_left_to_others():
    q = torch.empty(2, 4, 8, 16, dtype=torch.bfloat16)
    assert not varlen.able(q, q, q)  # not on CUDA
