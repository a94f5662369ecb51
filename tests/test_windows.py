"""Sliding windows: a position sees itself and the window − 1 before it, on every path."""

import subprocess
import sys

import pytest
import torch

from querykey import KVCache, SelfAttention, attend, attention_weights
from querykey.attention import blocked, kernels
from querykey.attention.kernels import forcing_blocks
from test_blocked import check_by_blocks
from test_layer import CASES


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_index(scores, v, window, mask=None):
    """Weighted values and weights, one query after the other."""
    queries, keys = scores.shape[-2:]
    weights = torch.zeros_like(scores)
    for i in range(queries):
        own = i + keys - queries
        for j in range(max(0, own - window + 1), own + 1):
            weights[..., i, j] = scores[..., i, j].exp() * (1.0 if mask is None else mask[..., i, j])
    weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-300)
    return weights @ v, weights


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("rows", [2, 3, 64])
def test_every_design_with_a_window_by_blocks_equals_the_formula(monkeypatch, rows):
    monkeypatch.setattr(blocked, "ROWS", rows)  # of 7 positions, each of which sees 3
    cases = [case for case in CASES if case[2] == "window causal"]
    assert len(cases) > 100
    check_by_blocks(cases[rows % 3 :: 3])


@pytest.mark.parametrize("window", [1, 2, 5, 11, 12, 100])
@pytest.mark.parametrize(("shape", "queries"), [((), 11), ((3,), 5), ((2, 3), 11), ((2, 3), 7), ((2, 3), 1)])
def test_attend_and_attention_weights_by_index(shape, queries, window):
    q, k, v = normal(*shape, queries, 4), normal(*shape, 11, 4, seed=1), normal(*shape, 11, 6, seed=2)
    out, weights = by_index(q @ k.mT / 2, v, window)
    torch.testing.assert_close(attend(q, k, v, causal=True, window=window), out)
    torch.testing.assert_close(attention_weights(q, k, causal=True, window=window), weights)
    with forcing_blocks(True):
        torch.testing.assert_close(attend(q, k, v, causal=True, window=window), out)
    mask = normal(*shape, queries, 11, seed=3) > -0.5
    out, weights = by_index(q @ k.mT / 2, v, window, mask)
    torch.testing.assert_close(attend(q, k, v, causal=True, window=window, mask=mask), out)
    torch.testing.assert_close(attention_weights(q, k, causal=True, window=window, mask=mask), weights)
    additive = torch.zeros_like(weights).masked_fill(~mask, -torch.inf)
    torch.testing.assert_close(attend(q, k, v, causal=True, window=window, mask=additive), out)


def test_a_mask_that_is_the_same_for_all_keys_fits_a_window():
    q, k, v = normal(2, 3, 2, 4), normal(2, 3, 11, 4, seed=1), normal(2, 3, 11, 4, seed=2)
    mask = torch.tensor([True, False])[:, None, None, None]
    out = attend(q, k, v, causal=True, window=3, mask=mask)
    torch.testing.assert_close(out[:1], attend(q[:1], k[:1], v[:1], causal=True, window=3))
    assert not out[1].any()


def test_a_mask_is_made_only_where_it_hides_something():
    def prepared(queries, keys, window):
        q, k = torch.zeros(1, 2, queries, 4), torch.zeros(1, 2, keys, 4)
        return kernels.prepare(q, k, k, scale=1.0, causal=True, mask=None, dropout=0.0, window=window)

    for window in (7, 8, 100):  # every position sees all before it
        call = prepared(7, 7, window)
        assert call.mask is None
        assert call.causal
    assert prepared(7, 7, 6).mask.tolist() == torch.ones(7, 7).tril().triu(-5).bool().tolist()
    one = prepared(1, 100, 6)
    assert one.mask is None
    assert one.k.shape[2] == one.v.shape[2] == 6
    some = prepared(3, 100, 6)
    assert some.k.shape[2] == 8
    assert some.mask.tolist() == [[i <= j <= i + 5 for j in range(8)] for i in range(3)]


def test_blocks_are_chosen_by_size():
    def backend(length, grad=True, **options):
        layer = SelfAttention(16, heads=2, causal=True, **({"window": 40} | options))
        with torch.set_grad_enabled(grad):
            return layer.backend(torch.zeros(1, length, 16))

    for grad in (True, False):
        lengths = {length: backend(length, grad) for length in (255, 256, 600, 4096)}
        assert lengths == {255: "flash", 256: "blocked", 600: "blocked", 4096: "blocked"}
    assert backend(300, dropout=0.1) == "math"
    assert backend(600, False, window=600) == backend(600, False, window=None) == "flash"


def test_returned_weights_end_with_the_window():
    layer = SelfAttention(12, 2, "q,k=v", causal=True, window=3, rotary=True).double()
    _, weights = layer(normal(2, 7, 12), return_weights=True)
    seen = torch.ones(7, 7).tril().triu(-2).bool()
    assert ((weights > 0) == seen).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 7, dtype=torch.float64))
    cache = KVCache()
    with torch.no_grad():
        steps = [layer(part, cache=cache, return_weights=True)[1] for part in normal(2, 7, 12).split((2, 1, 1, 3), 1)]
    for step in steps:  # as wide as all positions so far, whatever the cache has dropped
        rows = weights[:, :, step.shape[-1] - step.shape[-2] : step.shape[-1], : step.shape[-1]]
        torch.testing.assert_close(step, rows.detach())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"window": 0, "causal": True}, "window must be a number of positions from 1, .* not 0"),
        ({"window": 2.5, "causal": True}, r"not 2\.5"),
        ({"window": True, "causal": True}, "not True"),
        ({"window": 3}, "it needs causal=True"),
    ],
)
def test_windows_that_are_none_are_refused(options, sentence):
    q = torch.zeros(3, 4)
    for refuse in (
        lambda: SelfAttention(8, 2, **options),
        lambda: attend(q, q, q, **options),
        lambda: attention_weights(q, q, **options),
    ):
        with pytest.raises(ValueError, match=sentence):
            refuse()


def test_the_window_is_named_in_print():
    assert "causal=True, rotary=False, window=3" in repr(SelfAttention(8, 2, causal=True, window=3))
    assert "window" not in repr(SelfAttention(8, 2, causal=True))


COMPILED = """
import torch
from querykey import SelfAttention

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
for design, rotary in (("q,k,v+kv_heads=2", False), ("q=k,v+selfmask", True)):
    for window in (3, 7, 100):
        layer, x = SelfAttention(40, 4, design, causal=True, rotary=rotary, window=window), torch.randn(2, 7, 40)
        torch.compiler.reset()
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        gradients = [torch.autograd.grad(run(x).square().sum(), layer.parameters()) for run in (layer, compiled)]
        torch.testing.assert_close(*gradients)
        length = torch.export.Dim("length", min=2, max=64)
        exported = torch.export.export(layer, (x,), dynamic_shapes={"x": {1: length}})
        longer = torch.randn(2, 11, 40)
        torch.testing.assert_close(exported.module()(longer), layer(longer))
print("compiled and exported")
"""


@pytest.mark.slow
def test_a_window_compiles_in_one_graph_and_exports_for_lengths_on_both_sides_of_it():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "compiled and exported" in done.stdout
