"""Causal attention by blocks of rows: the same numbers, chosen by force and by size, within its memory."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from querykey import SelfAttention, attend
from querykey.attention import blocked, kernels
from querykey.attention.kernels import forcing_blocks
from querykey.attention.modifiers import Modifiers
from test_layer import CASES, make, oracle


def normal(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype, requires_grad=True)


def check_by_blocks(cases):
    """Each layer, forced to go by blocks, equals the oracle, forward and gradient."""
    for design, head_dim, setting in cases:
        layer, x, inputs, generator = make(design, head_dim, setting)
        expected = oracle(layer, x, **inputs)
        direction = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        leaves = [x, *layer.parameters()]
        wanted = torch.autograd.grad((expected * direction).sum(), leaves, allow_unused=True)
        with forcing_blocks(True):
            assert layer.backend(x) == "blocked"
            got = layer(x)
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10, msg=lambda m, d=design: f"{d}: {m}")
        gradients = torch.autograd.grad((got * direction).sum(), leaves, allow_unused=True)
        for gradient, reference in zip(gradients, wanted, strict=True):
            assert (gradient is None) == (reference is None)
            if gradient is not None:
                torch.testing.assert_close(gradient, reference, rtol=0, atol=1e-8)


@pytest.mark.usefixtures("unchecked")
def test_every_causal_design_by_blocks_equals_the_formula(monkeypatch):
    monkeypatch.setattr(blocked, "ROWS", 3)  # of 7 positions: two whole blocks and a part of one
    cases = [case for case in CASES if case[2] == "causal"]
    assert len(cases) > 100
    check_by_blocks(cases)


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("length", [2, 64, 65, 257])
def test_blocks_equal_the_fused_kernel(length, heads, groups):
    q, k, v = normal(2, heads, length, 16), normal(2, groups, length, 16, seed=1), normal(2, groups, length, 12, seed=2)
    out = blocked.blocked_attention(q, k, v, 0.25)
    expected = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.25, enable_gqa=True)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-5)
    gradients = (torch.autograd.grad((one * one).sum(), (q, k, v)) for one in (out, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_finite_differences(monkeypatch):
    monkeypatch.setattr(blocked, "ROWS", 2)
    q, k, v = (normal(1, heads, 5, 3, seed=heads, dtype=torch.float64) for heads in (4, 2, 2))
    for mask in itertools.product((False, True), (None, 1, 3)):
        assert torch.autograd.gradcheck(lambda *qkv, m=mask: blocked.blocked_attention(*qkv, 0.5, *m), (q, k, v))


@pytest.mark.parametrize("rows", [3, 64])
@pytest.mark.parametrize("length", [1, 5, 64, 65, 130])
def test_windows_of_any_size_equal_the_formula(length, rows, monkeypatch):
    monkeypatch.setattr(blocked, "ROWS", rows)
    q, k, v = (normal(2, heads, length, 4, seed=heads, dtype=torch.float64) for heads in (6, 3, 3))
    i, j = torch.arange(length)[:, None], torch.arange(length)
    for window, selfmask in itertools.product((1, 2, 3, 4, 63, 64, 65, 500), (False, True)):
        allowed = (j <= i) & (i - j < window)
        if selfmask and window > 1:
            allowed &= (i != j) | (i == 0)
        scores = 0.5 * q @ k.repeat_interleave(2, 1).mT
        expected = torch.where(allowed, scores, -torch.inf).softmax(-1) @ v.repeat_interleave(2, 1)
        out = blocked.blocked_attention(q, k, v, 0.5, selfmask, window)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        gradients = (torch.autograd.grad(one.sin().sum(), (q, k, v)) for one in (out, expected))
        for ours, theirs in zip(*gradients, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_chosen_by_size_where_it_wins():
    def backend(length, grad=True, **options):
        layer = SelfAttention(16, heads=2, causal=True, **options)
        with torch.set_grad_enabled(grad):
            return layer.backend(torch.zeros(1, length, 16))

    assert [backend(length) for length in (64, 256, 2048, 2049)] == ["flash", "blocked", "blocked", "flash"]
    assert [backend(length, grad=False) for length in (64, 256, 512, 513)] == ["flash", "blocked", "blocked", "flash"]
    assert backend(300, design="q=k,v+selfmask") == "blocked"
    assert backend(300, dropout=0.1) == "math"
    layer = SelfAttention(16, heads=2, causal=True)
    x = torch.zeros(1, 300, 16)
    assert layer.backend(x, mask=torch.ones(300, 300, dtype=torch.bool)) != "blocked"
    assert SelfAttention(16, heads=2).backend(x) == "flash"
    assert layer.to(torch.bfloat16).backend(x.bfloat16()) != "blocked"
    with forcing_blocks(False):
        assert backend(300) == "flash"
    assert backend(300) == "blocked"  # what was forced is over


def test_what_it_keeps_is_bounded_and_as_said(monkeypatch):
    q, k, v = normal(2, 6, 300, 8), normal(2, 2, 300, 8, seed=1), normal(2, 2, 300, 8, seed=2)
    for window, share in ((None, 0.65), (50, 0.35)):
        kept = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x) or x, lambda x: x):
            blocked.blocked_attention(q, k, v, 1.0, window=window)
        assert sum(x.numel() * x.element_size() for x in kept if x.shape[-1] != 8) == blocked.kept_bytes(q, window)
        assert blocked.kept_bytes(q, window) < share * 2 * 6 * 300 * 300 * 4
    for module, name, window in ((kernels, "BLOCKED_BYTES", None), (blocked, "MOST_BYTES", 280)):
        assert kernels._by_blocks(q, k, v, window)
        monkeypatch.setattr(module, name, blocked.kept_bytes(q, window) - 1)
        assert not kernels._by_blocks(q, k, v, window)
        with torch.no_grad():  # which keeps nothing
            assert kernels._by_blocks(q, k, v, window)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_transforms_get_pytorchs_own_operations():
    q, k, v = (normal(3, 1, 2, 256, 4, seed=seed) for seed in range(3))
    out = torch.func.vmap(lambda *qkv: attend(*qkv, causal=True))(q, k, v)
    torch.testing.assert_close(out, attend(*(x.flatten(0, 1) for x in (q, k, v)), causal=True).unflatten(0, (3, 1)))


def test_large_scores_and_long_rows_stay_finite():
    q = normal(1, 1, 300, 4).detach() * 1e4
    q.requires_grad_()
    out = blocked.blocked_attention(q, q, q, 1.0)
    (gradient,) = torch.autograd.grad(out.sum(), q)
    assert out.isfinite().all()
    assert gradient.isfinite().all()


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_the_kernel_that_the_user_chose_is_taken_and_differentiates_twice():
    layer = SelfAttention(16, heads=2, causal=True).double()
    x = normal(1, 256, 16, dtype=torch.float64)
    assert layer.backend(x) == "blocked"
    with sdpa_kernel(SDPBackend.MATH):
        assert layer.backend(x) == "math"
        (gradient,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(gradient.square().sum(), x)
        direction = torch.randn_like(x)
        value, tangent = torch.func.jvp(layer, (x.detach(),), (direction,))
    step = 1e-6
    with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        ahead, behind = layer(x + step * direction), layer(x - step * direction)
    torch.testing.assert_close(tangent, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(value, layer(x))
    assert second.isfinite().all()
    assert second.norm() > 0


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("names", [("softcap",), ("slopes",), ("sinks",), ("softcap", "slopes", "sinks")])
def test_modified_scores_by_blocks_equal_the_formula(names, window, monkeypatch):
    monkeypatch.setattr(blocked, "ROWS", 3)
    q, k, v = (normal(2, heads, 7, 4, seed=heads, dtype=torch.float64) for heads in (6, 3, 3))
    sinks = normal(6, dtype=torch.float64)
    chosen = {"softcap": 0.7, "slopes": torch.linspace(0.1, 1, 6).double(), "sinks": sinks}
    changes = Modifiers(**{name: chosen[name] for name in names})
    i, j = torch.arange(7)[:, None], torch.arange(7)
    scores = 0.5 * q @ k.repeat_interleave(2, 1).mT
    if changes.softcap:
        scores = 0.7 * (scores / 0.7).tanh()
    if changes.slopes is not None:
        scores = scores - changes.slopes[:, None, None] * (i - j)
    exp = torch.where((j <= i) & (i - j < (window or 99)), scores, -torch.inf).exp()
    total = exp.sum(-1, keepdim=True) + (0 if changes.sinks is None else sinks.exp()[:, None, None])
    expected = (exp / total) @ v.repeat_interleave(2, 1)
    out = blocked.blocked_attention(q, k, v, 0.5, False, window, changes)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    leaves = (q, k, v, *[sinks] * ("sinks" in names))
    gradients = (torch.autograd.grad(one.sin().sum(), leaves) for one in (out, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_modified_scores_go_by_blocks_at_every_length_and_else_by_products():
    for options in ({"softcap": 5.0}, {"sinks": True}, {"softcap": 5.0, "alibi": True, "design": "q,k,v+l2"}):
        layer = SelfAttention(16, heads=2, causal=True, **options)
        assert layer.backend(torch.zeros(1, 9, 16)) == layer.backend(torch.zeros(1, 3000, 16)) == "blocked"
        assert layer.backend(torch.zeros(1, 9, 16), torch.ones(9, 9, dtype=torch.bool)) == "products"
        assert layer.to(torch.bfloat16).backend(torch.zeros(1, 9, 16).bfloat16()) == "products"
    alibi = SelfAttention(16, heads=2, alibi=True)
    assert alibi.backend(torch.zeros(1, 9, 16)) == "flash"
