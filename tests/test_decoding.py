"""Decoding: caches of bounded size, rows of different lengths in one batch, keys made on reading, kept rotations."""

import copy
import itertools

import pytest
import torch

from querykey import PARTITIONS, DesignError, KVCache, SelfAttention, generation
from querykey.attention import decoding
from querykey.attention.sequence import Span
from querykey.sampling import Choice, beam_search, sample

DIM, HEADS = 24, 4
PADDING = (0, 5, 3)
OPTIONS = ("", "+selfmask", "+cosine", "+qknorm", "+l2", "+core=full+kv_heads=2", "+core=signed", "+kv_heads=2")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def stepwise(layer, x, sizes, cache, **options):
    return [layer(part, cache=cache, **options) for part in x.split(sizes, 1)]


def layers(first=0, step=1):
    """Every partition with every option that it can have, with and without rotation and windows; each `step`-th."""
    return itertools.islice(_layers(), first, None, step)


def _layers():
    for design, option, is_rotary, window in itertools.product(PARTITIONS, OPTIONS, (False, True), (None, 2, 4)):
        try:
            layer = SelfAttention(DIM, HEADS, design + option, causal=True, rotary=is_rotary, window=window)
        except DesignError:
            continue
        yield layer.double()


# Different lengths in one batch


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("first", "sizes"), [*enumerate([(6, 1, 1, 1), (1, 1, 4, 3), (9,), (1, 8)])])
@pytest.mark.parametrize("tracked", [False, True])
def test_a_row_gives_what_it_gives_alone(first, sizes, tracked):
    x, counted = normal(3, 9, DIM), 0
    for layer in layers((first + 2 * tracked) % 4, 4):
        with torch.set_grad_enabled(tracked):
            cache = KVCache(padding=torch.tensor(PADDING), keep_rotated=counted % 2 == 0)
            together = torch.cat(stepwise(layer, x, sizes, cache), 1)
            for row, padding in enumerate(PADDING):
                alone = layer(x[row : row + 1, padding:])
                torch.testing.assert_close(
                    together[row : row + 1, padding:], alone, rtol=0, atol=1e-10, msg=lambda m, one=layer: f"{one}: {m}"
                )
        assert len(cache) == 9
        counted += 1
    assert counted > 40


def test_gradients_of_a_padded_batch_are_those_of_its_rows():
    layer, x = (
        SelfAttention(DIM, HEADS, "q=k,v+selfmask", causal=True, rotary=True, window=4).double(),
        normal(3, 9, DIM),
    )
    out = torch.cat(stepwise(layer, x, (6, 1, 2), KVCache(padding=torch.tensor(PADDING))), 1)
    real = torch.arange(9) >= torch.tensor(PADDING)[:, None]
    together = torch.autograd.grad(out[real].square().sum(), list(layer.parameters()))
    alone = [
        torch.autograd.grad(layer(x[row : row + 1, padding:]).square().sum(), list(layer.parameters()))
        for row, padding in enumerate(PADDING)
    ]
    for whole, *parts in zip(together, *alone, strict=True):
        torch.testing.assert_close(whole, torch.stack(parts).sum(0))


@pytest.mark.parametrize("window", [None, 4])
def test_what_was_read_for_a_gradient_is_not_overwritten_by_later_steps(window):
    layer = SelfAttention(DIM, HEADS, causal=True, window=window).double().requires_grad_(False)
    first, *others = normal(2, 9, DIM).split((2, 1, 1, 5), 1)  # of which the first alone wants a gradient
    first.requires_grad_()
    cache = KVCache()
    ways = torch.cat([layer(part, cache=cache) for part in (first, *others)], 1), layer(torch.cat([first, *others], 1))
    torch.testing.assert_close(*(torch.autograd.grad(out.square().sum(), first)[0] for out in ways))


@pytest.mark.parametrize("kind", [torch.bool, torch.float64])
def test_padding_and_a_mask_of_the_users_both_hide(kind):
    layer, x = SelfAttention(DIM, HEADS, "q,k=v", causal=True, rotary=True, window=4).double(), normal(3, 9, DIM)
    mask = torch.ones(9, dtype=torch.bool)
    mask[4] = False
    if kind != torch.bool:
        mask = torch.zeros(9, dtype=kind).masked_fill(~mask, -torch.inf)
    cache = KVCache(padding=torch.tensor(PADDING))
    with torch.no_grad():
        layer(x[:, :6], mask[:6], cache=cache)
        for end in (7, 8, 9):
            got, weights = layer(x[:, end - 1 : end], mask[:end], cache=cache, return_weights=True)
            for row, padding in enumerate(PADDING):
                alone, own = layer(x[row : row + 1, padding:end], mask[padding:end], return_weights=True)
                torch.testing.assert_close(got[row], alone[0, -1:])
                torch.testing.assert_close(weights[row, :, -1, padding:], own[0, :, -1])
                assert not weights[row, :, -1, :padding].any()


def test_there_is_no_mask_where_no_row_has_padding_or_the_window_has_left_it_behind():
    device = torch.device("cpu")
    for padding in (None, torch.tensor([0, 0])):
        assert KVCache(padding=padding).hidden(None, 0, 7, device) is None
    cache = KVCache(padding=torch.tensor([2, 3]))
    assert cache.hidden(None, 2, 5, device).squeeze().tolist() == [[True] * 3, [False, True, True]]
    assert cache.hidden(None, 3, 5, device) is None


# What is kept


@pytest.mark.usefixtures("unchecked")
def test_a_window_bounds_the_room_and_changes_no_number():
    x = normal(2, 160, DIM)
    for design, is_rotary in itertools.product(("q,k,v", "q,k=v"), (False, True)):
        layer = SelfAttention(DIM, HEADS, design, causal=True, rotary=is_rotary, window=40).double()
        cache, limited, capacities = KVCache(), KVCache(limit=40), set()
        with torch.no_grad():
            expected = layer(x)
            for position in range(160):
                step = x[:, position : position + 1]
                torch.testing.assert_close(layer(step, cache=cache), expected[:, position : position + 1])
                torch.testing.assert_close(layer(step, cache=limited), expected[:, position : position + 1])
                capacities |= {buffer.shape[2] for buffer in cache._buffers.values()}
        assert capacities == {64, 78}  # the first, and twice the 39 that a next position sees
        assert len(cache) == len(limited) == 160
        names = 1 if design == "q,k=v" else 2
        assert cache.nbytes <= 78 * names * 2 * DIM * 8
        assert limited.nbytes <= 40 * names * 2 * DIM * 8


def test_a_long_prompt_is_kept_as_far_as_the_window_reaches():
    layer, cache = SelfAttention(DIM, HEADS, causal=True, window=5).double(), KVCache(limit=4)
    with torch.no_grad():
        layer(normal(2, 300, DIM), cache=cache)
        assert {buffer.untyped_storage().nbytes() for buffer in cache._buffers.values()} == {2 * 4 * DIM * 8}
        assert cache.nbytes == 2 * 2 * 4 * DIM * 8
        assert len(cache) == 300
        layer(normal(2, 5, DIM), cache=cache)
        layer(normal(2, 1, DIM), cache=cache)
        assert cache.stored == 4
        with pytest.raises(ValueError, match="holds 0 of at most 3 positions; 4 would be too many"):
            layer(normal(2, 300, DIM), cache=KVCache(limit=3))


@pytest.mark.parametrize("pieces", [1, 2, 3, 4, 5, 20])
def test_a_limit_that_holds_the_window_takes_pieces_of_any_size(pieces):
    layer, x = SelfAttention(DIM, HEADS, causal=True, window=5).double(), normal(2, 40, DIM)
    for limit in (4, 5, 6, 11):
        cache = KVCache(limit=limit)
        with torch.no_grad():
            steps = [layer(part, cache=cache) for part in x.split(pieces, 1)]
            torch.testing.assert_close(torch.cat(steps, 1), layer(x))
        assert cache.stored <= limit


def test_a_prompt_read_in_inference_mode_is_continued_outside():
    layer, x, cache = SelfAttention(DIM, HEADS, causal=True).double(), normal(2, 9, DIM), KVCache()
    with torch.inference_mode():
        first = layer(x[:, :7], cache=cache)
    with torch.no_grad():
        steps = [layer(part, cache=cache) for part in x[:, 7:].split(1, 1)]
        torch.testing.assert_close(torch.cat([first, *steps], 1), layer(x))


@pytest.mark.parametrize("is_rotary", [False, True])
def test_one_tensor_takes_half_the_bytes_and_rotated_keys_may_be_kept_beside_it(is_rotary):
    x, found = normal(2, 11, DIM), {}
    for design, keep in itertools.product(("q,k,v", "q,k=v"), (False, True)):
        layer = SelfAttention(DIM, HEADS, design, causal=True, rotary=is_rotary).double()
        cache = KVCache(keep_rotated=keep)
        with torch.no_grad():
            torch.testing.assert_close(torch.cat(stepwise(layer, x, (5, 1, 1, 4), cache), 1), layer(x))
        found[design, keep] = cache.nbytes
    two = 2 * 2 * 11 * DIM * 8
    assert found == {
        ("q,k,v", False): two,
        ("q,k,v", True): two,
        ("q,k=v", False): two // 2,
        ("q,k=v", True): two if is_rotary else two // 2,  # without rotation keys are values
    }


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("first", "most"), [*enumerate([1, 3 * 9 * 6 * 8, 5 * 9 * 6 * 8])])
def test_keys_made_in_parts_are_those_made_at_once(monkeypatch, first, most):
    x, mask = normal(3, 9, DIM), normal(3, HEADS, 1, 9, seed=1) > -0.5
    for layer in layers(first, 3):
        with torch.no_grad():
            whole = stepwise(layer, x, (6, 3), KVCache(padding=torch.tensor(PADDING)))
            masked = stepwise(layer, x, (9,), KVCache(), mask=mask)
            monkeypatch.setattr(decoding, "MOST_BYTES", 0)
            monkeypatch.setattr(decoding, "PART_BYTES", most)
            torch.testing.assert_close(stepwise(layer, x, (6, 3), KVCache(padding=torch.tensor(PADDING))), whole)
            torch.testing.assert_close(stepwise(layer, x, (9,), KVCache(), mask=mask), masked)
            monkeypatch.undo()


def test_one_query_goes_by_its_products_where_the_kernel_would_copy_what_is_cached():
    def backend(design, new=1, dtype=torch.float32, **options):
        layer, cache = SelfAttention(DIM, HEADS, design, causal=True, **options).to(dtype), KVCache()
        with torch.no_grad():
            layer(torch.zeros(2, 7, DIM, dtype=dtype), cache=cache)
        return layer.backend(torch.zeros(2, new, DIM, dtype=dtype), cache=cache)

    for design in ("q,k,v+kv_heads=2", "q,k,v+qk_dim=3", "q,k,v+l2", "q,k=v+kv_heads=1"):
        assert backend(design) == backend(design, window=4) == "products"
        assert backend(design, new=2) == backend(design, dtype=torch.bfloat16) == "flash"
        assert backend(design, dropout=0.1) == "math"
    assert backend("q,k,v") == backend("q,k=v") == "flash"


def test_parts_have_at_most_the_bytes_that_they_may(monkeypatch):
    q, v, seen = normal(3, 6, 1, 5), normal(3, 3, 11, 5, seed=1), []
    monkeypatch.setattr(decoding, "PART_BYTES", 2 * 11 * 5 * 8)
    monkeypatch.setattr(decoding, "MOST_BYTES", v.numel() * 8 - 1)

    def attend(some_q, some_v, mask, positions):
        seen.append(some_v.numel() * 8)
        return torch.nn.functional.scaled_dot_product_attention(some_q, some_v, some_v, enable_gqa=True)

    out = decoding.attend_in_parts(attend, q, v, None, Span(0, 11))
    torch.testing.assert_close(out, torch.nn.functional.scaled_dot_product_attention(q, v, v, enable_gqa=True))
    assert seen == [2 * 11 * 5 * 8] * 4 + [11 * 5 * 8]
    monkeypatch.setattr(decoding, "PART_BYTES", 1)
    torch.testing.assert_close(decoding.attend_in_parts(attend, q, v, None, Span(0, 11)), out)
    assert seen[5:] == [11 * 5 * 8] * 9  # no less than a head
    monkeypatch.setattr(decoding, "MOST_BYTES", v.numel() * 8)
    torch.testing.assert_close(decoding.attend_in_parts(attend, q, v, None, Span(0, 11)), out)
    assert seen[14:] == [v.numel() * 8]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"padding": torch.zeros(2, 3, dtype=torch.long)}, "one number of positions, from 0, for each row"),
        ({"padding": torch.tensor([0.0, 1.0])}, r"not \[0.0, 1.0\] \(torch.float32\)"),
        ({"padding": torch.tensor([True, False])}, "torch.bool"),
        ({"padding": torch.tensor([0, -1])}, r"not \[0, -1\]"),
        ({"limit": 0}, "must be positive"),
        ({"limit": "3"}, "must be positive, a whole number of positions, not '3'"),
        ({"limit": 1.5}, "not 1.5"),
    ],
)
def test_caches_that_cannot_be_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        KVCache(**arguments)


def test_a_cache_is_for_one_batch_and_one_window():
    layer, x = SelfAttention(DIM, HEADS, causal=True, window=3).double(), normal(2, 70, DIM)
    wider = SelfAttention(DIM, HEADS, causal=True, window=30).double()
    with torch.no_grad():
        with pytest.raises(ValueError, match="knows the padding of 3 rows, but the batch has 2"):
            layer(x, cache=KVCache(padding=torch.tensor(PADDING)))
        cache = KVCache()
        layer(x, cache=cache)
        with pytest.raises(ValueError, match="this cache belongs to another layer"):
            wider(x[:, :1], cache=cache)
        with pytest.raises(ValueError, match="has dropped positions before 68, but those from 41 can be seen"):
            wider(x[:, :1], cache=copy.copy(cache))  # a copy belongs to no layer


# Generation


def successor(tokens):
    """Logits that only allow the successor of the last token."""
    logits = torch.full((len(tokens), 7), -torch.inf)
    return logits.scatter(1, (tokens[:, -1:] + 1) % 7, 0.0)


def drawn(probabilities, count=20000, **options):
    """Shares of the tokens in so many draws from a distribution."""
    logits, prompts = torch.tensor(probabilities).log(), torch.zeros(count, 1, dtype=torch.long)
    out = sample(lambda tokens: logits.expand(len(tokens), -1), prompts, 1, Choice(seed=0, **options))
    return torch.bincount(out.flatten(), minlength=len(probabilities)) / count


def test_samples_follow_the_logits():
    prompts = torch.tensor([[1, 2], [5, 6]])
    for temperature in (0, 0.5, 1.0):
        assert sample(successor, prompts, 4, Choice(temperature)).tolist() == [[3, 4, 5, 6], [0, 1, 2, 3]]
    assert sample(successor, prompts, 0, Choice()).shape == (2, 0)
    share = torch.tensor([0.1, 0.2, 0.3, 0.4])
    for options, kept, power in (
        ({}, (0, 1, 2, 3), 1),
        ({"temperature": 0.5}, (0, 1, 2, 3), 2),
        ({"top_k": 2}, (2, 3), 1),
        ({"top_p": 0.4}, (3,), 1),
        ({"top_p": 0.41}, (2, 3), 1),
        ({"top_p": 0.95}, (0, 1, 2, 3), 1),
        ({"top_k": 3, "top_p": 0.7}, (2, 3), 1),  # of what the top three have together
        ({"temperature": 0.5, "top_p": 0.6}, (2, 3), 2),
    ):
        expected = torch.zeros(4).index_put((torch.tensor(kept),), share[list(kept)] ** power)
        torch.testing.assert_close(drawn([0.1, 0.2, 0.3, 0.4], **options), expected / expected.sum(), rtol=0, atol=0.01)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (3, [[3, 3, 3, 3], [0, 1, 2, 3]]),
        ([1, 4], [[3, 4], [0, 1]]),
        ([[3, 4, 5], [1]], [[3, 4, 5], [0, 1, 1]]),
        (b"\x00\x01", [[3, 4, 5, 6, 0, 1], [0, 1, 1, 1, 1, 1]]),
        ([[4, 6]], [[3, 4, 5, 6, 0, 1], [0, 1, 2, 3, 4, 5]]),
        ([[2, 3]], [[3, 4, 5, 6, 0, 1], [0, 1, 2, 3, 3, 3]]),  # of the prompt nothing counts
    ],
)
def test_rows_end_at_any_of_several_stops(stop, expected):
    prompts = torch.tensor([[1, 2], [5, 6]])
    assert sample(successor, prompts, 6, Choice(0, stop=stop)).tolist() == expected
    beams = beam_search(successor, lambda rows: None, prompts, 6, 1, Choice(stop=stop).stops)
    assert beams.tolist() == expected


def test_prompts_end_together():
    tokens, padding = generation.left_padded([torch.tensor([4, 5, 6]), torch.tensor([7])])
    assert tokens[:, -1].tolist() == [6, 7]
    assert padding.tolist() == [0, 2]
    assert generation.left_padded([torch.tensor([4, 5]), torch.tensor([7, 8])])[1] is None
