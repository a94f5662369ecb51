"""KV caches as values: cropped, reordered, repeated, reset, detached; preallocated ones; what they refuse."""

import copy
import pickle

import pytest
import torch

from querykey import KVCache, SelfAttention
from querykey.transformer import Transformer

DIM, HEADS = 24, 4
DESIGNS = ("q,k,v", "q,k=v", "q,k=v+latent=9", "q=k=v+core=full+kv_heads=2")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def made(design, kind, batch=3, **options):
    layer = SelfAttention(DIM, HEADS, design, causal=True, rotary=True, **options).double()
    if kind == "static":
        return layer, KVCache.static(batch, 12, layer.layout, dtype=torch.float64)
    return layer, KVCache(keep_rotated=kind == "rotated")


@pytest.mark.parametrize("kind", ["growing", "rotated", "static"])
@pytest.mark.parametrize("design", DESIGNS)
def test_cropped_positions_are_forgotten(design, kind):
    layer, cache = made(design, kind)
    x = normal(3, 9, DIM)
    with torch.no_grad():
        expected = layer(x)
        for length in (4, -2, 0):
            layer(x[:, : 9 - len(cache)].flip(1) + 1, cache=cache)  # something else, of which part is taken back
            cache.crop(0)
            layer(x[:, :6], cache=cache)
            layer(normal(3, 2, DIM, seed=1), cache=cache)
            cache.crop(-2)
            cache.crop(length)
            kept = len(cache)
            assert kept == (6 + length if length < 0 else length)
            torch.testing.assert_close(layer(x[:, kept:], cache=cache), expected[:, kept:])
            cache.reset()
            assert len(cache) == 0


@pytest.mark.parametrize("tracked", [False, True])
@pytest.mark.parametrize("kind", ["growing", "rotated", "static"])
@pytest.mark.parametrize("design", DESIGNS)
def test_rows_are_continued_where_they_are_sent(design, kind, tracked):
    layer, cache = made(design, kind)
    x, padding = normal(3, 7, DIM), torch.tensor([0, 2, 1])
    if kind == "growing":
        cache = KVCache(padding=padding)
    rows = torch.tensor([2, 0, 2])
    with torch.set_grad_enabled(tracked):
        layer(x[:, :4], cache=cache)
        cache.reorder(rows)
        new = normal(3, 1, DIM, seed=1)
        step = layer(new, cache=cache)
        for row, source in enumerate(rows):
            start = int(padding[source]) if kind == "growing" else 0
            alone = layer(torch.cat([x[source : source + 1, start:4], new[row : row + 1]], 1))
            torch.testing.assert_close(step[row : row + 1], alone[:, -1:])


@pytest.mark.parametrize("kind", ["growing", "static"])
def test_rows_are_repeated_and_selected(kind):
    layer, cache = made("q,k=v", kind)
    x = normal(3, 5, DIM)
    with torch.no_grad():
        layer(x[:, :4], cache=cache)
        expected = layer(x[:, 4:], cache=copy.deepcopy(cache))
        cache.repeat(2)
        cache.select(torch.tensor([5, 0]))
        torch.testing.assert_close(layer(x[[2, 0], 4:], cache=cache), expected[[2, 0]])


def test_gradients_end_at_a_detached_cache():
    layer, cache = made("q,k,v", "growing")
    first, second = (normal(3, 2, DIM, seed=seed).requires_grad_() for seed in (0, 1))
    layer(first, cache=cache)
    cache.detach()
    out = layer(second, cache=cache)
    assert torch.autograd.grad(out.sum(), (first, second), allow_unused=True)[0] is None


def test_a_cache_after_reset_may_be_of_another_batch_dtype_and_layer():
    layer, cache = made("q,k,v", "growing")
    other = SelfAttention(DIM, HEADS, "q,k=v", causal=True)
    with torch.no_grad():
        layer(normal(3, 5, DIM), cache=cache)
        cache.reset()
        x = normal(2, 5, DIM).float()
        torch.testing.assert_close(other(x, cache=cache), other(x))


def test_a_window_that_dropped_positions_cannot_be_cropped():
    layer, cache = made("q,k,v", "growing", window=3)
    with torch.no_grad():
        for _ in range(9):
            layer(normal(3, 10, DIM), cache=cache)
    with pytest.raises(ValueError, match="has dropped positions before"):
        cache.crop(-1)
    with pytest.raises(ValueError, match="has seen 90 positions, so it cannot be cropped to 91"):
        cache.crop(91)


@pytest.mark.parametrize("design", DESIGNS)
def test_a_static_cache_is_as_large_as_the_layout_says_and_refuses_more(design):
    layer, cache = made(design, "static")
    layout = layer.layout
    assert cache.nbytes == 3 * 12 * layout.cache_bytes(torch.float64)
    assert (len(cache), cache.capacity) == (0, 12)
    with torch.no_grad():
        layer(normal(3, 10, DIM), cache=cache)
        with pytest.raises(ValueError, match="holds 10 of at most 12 positions; 3 do not fit"):
            layer(normal(3, 3, DIM), cache=cache)
        with pytest.raises(ValueError, match=r"3 rows and .*float64 on cpu, but was given .* of 2 rows"):
            layer(normal(2, 1, DIM), cache=cache)
        assert len(cache) == 10
    with pytest.raises(ValueError, match="a batch and a length from 1, not 0 and 5"):
        KVCache.static(0, 5, layout)
    with pytest.raises(ValueError, match="one number for each of the 3 rows, not 2"):
        KVCache.static(3, 5, layout, padding=torch.tensor([1, 2]))


def test_padding_and_windows_of_a_static_cache():
    layer = SelfAttention(DIM, HEADS, "q=k,v+selfmask", causal=True, rotary=True, window=4).double()
    padding, x = torch.tensor([0, 3]), normal(2, 9, DIM)
    cache = KVCache.static(2, 11, layer.layout, padding=padding, dtype=torch.float64)
    with torch.no_grad():
        out = torch.cat([layer(part, cache=cache) for part in x.split((5, 1, 3), 1)], 1)
        for row, start in enumerate(padding):
            torch.testing.assert_close(out[row : row + 1, start:], layer(x[row : row + 1, start:]))
        step = normal(2, 1, DIM, seed=1)
        expected, weights = layer(step, cache=copy.deepcopy(cache), return_weights=True)
        assert weights.shape == (2, HEADS, 1, 11)
        assert (weights[0, :, 0] > 0).any(0).tolist() == [False] * 6 + [True] * 3 + [False] * 2  # itself is closed
        assert layer.backend(step, cache=cache) == "flash"
        torch.testing.assert_close(layer(step, cache=cache), expected)


# What is refused


def test_a_cache_of_another_layer_is_refused_and_copies_continue():
    one, cache = made("q,k,v", "growing")
    other = copy.deepcopy(one)
    x = normal(3, 2, DIM)
    with torch.no_grad():
        expected = one(torch.cat([x, x], 1))[:, 2:]
        one(x, cache=cache)
        for kind in (KVCache(), KVCache.static(3, 4, one.layout, dtype=torch.float64)):
            one(x, cache=kind)
            with pytest.raises(ValueError, match="this cache belongs to another layer"):
                other(x, cache=kind)
        for copied in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
            torch.testing.assert_close(other(x, cache=copied), expected)


def test_a_step_that_failed_midway_is_noticed():
    model = Transformer(13, 13, 16, dim=DIM, heads=HEADS, layers=3, causal=True)
    caches, tokens = model.caches(), torch.ones(1, 2, 1, dtype=torch.long)
    with torch.no_grad():
        model(tokens, caches=caches)
        handle = model.blocks[1].register_forward_pre_hook(lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(tokens, caches=caches)
        handle.remove()
        with pytest.raises(ValueError, match=r"caches hold 4, 2 and 2 positions.*crop\(2\)"):
            model(tokens, caches=caches)
        for cache in caches:
            cache.crop(2)
        once = model(tokens, caches=caches)
        torch.testing.assert_close(once, model(torch.cat([tokens, tokens], 1))[:, 2:])
