"""Designs as text: every spelling, every refusal, and the costs of the layout against what is really there."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from querykey import PARTITIONS, Design, DesignError, KVCache, Layout, SelfAttention

WORDS = ("core=full", "core=signed", "selfmask", "cosine", "l2", "qknorm", "qk_dim=16", "kv_heads=2", "latent=192")
WORDS += ("qkscale=0.25", "tiedstart")


def test_the_partitions_are_all_partitions_of_three_roles():
    def partitions(roles):
        if not roles:
            yield []
            return
        first, *rest = roles
        for others in partitions(rest):
            yield [[first], *others]
            for place in range(len(others)):
                yield [*others[:place], [first, *others[place]], *others[place + 1 :]]

    found = {",".join("=".join(part) for part in parts) for parts in map(sorted_by_role, partitions(list("qkv")))}
    assert found == set(PARTITIONS)


def sorted_by_role(parts):
    return sorted(parts, key=lambda part: "qkv".index(part[0]))


@pytest.mark.parametrize(
    ("spelling", "canonical"),
    [
        ("v,k,q", "q,k,v"),
        ("k=q,v", "q=k,v"),
        ("v,x=k=q", "q=k=x,v"),
        ("Q=K, V", "q=k,v"),
        ("q=k,v+selfmask+core=full", "q=k,v+core=full+selfmask"),
        ("q,k,v+qkscale=1.0", "q,k,v"),
        ("q,k,v+qkscale=2.50", "q,k,v+qkscale=2.5"),
        ("q,k,v+qk_dim=016", "q,k,v+qk_dim=16"),
    ],
)
def test_two_spellings_of_one_design_are_equal(spelling, canonical):
    design = Design.parse(spelling)
    assert str(design) == canonical
    assert design == Design.parse(canonical)
    assert hash(design) == hash(Design.parse(canonical))


@given(
    st.sampled_from([*PARTITIONS, "q=k=x,v", "q=x,k,v", "q,k,v=x", "q=k=v=x"]),
    st.permutations(WORDS),
    st.integers(0, len(WORDS)),
    st.floats(1e-3, 1e3),
)
def test_text_and_design_round_trip(sharing, words, count, scale):
    words = [word if not word.startswith("qkscale") else f"qkscale={scale!r}" for word in words[:count]]
    fields = ["similarity" if word in ("cosine", "l2") else word.partition("=")[0] for word in words]
    text = "+".join([sharing, *words])
    if len(set(fields)) < len(fields):
        with pytest.raises(DesignError, match="given twice"):
            Design.parse(text)
        return
    design = Design.parse(text)
    assert Design.parse(str(design)) == design
    assert str(Design.parse(str(design))) == str(design)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("q,k", "v is named 0 times"),
        ("q=k,v,v", "v is named 2 times"),
        ("q,k,w", "'w' is no role"),
        ("", "is no role"),
        ("q,k,v,x", "x, the unprojected input, stands once and beside a role"),
        ("q=x,k=x,v", "stands once"),
        ("q,k,v+cor=full", "did you mean 'core'.*known are core, selfmask, cosine, l2, qknorm, qk_dim, kv_heads"),
        ("q=k,v+core=fully", "core must be one of signed, symmetric, full, not 'fully'"),
        ("q=k,v+core", "core needs a value, such as core=full"),
        ("q,k,v+selfmask=1", "selfmask takes no value"),
        ("q,k=v+latent", "latent needs a value, such as latent=192"),
        ("q,k,v+qk_dim=0", "qk_dim must be a positive whole number, not 0"),
        ("q,k,v+qk_dim=1.5", "qk_dim needs a whole number"),
        ("q,k,v+qkscale=-1", "qkscale must be a positive number"),
        ("q,k,v+qkscale=inf", "qkscale must be a positive number"),
        ("q,k,v+", "unknown option ''"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_text_that_is_no_design_is_refused_with_a_sentence(text, sentence):
    with pytest.raises(DesignError, match=sentence):
        Design.parse(text)


@pytest.mark.parametrize(
    ("text", "sizes", "sentence"),
    [
        ("q,k,v+core=full", {}, "a core acts where queries and keys are shared"),
        ("q=v,k+core=full", {}, "a core acts where"),
        ("q=k,v+core=symmetric", {"rotary": True}, "symmetric core does not commute with rotary"),
        ("q=v,k+kv_heads=2", {}, "kv_heads cannot be chosen"),
        ("q=k,v+kv_heads=2", {}, "needs core=full"),
        ("q=k=v+kv_heads=2", {}, "needs core=full"),
        ("q=k,v+core=signed+kv_heads=2", {}, "needs core=full"),
        ("q,k=v+qk_dim=3", {}, "leave qk_dim out"),
        ("q=k=v+qk_dim=3", {}, "leave qk_dim out"),
        ("q,k,v+cosine+qkscale=0.5", {}, "cosine similarity ignores the scale"),
        ("q,k=v+qkscale=0.5", {}, "would also scale the values"),
        ("q=k=x,v+qkscale=0.5", {}, "no weight to scale"),
        ("q=k,v+tiedstart", {}, "tiedstart copies the initial W_Q to W_K"),
        ("q,k=v+tiedstart", {}, "leave tiedstart out"),
        ("q,k,v+kv_heads=2+tiedstart", {}, "leave tiedstart out"),
        ("q=x,k,v+qk_dim=3", {}, "12 numbers, but its width is 24"),
        ("q=k=v=x", {"head_dim": 5}, "20 numbers, but its width is 24"),
        ("q,k,v+kv_heads=3", {}, "kv_heads 3 must divide the 4 query heads"),
        ("q,k,v", {"heads": 5}, "5 heads do not divide dim 24"),
        ("q,k,v", {"rotary": True, "head_dim": 3}, "head size of queries and keys is 3, odd"),
        ("q,k,v", {"heads": 0}, "heads must be positive"),
        ("q,k,v+latent=6", {}, "a latent is read by roles that share"),
        ("q=x,k,v+latent=6", {}, "a latent is read by roles that share"),
        ("q,k=v=x+latent=6", {}, "a latent is a projection of the input"),
        ("q=k,v+latent=6+core=full", {}, "leave the core out"),
    ],
)
def test_designs_that_cannot_be_are_refused_at_resolve(text, sizes, sentence):
    design = Design.parse(text)
    with pytest.raises(DesignError, match=sentence):
        Layout.of(design, **({"dim": 24, "heads": 4} | sizes))


def valid_layers():
    options = ("", "+core=full", "+core=signed", "+core=symmetric", "+kv_heads=1", "+core=full+kv_heads=2", "+qk_dim=6")
    options += ("+latent=9", "+latent=12+kv_heads=2+qk_dim=6")
    extras = ("", "+cosine", "+l2+qknorm")
    sharings = (*PARTITIONS, "q=k=x,v", "q=x,k,v", "q=k=v=x", "q,k=v=x")
    for sharing, option, extra, bias, rotary in itertools.product(
        sharings, options, extras, (False, True), (False, True)
    ):
        try:
            yield SelfAttention(40, 4, sharing + option + extra, bias=bias, rotary=rotary)
        except DesignError:
            continue


@pytest.mark.usefixtures("unchecked")
def test_the_layout_counts_the_real_parameters_and_the_real_cache():
    counted = 0
    for layer in itertools.islice(valid_layers(), 0, None, 3):
        layout = layer.layout
        assert layout.parameters == sum(parameter.numel() for parameter in layer.parameters()), layer
        assert {w.name: w.shape for w in layout.weights} == {
            n: tuple(t.shape) for n, t in layer.named_weights().items()
        }
        for dtype in (torch.float32, torch.bfloat16)[counted % 2 :]:
            cache = KVCache()
            with torch.no_grad():
                layer.to(dtype)(torch.randn(3, 7, 40, dtype=dtype), cache=cache)
            assert cache.nbytes == 3 * 7 * layout.cache_bytes(dtype), layer
        counted += 1
    assert counted > 100


@pytest.mark.usefixtures("unchecked")
def test_flops_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    for layer in itertools.islice(valid_layers(), 1, None, 2):
        if layer.layout.rotary or layer.design.similarity == "l2":
            continue  # their extra columns are no matrix products of the formula
        x = torch.randn(1, 11, 40)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            layer(x, return_weights=True)  # the explicit path: every product is one that the counter knows
        assert counter.get_total_flops() == layer.layout.flops(11), layer


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("design", ["q,k,v", "q,k=v", "q,k=v+latent=9", "q=k=v+latent=9+kv_heads=2", "q=k,v+latent=9"])
def test_flops_of_a_decoding_step_are_those_that_torch_counts(design):
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    layer = SelfAttention(40, 4, design, causal=True, rotary=True)
    with torch.no_grad():
        layer(torch.randn(1, 10, 40), cache=(cache := KVCache()))
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            layer(torch.randn(1, 1, 40), cache=cache)
    assert counter.get_total_flops() == layer.layout.step_flops(11)


def test_a_latent_is_cached_where_keys_and_values_read_it():
    numbers = {
        design: Layout.of(design, 40, 4).cache_bytes() // 4
        for design in ("q,k=v+latent=9", "q=k=v+latent=9", "q=k,v+latent=9", "q,k=v+latent=9+kv_heads=1")
    }
    assert list(numbers.values()) == [9, 9, 80, 9]
    layout = Layout.of("q,k=v+latent=9+kv_heads=2", 40, 4)
    assert layout.parameters == 40 * 40 + 9 * 40 + 9 * (2 * 10 + 2 * 10) + 40 * 40
