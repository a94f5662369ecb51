"""What is timed: the work of layers and lower bounds, counted by torch; peers that compute the same; memory."""

import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from querykey import PARTITIONS, KVCache, Layout, SelfAttention
from querykey.bench import memory, passes, peers, work
from querykey.bench.case import Case
from querykey.bench.config import Config, Shape

PASSES = Config.passes
SHAPE = Shape(batch=3, length=7, dim=20, heads=4)
CACHED = 11
CORES = ("q=k,v+core=full", "q=k,v+core=symmetric", "q=k=v+core=full", "q=k,v+core=full+kv_heads=2")
GROUPED = ("q,k,v+kv_heads=2", "q,k=v+kv_heads=1")
DESIGNS = (*PARTITIONS, *CORES, *GROUPED, "q=x,k,v", "q=k=x,v")


def case(what, shape=SHAPE, cached=CACHED, **chosen):
    return Case.of(Config(shapes=(shape,), cached=cached, **chosen), shape, what)


def layer_of(layout, causal=False):
    return SelfAttention(layout.dim, layout.heads, layout.design, causal=causal, rotary=layout.rotary)


def counted(run):
    """FLOPs of all matrix products; the counter does not know the CPU's fused kernel."""
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        run()
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("design", "what"),
    [
        *itertools.product(DESIGNS, PASSES),
        *itertools.product(("q,k=v+latent=7", "q=k,v+latent=7"), ("prefill", "training")),
    ],
)
def test_layer_and_lower_bound_do_the_work_that_is_counted(design, what, monkeypatch):
    # the counter does not follow `grad` to leaves
    monkeypatch.setattr(torch.autograd, "grad", lambda out, leaves, direction: out.backward(direction))
    one = case(what)
    layout = Layout.of(design, SHAPE.dim, SHAPE.heads)
    expected = work.flops(layout, one)
    if what == "prefill":
        assert expected == SHAPE.batch * layout.flops(SHAPE.length)
    if what == "training":  # of 3.5 times the pairs, half a time is what fused kernels form once more
        pairs = 2 * SHAPE.length**2 * layout.heads * (layout.qk_dim + layout.head_dim)
        expected -= SHAPE.batch * pairs // 2
    layer = layer_of(layout)
    assert counted(passes.of_layer(layer, one.input(), one).run) == expected
    assert counted(passes.of_lower_bound(layout, one)) == expected


def test_a_causal_mask_leaves_half_of_the_pairs():
    layout = Layout.of("q,k,v", 20, 4)
    whole, causal = (work.flops(layout, case("prefill", causal=causal)) for causal in (False, True))
    hidden = 7 * 6 // 2  # pairs above the diagonal
    assert whole - causal == 3 * hidden * 2 * 4 * (5 + 5)


@pytest.mark.parametrize("window", [1, 3, 6, 7, 8, None])
def test_a_window_leaves_the_pairs_within_it(window):
    layout = Layout.of("q,k,v", 20, 4)
    pair = SHAPE.batch * 2 * 4 * (5 + 5)
    seen = [[i - (window or 99) < j <= i for j in range(SHAPE.length)] for i in range(SHAPE.length)]
    fewer = (work.flops(layout, case("prefill", causal=True, window=size)) for size in (window, 1))
    assert next(fewer) - next(fewer) == pair * (sum(map(sum, seen)) - SHAPE.length)
    last = min(CACHED + 1, window or 99)
    fewer = (work.flops(layout, case("decoding", causal=True, window=size)) for size in (window, 1))
    assert next(fewer) - next(fewer) == pair * (last - 1)
    read = (work.step_bytes(layout, case("decoding", causal=True, window=size)) for size in (window, 1))
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


def test_the_lower_bound_of_a_window_attends_to_no_more(monkeypatch):
    asked, real = [], F.scaled_dot_product_attention

    def noted(*given, **how):
        asked.append((given, how))
        return real(*given, **how)

    monkeypatch.setattr(F, "scaled_dot_product_attention", noted)
    layout = Layout.of("q,k,v", SHAPE.dim, SHAPE.heads)
    for what, window in (("prefill", 3), ("prefill", 99), ("decoding", 3)):
        passes.of_lower_bound(layout, case(what)._replace(causal=True, window=window))()
    (prefill, whole, step) = asked
    assert prefill[0][3].sum(-1).tolist() == [min(i + 1, 3) for i in range(SHAPE.length)]
    assert whole[0][3] is None
    assert whole[1]["is_causal"]
    assert step[0][1].shape[2] == 3


def test_bytes_of_a_decoding_step():
    weights = 20 * 20 + 10 * 20 + 20 * 20  # queries, the two heads of 5 that are keys and values, output
    kept = 3 * (CACHED + 1) * 10
    layout = Layout.of("q,k=v+kv_heads=2", 20, 4)
    assert work.step_bytes(layout, case("decoding")) == 4 * (weights + kept)
    assert work.step_bytes(layout, case("decoding", dtype="bfloat16")) == 2 * (weights + kept)


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


def test_steps_write_into_the_buffer():
    layer, one = SelfAttention(20, 4, causal=True), case("decoding")
    x = one.input()
    with torch.no_grad():
        cache = passes.filled(layer, x, CACHED)
        assert len(cache) == CACHED
        made = memory.peak_bytes(lambda: layer(x, cache=copy.copy(cache)), x.device)
    assert len(cache) == CACHED
    assert made < cache.nbytes


# Peers


def three(weight, bias=None):
    """Three projections that are stacked in one weight."""
    names = ("q_proj", "k_proj", "v_proj")
    found = dict(zip(names, weight.chunk(3), strict=True))
    return found if bias is None else found | {f"{n}.bias": b for n, b in zip(names, bias.chunk(3), strict=True)}


def named(*layers):
    """Four `nn.Linear` as the weights of q, k, v and o."""
    found = {}
    for role, layer in zip("qkvo", layers, strict=True):
        found |= {f"{role}_proj": layer.weight} | ({} if layer.bias is None else {f"{role}_proj.bias": layer.bias})
    return found


WEIGHTS = {  # of each peer, under our names
    "mha": lambda m: three(m.in_proj_weight) | {"o_proj": m.out_proj.weight},
    "x-transformers": lambda m: named(m.to_q, m.to_k, m.to_v, m.to_out),
    "hf-bert": lambda m: named(m[0].query, m[0].key, m[0].value, m[1]),
    "hf-gpt2": lambda m: (
        three(m.c_attn.weight.T, m.c_attn.bias) | {"o_proj": m.c_proj.weight.T, "o_proj.bias": m.c_proj.bias}
    ),
    "hf-llama": lambda m: named(m.q_proj, m.k_proj, m.v_proj, m.o_proj),
}


def copy_weights(peer, layer):
    theirs, ours = WEIGHTS[peer.name](peer.module), layer.named_weights()
    assert theirs.keys() == ours.keys()
    with torch.no_grad():
        for name, weight in ours.items():
            weight.copy_(theirs[name])


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
        copy_weights(peer, layer)
        x = case("training", shape).input()
        ours, theirs = layer(x), peer.forward(x)
        torch.testing.assert_close(theirs, ours)
        torch.testing.assert_close(*(torch.autograd.grad(out.sum(), x)[0] for out in (theirs, ours)))
        peer.module.eval()
        with torch.no_grad():  # where MultiheadAttention may take another path
            torch.testing.assert_close(peer.forward(x), ours)


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method:DeprecationWarning")  # of inductor
@pytest.mark.parametrize("caches", [{"", "static"}, pytest.param({"compiled"}, marks=pytest.mark.slow)], ids=str)
@pytest.mark.parametrize("word", ["x-transformers", "hf"])
def test_peers_decode_what_ours_decodes(word, caches):
    shape = SHAPE._replace(dim=24)
    for peer in found_peers(word, shape, causal=True):
        if not peer.decoding:
            assert peer.name == "hf-bert"
            continue
        layer = SelfAttention(24, 4, causal=True, bias=peer.bias, rotary=peer.rotary)
        copy_weights(peer, layer)
        kept = []

        class Watched(KVCache):
            def append(self, *given, kept=kept, **new):
                kept.append([tensor.clone() for tensor in new.values()])
                return super().append(*given, **new)

        x, cache = case("prefill", shape).input(), Watched()
        with torch.no_grad():
            layer(x[:, :-1], cache=cache)
            expected = layer(x[:, -1:], cache=cache)
            for kind in caches & peer.decoding.keys():
                step = peer.decoding[kind](*kept[0])
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
def test_the_bound_of_a_pass_is_no_more_than_it_takes(design, what, causal):
    shape = Shape(2, 320, 64, 4)
    one = case(what, shape, cached=500, causal=causal)
    layout = Layout.of(design, 64, 4)
    run = passes.of_layer(layer_of(layout, causal), one.input(), one).run
    peak, bound = memory.peak_bytes(run, one.device), 4 * memory.pass_numbers(layout, one)
    assert peak / (30 if what == "decoding" else 8) - 4096 < bound <= peak + 4096


@pytest.mark.parametrize("what", PASSES)
def test_the_bound_of_a_case_is_no_more_than_its_variants_keep(what):
    """What is kept: weights and tensors of the lower bound, or caches; beside it one pass."""
    one, layout = case(what, Shape(2, 320, 64, 4), cached=500), Layout.of("q=k,v", 64, 4)
    kept = []

    def make():
        kept.append((passes.of_layer(layer_of(layout), one.input(), one), passes.of_lower_bound(layout, one)))
        return kept

    whole = memory.peak_bytes(make, one.device) + memory.peak_bytes(kept[0][0].run, one.device)
    assert whole / 3 < memory.needed_bytes([layout], one) <= whole + 4 * 2 * layout.parameters


def test_a_shape_that_does_not_fit_is_refused_with_its_bytes():
    one, layouts = case("prefill", Shape(8, 1024, 64, 4)), [Layout.of("q,k,v", 64, 4)]
    needed = memory.needed_bytes(layouts, one)
    memory.refuse_too_large(layouts, one, available=needed)
    with pytest.raises(ValueError, match=r"needs at least [\d.]+ MB, but 1 MB are free on cpu"):
        memory.refuse_too_large(layouts, one, available=1_000_000)
    assert memory.needed_bytes(layouts * 2, one) > needed
    assert memory.available_bytes(one.device) > 0
