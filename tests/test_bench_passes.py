"""What is timed: the work of layers and floors, counted by torch; peers that compute the same; memory."""

import copy
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from querykey import PARTITIONS, KVCache, Layout, SelfAttention
from querykey.bench import memory, passes, peers, theory
from querykey.bench.config import PASSES, Case, Setting, Shape

SHAPE = Shape(batch=3, length=7, dim=20, heads=4)
CACHED = 11
CORES = ("q=k,v+core=full", "q=k,v+core=symmetric", "q=k=v+core=full", "q=k,v+core=full+kv_heads=2")
GROUPED = ("q,k,v+kv_heads=2", "q,k=v+kv_heads=1")
DESIGNS = (*PARTITIONS, *CORES, *GROUPED, "q=x,k,v", "q=k=x,v")


def case(what, shape=SHAPE, cached=CACHED, **chosen):
    return Case.of(Setting(shapes=(shape,), cached=cached, **chosen), shape, what)


def layer_of(layout, causal=False):
    return SelfAttention(layout.dim, layout.heads, layout.design, causal=causal, rotary=layout.rotary)


def counted(run):
    """FLOPs of all matrix products; the counter does not know the CPU's fused kernel."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("design", DESIGNS)
def test_layer_and_floor_do_the_work_that_theory_counts(design, what, monkeypatch):
    # the counter does not follow `grad` to leaves
    monkeypatch.setattr(torch.autograd, "grad", lambda out, leaves, direction: out.backward(direction))
    one = case(what)
    layout = Layout.of(design, SHAPE.dim, SHAPE.heads)
    expected = theory.flops(layout, one)
    if what == "prefill":
        assert expected == SHAPE.batch * layout.flops(SHAPE.length)
    if what == "training":  # of 3.5 times the pairs, half a time is what fused kernels form once more
        pairs = 2 * SHAPE.length**2 * layout.heads * (layout.qk_dim + layout.head_dim)
        expected -= SHAPE.batch * pairs // 2
    layer = layer_of(layout)
    assert counted(passes.of_layer(layer, one.input(), one).run) == expected
    assert counted(passes.of_floor(layout, one)) == expected


def test_a_causal_mask_leaves_half_of_the_pairs():
    layout = Layout.of("q,k,v", 20, 4)
    whole, causal = (theory.flops(layout, case("prefill", causal=causal)) for causal in (False, True))
    hidden = 7 * 6 // 2  # pairs above the diagonal
    assert whole - causal == 3 * hidden * 2 * 4 * (5 + 5)


@pytest.mark.parametrize("window", [1, 3, 6, 7, 8, None])
def test_a_window_leaves_the_pairs_within_it(window):
    layout = Layout.of("q,k,v", 20, 4)
    pair = SHAPE.batch * 2 * 4 * (5 + 5)
    seen = [[i - (window or 99) < j <= i for j in range(SHAPE.length)] for i in range(SHAPE.length)]
    fewer = (theory.flops(layout, case("prefill", causal=True, window=size)) for size in (window, 1))
    assert next(fewer) - next(fewer) == pair * (sum(map(sum, seen)) - SHAPE.length)
    last = min(CACHED + 1, window or 99)
    fewer = (theory.flops(layout, case("decoding", causal=True, window=size)) for size in (window, 1))
    assert next(fewer) - next(fewer) == pair * (last - 1)
    read = (theory.step_bytes(layout, case("decoding", causal=True, window=size)) for size in (window, 1))
    assert next(read) - next(read) == SHAPE.batch * (last - 1) * 2 * 20 * 4


@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("window", [2, 4, 50])
def test_passes_with_a_window_are_those_of_the_layer(window, what):
    layer = SelfAttention(24, 4, causal=True, window=window)
    one = case(what, SHAPE._replace(dim=24))._replace(causal=True, window=window)
    x = one.input()
    made = passes.of_layer(layer, x, one)
    if what == "training":
        wanted = torch.autograd.grad(layer(x), (x, *layer.parameters()), torch.ones_like(x))
        assert [gradient.shape for gradient in made.run()] == [gradient.shape for gradient in wanted]
        return
    with torch.no_grad():
        if what == "decoding":
            cache = KVCache()
            layer(x.expand(-1, CACHED, -1), cache=cache)
            torch.testing.assert_close(made.run(), layer(x, cache=cache))
            assert made.cache_bytes == layer.layout.cache_bytes()
        else:
            torch.testing.assert_close(made.run(), layer(x))


def test_the_floor_of_a_window_sees_no_more(monkeypatch):
    asked, real = [], F.scaled_dot_product_attention

    def noted(*given, **how):
        asked.append((given, how))
        return real(*given, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    layout = Layout.of("q,k,v", SHAPE.dim, SHAPE.heads)
    for what, window in (("prefill", 3), ("prefill", 99), ("decoding", 3)):
        passes.of_floor(layout, case(what)._replace(causal=True, window=window))()
    (prefill, whole, step) = asked
    assert prefill[0][3].sum(-1).tolist() == [min(i + 1, 3) for i in range(SHAPE.length)]
    assert whole[0][3] is None
    assert whole[1]["is_causal"]
    assert step[0][1].shape[2] == 3


def test_bytes_of_a_decoding_step():
    weights = 20 * 20 + 10 * 20 + 20 * 20  # queries, the two heads of 5 that are keys and values, output
    kept = 3 * (CACHED + 1) * 10
    layout = Layout.of("q,k=v+kv_heads=2", 20, 4)
    assert theory.step_bytes(layout, case("decoding")) == 4 * (weights + kept)
    assert theory.step_bytes(layout, case("decoding", dtype="bfloat16")) == 2 * (weights + kept)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("design", ["q,k,v", "q,k=v", "q=k,v+core=full+selfmask", "q,k,v+kv_heads=2+qknorm"])
def test_a_decoding_step_leaves_the_cache_as_it_was(design, rotary):
    layout = Layout.of(design, 24, 4, rotary=rotary)
    layer, one = layer_of(layout, causal=True), case("decoding", SHAPE._replace(dim=24))
    x, plain = one.input(), KVCache()
    made = passes.of_layer(layer, x, one)
    with torch.no_grad():
        layer(x.expand(-1, CACHED, -1), cache=plain)  # what it is filled with: x again and again
        assert made.cache_bytes == plain.nbytes // (SHAPE.batch * CACHED)
        if not rotary or layout.reads["k"] == layout.reads["v"]:
            first, again = made.run(), made.run()
            torch.testing.assert_close(first, layer(x, cache=plain))
            torch.testing.assert_close(again, first)


def test_steps_write_into_room_that_is_there():
    layer, one = SelfAttention(20, 4, causal=True), case("decoding")
    x = one.input()
    with torch.no_grad():
        cache = passes.filled(layer, x, CACHED)
        assert len(cache) == CACHED
        made = memory.peak_bytes(lambda: layer(x, cache=copy.copy(cache)), x.device)
    assert len(cache) == CACHED
    assert made < cache.nbytes


# Peers


def found_peers(word, shape, causal):
    package = peers.PACKAGES[word].replace("-", "_")
    pytest.importorskip(package)
    return [peers.PEERS[name](shape, causal) for name in peers.NAMES[word]]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("word", ["mha", "x-transformers", "hf"])
def test_peers_compute_what_ours_computes(word, causal):
    shape = SHAPE._replace(dim=24)
    for peer in found_peers(word, shape, causal):
        layer = SelfAttention(24, 4, causal=causal, bias=peer.bias, rotary=peer.rotary)
        peers.copy_weights(peer, layer)
        x = case("training", shape).input()
        ours, theirs = layer(x), peer.forward(x)
        torch.testing.assert_close(theirs, ours)
        torch.testing.assert_close(*(torch.autograd.grad(out.sum(), x)[0] for out in (theirs, ours)))
        peer.module.eval()
        with torch.no_grad():  # where MultiheadAttention may take another path
            torch.testing.assert_close(peer.forward(x), ours)


@pytest.mark.parametrize("word", ["x-transformers", "hf"])
def test_peers_decode_what_ours_decodes(word):
    shape = SHAPE._replace(dim=24)
    for peer in found_peers(word, shape, causal=True):
        if peer.decoding is None:
            assert peer.name == "hf-bert"
            continue
        layer = SelfAttention(24, 4, causal=True, bias=peer.bias, rotary=peer.rotary)
        peers.copy_weights(peer, layer)
        kept = []

        class Watched(KVCache):
            def append(self, *given, kept=kept, **new):
                kept.append([tensor.clone() for tensor in new.values()])
                return super().append(*given, **new)

        x, cache = case("prefill", shape).input(), Watched()
        with torch.no_grad():
            layer(x[:, :-1], cache=cache)
            expected = layer(x[:, -1:], cache=cache)
            step = peer.decoding(*kept[0])
            for _ in range(3):  # the same each time: its cache does not grow
                torch.testing.assert_close(step(x[:, -1:]), expected)


def test_peers_that_are_not_installed(monkeypatch):
    monkeypatch.setattr(peers, "find_spec", lambda name: None)
    assert peers.missing("hf") == "hf is not installed and left out: pip install transformers"
    monkeypatch.setattr(peers, "find_spec", lambda name: SimpleNamespace())
    assert peers.missing("hf") == ""


# Memory


def test_the_peak_of_a_run():
    a = torch.zeros(64, 64)  # 16,384 bytes, held before

    def run():
        b = a + 1
        c = torch.cat([b, b])  # 3 together
        del b
        return torch.cat([c, c])  # 6 together

    assert memory.peak_bytes(run, a.device) == 6 * 16384
    assert memory.peak_bytes(lambda: a.add_(1), a.device) < 1000


def test_what_is_made_only_once_is_not_in_the_peak():
    kept = {}

    def run():
        if not kept:
            kept["table"] = torch.zeros(100_000)

    assert memory.peak_bytes(run, torch.device("cpu")) < 1000


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("what", PASSES)
@pytest.mark.parametrize("design", ["q,k,v", "q=k=v", "q=k,v+core=full", "q,k,v+kv_heads=2", "q,k,v+qk_dim=32"])
def test_the_estimate_is_near_what_a_pass_takes(design, what, causal):
    """Never less than three quarters, never more than three times; some kilobytes aside."""
    shape = Shape(2, 320, 64, 4)
    one = case(what, shape, cached=500, causal=causal)
    layout = Layout.of(design, 64, 4)
    run = passes.of_layer(layer_of(layout, causal), one.input(), one).run
    peak, estimate = memory.peak_bytes(run, one.device), 4 * memory._running_numbers(layout, one)
    assert 0.75 * peak - 4096 < estimate < 3 * peak + 40_000


def test_the_estimate_knows_when_all_scores_are_kept():
    shape = Shape(2, 320, 16, 4)
    one, layout = case("prefill", shape), Layout.of("q,k,v", 16, 4)
    assert not memory.keeps_all_scores(layout, one)
    with sdpa_kernel(SDPBackend.MATH):
        assert memory.keeps_all_scores(layout, one)
        run = passes.of_layer(layer_of(layout), one.input(), one).run
        peak, estimate = memory.peak_bytes(run, one.device), 4 * memory._running_numbers(layout, one)
    assert 2 * 4 * 320 * 320 * 4 < peak < estimate < 3 * peak


def test_a_shape_that_does_not_fit_is_refused_with_its_bytes():
    one, layouts = case("prefill", Shape(8, 1024, 64, 4)), [Layout.of("q,k,v", 64, 4)]
    needed = memory.needed_bytes(layouts, one)
    memory.refuse_too_large(layouts, one, available=needed)
    with pytest.raises(ValueError, match=r"needs about 0\.0\d+ GB, but 0\.001 GB are free on cpu"):
        memory.refuse_too_large(layouts, one, available=1_000_000)
    assert memory.needed_bytes(layouts * 2, one) > needed
    assert memory.available_bytes(one.device) > 0
