"""The universal test: every design equals the plain formula on its expanded weights, forward and gradient."""

import io
import itertools
import random

import pytest
import torch

from querykey import PARTITIONS, Design, DesignError, KVCache, Layout, Rotary, SelfAttention
from querykey.attention.expansion import core_matrix
from querykey.attention.reference import masked_softmax

HEADS, DIM, LENGTH, KEYS, BATCH = 6, 60, 7, 11, 3  # heads of 10 numbers, so that rotary has pairs
CONTEXT_START = 5  # first position of a context

SHARINGS = (*PARTITIONS, "q=k=x,v", "q=x,k,v", "q,k=x,v", "q,k,v=x", "q,k=v=x", "q=v=x,k", "q=k=v=x")
OPTIONS = (
    "",
    "+core=signed",
    "+core=symmetric",
    "+core=full",
    "+core=full+selfmask+qknorm",
    "+core=full+cosine+selfmask",
    "+core=signed+l2",
    "+selfmask",
    "+cosine",
    "+l2",
    "+qknorm",
    "+qknorm+cosine",
    "+qknorm+l2+selfmask",
    "+qk_dim=4",
    "+qk_dim=14+l2",
    "+kv_heads=2",
    "+kv_heads=1+cosine",
    "+kv_heads=3+l2",
    "+core=full+kv_heads=2",
    "+core=full+kv_heads=1+cosine",
    "+core=full+kv_heads=3+qk_dim=4+qknorm",
    "+qkscale=0.25",
    "+latent=12",
    "+latent=7+kv_heads=2+qknorm",
    "+latent=9+qk_dim=4+l2+selfmask",
    "+latent=16+kv_heads=3+cosine",
    "+xsa",
    "+xsa+kv_heads=2+selfmask",
    "+xsa+latent=9",
)
SETTINGS = (
    "plain",
    "causal",
    "padding",
    "additive",
    "rotary",
    "cross",
    "cached",
    "rotary cached",
    "window causal",
    "rotary window causal padding",
    "window cached",
    "rotary window cached",
    "bias causal padding",
    "bias rotary cached",
    "rotary cross",
    "partial rotary causal",
    "static cached",
    "rotary window static cached",
    "softcap causal",
    "sinks padding",
    "alibi causal additive",
    "alibi sinks softcap bias window cached",
    "alibi sinks softcap rotary static cached",
    "documents causal",
    "documents alibi sinks softcap rotary window causal",
    "wide cross",
    "values rotary cross",
    "key padding rotary causal",
    "key padding alibi sinks causal",
    "softcap sinks cross",
    "partial rotary cached",
    "partial rotary static cached",
)


def rotation(setting):
    return Rotary(500.0, 4, interleaved=True) if "partial" in setting else "rotary" in setting


def possible(sharing, option, setting=""):
    """The design, or None where the layout refuses it. With head_dim 30 an unprojected input may have 2 key heads."""
    try:
        design = Design.parse(sharing + option)
        head_dim = DIM // (design.kv_heads or HEADS) if "x" in sharing else DIM // HEADS
        context = DIM + 12 if "wide" in setting else None
        layout = Layout.of(design, DIM, HEADS, head_dim=head_dim, rotary=rotation(setting), context_dim=context)
    except DesignError:
        return None
    if "cross" in setting and (design.selfmask or design.xsa):
        return None
    if "values" in setting and layout.reads["k"] == layout.reads["v"]:
        return None
    return design, head_dim


CASES = [
    (*found, setting)
    for sharing, option, setting in itertools.product(SHARINGS, OPTIONS, SETTINGS)
    if (found := possible(sharing, option, setting))
]


def pairwise(cases):
    """About a fifth of the cases, in which still every two of sharing, option and setting meet that can meet."""
    chosen, met = [], set()
    for design, head_dim, setting in random.Random(0).sample(cases, len(cases)):
        option = str(design).removeprefix(design.sharing)
        pairs = {(design.sharing, option), (design.sharing, setting), (option, setting)}
        if pairs - met:
            chosen.append((design, head_dim, setting))
            met |= pairs
    return chosen


QUICK = pairwise(CASES)


def oracle(layer, x, mask=None, context=None, positions=None, values=None, document=None, key_padding=None):
    """softmax(Q Kᵀ / √d_k) V from `layer.weights()`, written with einsum, complex rotations and index arithmetic."""
    w, design, layout = layer.weights(), layer.design, layer.layout
    source = x if context is None else context
    others = source if values is None else values

    def project(inputs, matrix, bias):
        out = torch.einsum("bnd,hdk->bhnk", inputs, matrix)
        return out if bias is None else out + bias[:, None, :]

    q = project(x, w.W_Q, w.b_Q)
    k, v = (
        project(given, matrix, bias)[:, torch.arange(HEADS) // (HEADS // layout.kv_heads)]
        for given, matrix, bias in ((source, w.W_K, w.b_K), (others, w.W_V, w.b_V))
    )
    if design.qknorm:
        q, k = (
            gain * part / (part.pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
            for gain, part in ((w.q_gain, q), (w.k_gain, k))
        )
    if layout.rotary:
        q, k = turned(q, layout), turned(k, layout, 0 if context is None else CONTEXT_START)
    scores = torch.einsum("bhqk,bhsk->bhqs", q, k)
    match design.similarity:
        case "dot":
            scores = scores * layout.qk_dim**-0.5
        case "cosine":
            norms = torch.linalg.norm(q, dim=-1)[..., None] * torch.linalg.norm(k, dim=-1)[..., None, :]
            scores = scores / norms * w.temperature[:, None, None]
        case "l2":
            scores = (q[..., :, None, :] - k[..., None, :, :]).square().sum(-1) * -0.5 * layout.qk_dim**-0.5
    i, j = torch.arange(x.shape[1])[:, None], torch.arange(source.shape[1])
    if layer.scoring.softcap is not None:
        scores = layer.scoring.softcap * torch.tanh(scores / layer.scoring.softcap)
    if layer.scoring.alibi:  # six heads: four slopes of a quarter of 8, then every second of an eighth
        slopes = 0.5 ** torch.tensor([2.0, 4.0, 6.0, 8.0, 1.0, 3.0]).double()
        scores = scores - slopes[:, None, None] * (i + source.shape[1] - x.shape[1] - j).abs()
    allowed = torch.ones(BATCH, HEADS, x.shape[1], source.shape[1], dtype=torch.bool)
    if layer.causal:
        allowed &= j <= i + source.shape[1] - x.shape[1]
    if document is not None:
        allowed &= (document[:, :, None] == document[:, None])[:, None]
    if key_padding is not None:
        allowed &= key_padding[:, None, None]
    if layer.window is not None:
        allowed &= i + source.shape[1] - x.shape[1] - j < layer.window
    if mask is not None:
        allowed &= mask if mask.dtype == torch.bool else mask > -torch.inf
        if mask.dtype != torch.bool:
            scores = scores + mask.clamp(min=-1e9)
    if design.selfmask:
        alone = ~(allowed & (i != j)).any(-1, keepdim=True)
        allowed &= (i != j) | alone
    top = scores.amax(-1, keepdim=True)
    weights = torch.where(allowed, (scores - top).exp(), 0.0)
    total = weights.sum(-1, keepdim=True)
    if w.sinks is not None:
        total = total + (w.sinks[:, None, None] - top).exp()
    heads = torch.einsum("bhqs,bhsk->bhqk", weights / total.clamp(min=1e-300), v)
    if design.xsa:
        heads = heads - (heads * v).sum(-1, keepdim=True) / (v * v).sum(-1, keepdim=True) * v
    if key_padding is not None:
        heads = heads * key_padding[:, None, :, None]
    out = torch.einsum("bhqk,hkd->bqd", heads, w.W_O)
    return out if w.b_O is None else out + w.b_O


def turned(x, layout, start=0):
    base, size = layout.rotary.base, layout.rotary.size or x.shape[-1]
    places = torch.arange(start, start + x.shape[-2]).double()
    angle = torch.outer(places, base ** (-torch.arange(size // 2).double() * 2 / size))
    first, second = (range(0, size, 2), range(1, size, 2)) if layout.rotary.interleaved else torch.arange(size).chunk(2)
    z = torch.complex(x[..., list(first)], x[..., list(second)]) * torch.polar(torch.ones_like(angle), angle)
    out = x.clone()
    out[..., list(first)], out[..., list(second)] = z.real, z.imag
    return out


def make(design, head_dim, setting, seed=5):
    generator = torch.Generator().manual_seed(seed)
    layer = SelfAttention(
        DIM,
        HEADS,
        design,
        head_dim=head_dim,
        causal="causal" in setting or "cached" in setting,
        rotary=rotation(setting),
        window=3 if "window" in setting else None,
        bias="bias" in setting,
        context_dim=DIM + 12 if "wide" in setting else None,
        softcap=3.0 if "softcap" in setting else None,
        sinks="sinks" in setting,
        alibi="alibi" in setting,
    ).double()
    with torch.no_grad():
        for parameter in layer.parameters():
            # gains, temperatures and biases too are drawn, so that none is left out unnoticed
            parameter.add_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.1)
    x = torch.randn(BATCH, LENGTH, DIM, generator=generator, dtype=torch.float64, requires_grad=True)
    inputs = {}
    if "cross" in setting:
        shape = (BATCH, KEYS, DIM + 12 if "wide" in setting else DIM)
        inputs["context"] = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
        if "rotary" in setting:
            inputs["positions"] = torch.arange(LENGTH), torch.arange(CONTEXT_START, CONTEXT_START + KEYS)
    if "values" in setting:
        inputs["values"] = torch.randn(shape, generator=generator, dtype=torch.float64, requires_grad=True)
    if "documents" in setting:
        inputs["document"] = torch.tensor([[4, 4, 1, 1, 1, 1, 9], [0] * 7, [3, 2, 2, 2, 2, 1, 1]])
    if "key padding" in setting:
        inputs["key_padding"] = torch.arange(LENGTH) < torch.tensor([7, 4, 1])[:, None]
    elif "padding" in setting:
        inputs["mask"] = (torch.arange(LENGTH) < torch.tensor([7, 4, 1])[:, None])[:, None, None, :]
    if "additive" in setting:
        mask = torch.randn(BATCH, 1, LENGTH, LENGTH, generator=generator, dtype=torch.float64)
        mask[mask < -0.7] = -torch.inf
        mask[0, 0, 2] = -torch.inf  # nothing left
        mask[1, 0, 3] = -torch.inf
        mask[1, 0, 3, 3] = 0.5  # itself alone
        inputs["mask"] = mask
    return layer, x, inputs, generator


def by_formula(query, key, value, scores, mask):
    """An attention function for `forward_with`."""
    return masked_softmax(scores(query, key), mask) @ value


def stepwise(layer, x, sizes=(1, 1, 3, 2), static=False):
    cache = KVCache.static(BATCH, LENGTH + 2, layer.layout, dtype=x.dtype) if static else KVCache()
    return torch.cat([layer(part, cache=cache) for part in x.split(sizes, 1)], 1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("cases", [QUICK, pytest.param(CASES, marks=pytest.mark.slow)], ids=["pairs", "all"])
@pytest.mark.parametrize("setting", [setting for setting in SETTINGS if "static" not in setting])
def test_every_design_equals_the_formula_on_its_expanded_weights(setting, cases):
    cases = [case for case in cases if case[2] == setting]
    assert len(cases) > 9
    for design, head_dim, _ in cases:
        layer, x, inputs, generator = make(design, head_dim, setting)
        expected = oracle(layer, x, **inputs)
        direction = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
        leaves = [x, *layer.parameters(), *(t for name, t in inputs.items() if name in ("context", "values"))]
        wanted = torch.autograd.grad((expected * direction).sum(), leaves, allow_unused=True)
        ways = (
            [stepwise(layer, x), stepwise(layer, x, (4, 2, 1))]
            if "cached" in setting
            else [layer(x, **inputs), layer(x, **inputs, return_weights=True)[0]]
        )
        if not inputs.keys() & {"context", "document", "key_padding"} and not {"cached", "sinks"} & {*setting.split()}:
            ways.append(layer.forward_with(by_formula, x, **inputs))
        for got in ways:
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-10, msg=lambda m, d=design: f"{d}: {m}")
            gradients = torch.autograd.grad((got * direction).sum(), leaves, allow_unused=True)
            for gradient, reference in zip(gradients, wanted, strict=True):
                torch.testing.assert_close(
                    torch.zeros(()) if gradient is None else gradient,
                    torch.zeros(()) if reference is None else reference,
                    rtol=0, atol=1e-8, check_dtype=False, msg=lambda m, d=design: f"gradient of {d}: {m}",
                )  # fmt: skip


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("cases", [QUICK, pytest.param(CASES, marks=pytest.mark.slow)], ids=["pairs", "all"])
def test_decoding_without_gradient_equals_the_whole_at_once(cases):
    ways = itertools.cycle([(1, 1, 3, 2), (4, 2, 1), (1,) * LENGTH, (2, 1, 4), (LENGTH,)])
    for (design, head_dim, setting), sizes in zip(cases, ways, strict=False):
        if "cached" in setting:
            layer, x, _, _ = make(design, head_dim, setting)
            with torch.no_grad():
                steps = stepwise(layer, x, sizes, "static" in setting)
                torch.testing.assert_close(
                    steps, layer(x), rtol=0, atol=1e-10, msg=lambda m, d=design, s=setting: f"{d} {s}: {m}"
                )


@pytest.mark.parametrize("sharing", PARTITIONS)
def test_a_tied_weight_is_one_parameter_and_stays_one(sharing):
    layer = SelfAttention(DIM, HEADS, sharing)
    expected = DIM * DIM * (len(Design.parse(sharing).parts) + 1)
    optimiser = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(2):
        assert sum(parameter.numel() for parameter in layer.parameters()) == expected
        w = layer.weights()
        for a, b in itertools.combinations("qkv", 2):
            same = torch.equal(getattr(w, f"W_{a.upper()}"), getattr(w, f"W_{b.upper()}"))
            assert same == layer.design.shares(a, b)
        layer(torch.randn(BATCH, LENGTH, DIM)).square().sum().backward()
        optimiser.step()


@pytest.mark.parametrize("design", ["q,k,v", "q=k,v", "q=k,v+core=full", "q,k,v+cosine", "q,k=v+l2", "q=k,v+selfmask"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_lower_precision_stays_near_the_truth(design, dtype):
    layer, x, _, _ = make(Design.parse(design), 10, "rotary causal")
    truth = layer(x)
    got = layer.to(dtype)(x.detach().to(dtype))
    assert got.dtype == dtype
    error = (got - truth).norm() / truth.norm()
    assert error < 30 * torch.finfo(dtype).eps
    torch.testing.assert_close(
        got, layer(x.detach().to(dtype), return_weights=True)[0], rtol=0.1, atol=30 * torch.finfo(dtype).eps
    )


def test_returned_weights_are_probabilities_over_what_is_allowed():
    layer = SelfAttention(DIM, HEADS, "q=k,v+selfmask", causal=True)
    _, weights = layer(torch.randn(BATCH, LENGTH, DIM), return_weights=True)
    assert weights.shape == (BATCH, HEADS, LENGTH, LENGTH)
    torch.testing.assert_close(weights.sum(-1), torch.ones(BATCH, HEADS, LENGTH))
    assert not weights.triu(1).any()
    assert not weights.diagonal(dim1=-2, dim2=-1)[..., 1:].any()  # position 0 has nothing else
    assert (weights[..., 0, 0] == 1).all()


def test_the_same_generator_gives_the_same_weights_and_qkscale_scales_those_of_q_and_k():
    one, other, scaled = (SelfAttention(DIM, HEADS, d) for d in ("q,k,v", "q,k,v", "q,k,v+qkscale=0.25"))
    for layer in (one, other, scaled):
        layer.reset_parameters(torch.Generator().manual_seed(3))
    for name, weight in one.named_weights().items():
        assert torch.equal(weight, other.named_weights()[name])
        factor = 0.25 if name in ("q_proj", "k_proj") else 1.0
        torch.testing.assert_close(factor * weight, scaled.named_weights()[name])


def test_queries_and_keys_may_start_with_the_same_values_and_stay_two_weights():
    layer, plain = (SelfAttention(DIM, HEADS, d + "+qkscale=0.5") for d in ("q,k,v+tiedstart", "q,k,v"))
    for one in (layer, plain):
        one.reset_parameters(torch.Generator().manual_seed(3))
    weights, others = layer.named_weights(), plain.named_weights()
    assert torch.equal(weights["k_proj"], weights["q_proj"])
    for name in ("q_proj", "v_proj", "o_proj"):
        assert torch.equal(weights[name], others[name])
    layer(torch.randn(BATCH, LENGTH, DIM)).square().sum().backward()
    optimiser = torch.optim.SGD(layer.parameters(), lr=0.1)
    optimiser.step()
    weights = layer.named_weights()
    assert not torch.equal(weights["k_proj"], weights["q_proj"])


@pytest.mark.parametrize("core", ["signed", "symmetric", "full"])
def test_initial_cores(core):
    layer = SelfAttention(256, 2, f"q=k,v+core={core}")
    values = layer.core.detach()
    if core == "signed":
        assert torch.equal(values, torch.tensor([1.0, -1.0]).repeat(2, 64))
    else:
        assert abs(values.std() * 128**0.5 - 1) < 0.05
        matrix = core_matrix(layer.layout, values)
        assert torch.equal(matrix, matrix.mT) == (core == "symmetric")


def test_dropout_acts_in_training_only_and_the_kernel_is_named():
    layer = SelfAttention(DIM, HEADS, dropout=0.5)
    x = torch.randn(BATCH, LENGTH, DIM)
    assert not torch.equal(layer(x), layer(x))
    assert layer.backend(x) == "math"
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert layer.backend(x) == "flash"


@pytest.mark.usefixtures("unchecked")
def test_every_design_runs_the_fused_kernel_and_backend_names_what_runs():
    from torch.profiler import ProfilerActivity, profile

    fused, seen = "aten::_scaled_dot_product_flash_attention_for_cpu", set()
    for design, head_dim, setting in CASES:
        if setting in ("plain", "causal", "cross", "window causal") and design not in seen:
            layer, x, inputs, _ = make(design, head_dim, setting)
            assert layer.backend(x, **inputs) == "flash", design
            seen.add(design)
            if len(seen) % 20 == 0:  # the profiler is slow: every twentieth
                with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:
                    layer(x, **inputs)
                assert fused in {event.key for event in profiler.key_averages()}
    assert len(seen) > 60


def test_backend_with_a_cache_leaves_the_cache_alone():
    layer = SelfAttention(DIM, HEADS, "q,k=v", causal=True, rotary=True)
    cache = KVCache()
    with torch.no_grad():
        layer(torch.randn(BATCH, LENGTH, DIM), cache=cache)
    assert layer.backend(torch.randn(BATCH, 1, DIM), cache=cache) == "flash"
    assert len(cache) == LENGTH


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"x": torch.zeros(7, 60)}, r"x must be \(batch, length, dim\) with dim 60, not \(7, 60\)"),
        ({"x": torch.zeros(3, 7, 61)}, r"not \(3, 7, 61\)"),
        ({"context": torch.zeros(3, 5, 59)}, "context must be"),
        ({"context": torch.zeros(2, 5, 60)}, "one batch size, not 3 and 2"),
        ({"context": torch.zeros(3, 5, 60), "cache": KVCache()}, "a cache is for the positions of x"),
        ({"mask": torch.ones(3, 7, dtype=torch.bool)}, r"mask\[:, None, None, :\]"),
        ({"mask": torch.ones(3, 5, 7, 7, dtype=torch.bool)}, r"\(batch, heads, query, key\) = \(3, 6, 7, 7\)"),
        ({"mask": torch.ones(7, 7, dtype=torch.bool, device="meta")}, "one device, not x on cpu, mask on meta"),
        ({"x": torch.zeros(3, 7, 60, dtype=torch.long)}, "x is torch.int64 and the layer's weights are torch.float32"),
        ({"x": torch.zeros(3, 7, 60).half()}, "x is torch.float16 and .* convert one with .to"),
        ({"context": torch.zeros(3, 5, 60).bfloat16()}, "context is torch.bfloat16"),
        ({"x": torch.zeros(3, 7, 60, device="meta")}, "x is on meta and the layer's weights on cpu; move one"),
        ({"context": torch.zeros(3, 5, 60, device="meta")}, "context is on meta"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(arguments, sentence):
    layer = SelfAttention(DIM, HEADS)
    with pytest.raises(ValueError, match=sentence):
        layer(**({"x": torch.zeros(3, 7, 60)} | arguments))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("design", ["q,k,v", "q=k=x,v", "q=k=v=x", "q,k,v+qknorm"])
def test_autocast_takes_other_floating_point_numbers_and_integers_are_refused(design):
    layer = SelfAttention(DIM, HEADS, design, causal=True, rotary=True)
    x = torch.randn(3, 7, 60)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for one in (x, x.bfloat16()):
            torch.testing.assert_close(layer(one).float(), layer(x).float(), rtol=0.05, atol=0.05)
        with pytest.raises(ValueError, match=r"x is torch\.int64"):
            layer(x.long())


def test_selfmask_refuses_a_context_and_dropout_must_be_a_probability():
    with pytest.raises(ValueError, match="no self to exclude"):
        SelfAttention(DIM, HEADS, "q,k,v+selfmask")(torch.zeros(3, 7, 60), context=torch.zeros(3, 5, 60))
    with pytest.raises(ValueError, match="dropout must be a probability"):
        SelfAttention(DIM, HEADS, dropout=1.0)


def test_a_cache_says_what_it_cannot_hold():
    layer = SelfAttention(DIM, HEADS, causal=True)
    with pytest.raises(ValueError, match="limit of a cache must be positive"):
        KVCache(limit=0)
    cache = KVCache(limit=8)
    with torch.no_grad():
        layer(torch.zeros(3, 7, 60), cache=cache)
        with pytest.raises(ValueError, match="holds 7 of at most 8 positions; 9 would be too many"):
            layer(torch.zeros(3, 2, 60), cache=cache)
        with pytest.raises(ValueError, match=r"3 rows and 6 heads of 10, float32 on cpu, but was given k of 2 rows"):
            layer(torch.zeros(2, 1, 60), cache=cache)
        layer(torch.zeros(3, 1, 60), cache=cache)
    assert len(cache) == 8


def test_a_step_copies_its_own_position_only():
    layer = SelfAttention(DIM, HEADS, causal=True)
    cache = KVCache()
    with torch.no_grad():
        addresses = []
        for _ in range(100):
            layer(torch.randn(1, 1, DIM), cache=cache)
            addresses.append(cache._buffers["k"].data_ptr())
    assert len(set(addresses)) == 2  # 64 positions, then 128


# Edges

EDGES = ("q,k,v", "q,k=v+kv_heads=2", "q=k,v+core=full+selfmask", "q,k,v+l2", "q,k=v+latent=9", "q,k,v+qk_dim=4")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("design", EDGES)
def test_empty_batches_and_lengths_give_empty_results(design, rotary):
    for causal in (False, True):
        layer = SelfAttention(DIM, HEADS, design, causal=causal, rotary=rotary)
        for shape in ((0, 7, DIM), (0, 300, DIM), (2, 0, DIM)):
            x = torch.randn(shape, requires_grad=True)
            for out in (layer(x), layer(x, return_weights=True)[0]):
                assert out.shape == shape
                assert torch.autograd.grad(out.sum(), x)[0].shape == shape
            cache = KVCache()
            with torch.no_grad():
                layer(torch.randn(shape[0], 5, DIM), cache=cache)
                step = torch.randn(shape[0], min(shape[1], 1), DIM)
                assert layer(step, cache=cache).shape == step.shape
            assert len(cache) == 5 + min(shape[1], 1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("shape", "sentence"),
    [
        ((6, 6), "the first axis .* may be query or batch, both are 6; write mask.None, None. if it is query"),
        ((6, 7, 6), "may be heads or batch, both are 6; write mask.None. if it is heads"),
    ],
)
def test_masks_that_fit_in_two_ways_are_refused(shape, sentence):
    layer, mask = SelfAttention(DIM, 6), torch.ones(shape, dtype=torch.bool)
    x = torch.zeros(6, 7 if len(shape) == 3 else 6, DIM)
    mask = mask if len(shape) == 2 else torch.ones(6, 7, 7, dtype=torch.bool)
    with pytest.raises(ValueError, match=sentence):
        layer(x, mask)
    layer(x[:5], mask[:1] if len(shape) == 3 else mask)


@pytest.mark.usefixtures("unchecked")
def test_a_causal_layer_refuses_a_context():
    with pytest.raises(ValueError, match="a causal layer cannot tell which positions of a context come before"):
        SelfAttention(DIM, HEADS, causal=True)(torch.zeros(3, 7, DIM), context=torch.zeros(3, 5, DIM))


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_old_tracers_are_told_what_to_use():
    layer, x = SelfAttention(DIM, HEADS, "q,k=v", causal=True, rotary=True), torch.zeros(2, 7, DIM)
    with pytest.raises(RuntimeError, match=r"use torch\.export, or torch\.onnx\.export\(\.\.\., dynamo=True\)"):
        torch.jit.trace(layer, (x,))
    with pytest.raises(RuntimeError, match=r"use torch\.export"):
        torch.onnx.export(layer, (x,), io.BytesIO(), dynamo=False)
