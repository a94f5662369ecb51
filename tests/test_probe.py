"""Which rows feed which head, held against what the attention of real tiny models gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import AutoConfig, logging
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama import modeling_llama

from checkpoints import ARCHITECTURES, TINY, TWO_STEPS, seen, tie, tiny_config, tiny_model
from querykey.checkpoint.building import sizes_of
from querykey.checkpoint.emission import COLUMNS, PROBES, TOKENS, Emitter, Unknown
from querykey.checkpoint.headmap import CheckpointError, HeadMap, Projection
from querykey.checkpoint.names import Place
from querykey.checkpoint.norms import behaviour
from querykey.checkpoint.parameters import Parameters
from querykey.checkpoint.pickle_file import Tensors
from querykey.checkpoint.probe import probe
from querykey.checkpoint.rotation import rotate
from querykey.checkpoint.tables import Tables


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are not worth two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def weights(model: nn.Module, projection: Projection) -> tuple[Tensor, Tensor]:
    """W (heads, dim, size) and b (heads, 1, size) of a projection, from a model in memory."""
    store = Tensors(dict(model.named_parameters()))
    shapes = {name: store.shape(name) for name in store.names}
    parameters = Parameters(store, {name: Place((name,)) for name in store.names}, shapes, None)
    W, b = Tables(parameters, [projection], torch.float64).heads(projection)
    return W, W.new_zeros(W.shape[0], 1, W.shape[2]) if b is None else b[:, None]


def stream(projection: Projection, inputs: dict[str, Tensor]) -> Tensor:
    """What a projection acted on, (1, length, dim): the input of the module of its first step."""
    part = projection.parts[0]
    if part.inner:
        return stream(part.inner, inputs)
    x = inputs[part.weight.removesuffix(".weight")]
    return x.view(1, -1, x.shape[-1])


def turned(layer: HeadMap, y: Tensor) -> Tensor:
    """(1, heads, length, size) as they are at their positions."""
    if layer.rotary is None:
        return y
    return torch.stack([rotate(y[:, :, p], layer.rotary, p) for p in range(y.shape[2])], 2)


def assert_same(projection: Projection, head: int, expected: Tensor, actual: Tensor) -> None:
    """One head, part by part: equal up to a positive factor per token behind a normalisation, else equal.

    The models compute their angles in float32, hence 1e-5.
    """
    for part in projection.parts:
        mine = part.at[part.at // projection.size == head] % projection.size
        a, b = expected[..., mine], actual[..., mine]
        if part.norm or part.inner:
            a, b = (v / v.norm(dim=-1, keepdim=True) for v in (a, b))
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5, check_dtype=False)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_rows_give_what_attention_gets(name: str) -> None:
    model = tiny_model(name)
    layers = probe(tiny_config(name)).layers
    watch = seen(model)
    assert layers
    for layer in layers:
        call, x = watch.calls[layer.name], stream(layer.query, watch.inputs)
        assert torch.equal(x, stream(layer.key, watch.inputs))
        W_Q, b_Q = weights(model, layer.query)
        W_K, b_K = weights(model, layer.key)
        q, k = (turned(layer, torch.einsum("bld,hdk->bhlk", x, W) + b) for W, b in ((W_Q, b_Q), (W_K, b_K)))
        known = 1 if layer.positions == "other" else q.shape[2]
        for head, key_head in enumerate(layer.key_head):
            assert_same(layer.query, head, q[:, head, :known], call.query[:, head, :known])
            assert_same(layer.key, key_head, k[:, key_head, :known], call.key[:, head, :known])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_rows_give_values_and_read_the_output(name: str) -> None:
    model = tiny_model(name)
    watch = seen(model)
    for layer in probe(tiny_config(name)).layers:
        call, x = watch.calls[layer.name], stream(layer.query, watch.inputs)
        assert layer.value
        W_V, b_V = weights(model, layer.value)
        v = torch.einsum("bld,hdk->bhlk", x, W_V) + b_V
        for head, key_head in enumerate(layer.key_head):
            assert_same(layer.value, key_head, v[:, key_head, :1], call.value[:, head, :1])
        if layer.output is None:
            assert name == "deepseek_v4"  # its output projection acts on groups of rotated heads
            continue
        W_O, _ = weights(model, layer.output)
        module = layer.output.parts[0].weight.removesuffix(".weight")
        bias = dict(model.named_parameters()).get(f"{module}.bias", torch.zeros(()))
        y = torch.einsum("bhlk,hdk->bld", call.result, W_O.to(call.result)) + bias
        torch.testing.assert_close(y, watch.outputs[module].view_as(y), check_dtype=False, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", [param for param in ARCHITECTURES if param.values[0] not in TWO_STEPS])
def test_tied_through_the_map_queries_are_keys(name: str) -> None:
    model = tiny_model(name)
    layers = probe(tiny_config(name)).layers
    for layer in layers:
        tie(model, layer)
    watch = seen(model)
    for layer in layers:
        call = watch.calls[layer.name]
        (query,), (key,) = layer.query.parts, layer.key.parts
        q, k = call.query / query.scale[0], call.key / key.scale[0]
        assert torch.allclose(query.scale, query.scale[0])
        torch.testing.assert_close(q, k, rtol=1e-6, atol=1e-6, check_dtype=False)


def test_nothing_is_left_behind() -> None:
    config = tiny_config("llama")
    before = config.to_dict()
    threads, implementations, level = torch.get_num_threads(), set(ALL_ATTENTION_FUNCTIONS), logging.get_verbosity()
    probe(config)
    assert config.to_dict() == before
    assert (torch.get_num_threads(), set(ALL_ATTENTION_FUNCTIONS), logging.get_verbosity()) == (
        threads,
        implementations,
        level,
    )


def test_latent_projections_have_two_steps() -> None:
    layer = probe(tiny_config("deepseek_v3")).layers[0]
    (query,) = layer.query.parts
    assert query.weight.endswith("q_b_proj.weight")
    assert query.inner
    assert [part.weight.split(".")[-2] for part in query.inner.parts] == ["q_a_proj"]
    assert {(part.weight.split(".")[-2], part.inner is not None) for part in layer.key.parts} == {
        ("kv_b_proj", True),
        ("kv_a_proj_with_mqa", False),
    }
    assert len(layer.key.norms) == 1  # of the latent only


def test_keys_that_are_values_are_found_as_such() -> None:
    sliding, full = probe(tiny_config("gemma4")).layers
    assert sliding.value
    assert full.value
    assert sliding.value.parts[0].weight != sliding.key.parts[0].weight
    assert full.value.parts[0].weight == full.key.parts[0].weight
    assert full.value.parts[0].rows.equal(full.key.parts[0].rows)
    assert (sliding.query.size, full.query.size) == (8, 16)
    assert full.key.norms[0].weight
    assert full.value.norms[0].weight is None


def test_gains_are_told_from_gains_around_one() -> None:
    (gemma,) = probe(tiny_config("gemma3")).layers[0].query.norms
    (qwen,) = probe(tiny_config("qwen3")).layers[0].query.norms
    (cohere,) = probe(tiny_config("cohere")).layers[0].query.norms
    (olmo,) = probe(tiny_config("olmo2")).layers[0].key.norms
    assert (gemma.offset, gemma.slope, gemma.centred, gemma.size) == (1, 1, False, 8)
    assert (qwen.offset, qwen.slope, qwen.centred, qwen.size) == (0, 1, False, 8)
    assert (cohere.offset, cohere.slope, cohere.centred, cohere.size) == (0, 1, True, 8)
    assert (olmo.offset, olmo.slope, olmo.centred, olmo.size) == (0, 1, False, 24)


@pytest.mark.parametrize(("name", "pairs"), [("llama", [(0, 4), (1, 5), (2, 6), (3, 7)]), ("gptj", [(0, 1), (2, 3)])])
def test_rotary_pairs_and_frequencies(name: str, pairs: list[tuple[int, int]]) -> None:
    layer = probe(tiny_config(name)).layers[0]
    assert layer.rotary
    assert sorted(map(tuple, layer.rotary.pairs.tolist())) == pairs
    expected = 10000.0 ** -(torch.arange(len(pairs)) / len(pairs))
    torch.testing.assert_close(layer.rotary.frequency.float(), expected, rtol=1e-6, atol=0)


def test_each_layer_has_its_own_positions() -> None:
    rotary, none = probe(tiny_config("smollm3")).layers
    assert (rotary.positions, none.positions, none.rotary) == ("rotary", "none", None)
    local, full = probe(tiny_config("gemma3")).layers
    assert local.rotary
    assert full.rotary
    assert not torch.equal(local.rotary.frequency, full.rotary.frequency)
    assert probe(tiny_config("hunyuan")).layers[0].positions == "other"  # it normalises after it has rotated


def test_keys_that_do_not_turn_with_the_queries_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    turn = modeling_llama.apply_rotary_pos_emb
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, cos, sin: (turn(q, k, cos, sin)[0], k))
    layer = probe(tiny_config("llama")).layers[0]
    assert (layer.positions, layer.rotary) == ("other", None)


def test_scaling_is_found() -> None:
    assert probe(tiny_config("granite")).layers[0].scaling == 0.3
    assert probe(tiny_config("gemma2")).layers[0].scaling == pytest.approx(19**-0.5)
    assert probe(tiny_config("bloom")).layers[0].scaling == pytest.approx(8**-0.5)  # inside its product of q and k
    assert probe(tiny_config("mpt")).layers[0].scaling == pytest.approx(
        8**-0.5
    )  # with a bias that depends on positions


def test_images_of_very_many_patches_are_not_run_at_their_size() -> None:
    """Their mask of all pairs of patches would take all memory."""
    config = AutoConfig.for_model("clip", vision_config={"image_size": 1540, "patch_size": 14})
    (small,) = sizes_of(config)
    assert (small.vision_config.image_size, config.vision_config.image_size) == (16 * 14, 1540)
    config = AutoConfig.for_model("clip", vision_config={"image_size": 896, "patch_size": 14})
    assert sizes_of(config)[-1] is config


def test_shared_layers_count_once() -> None:
    (layer,) = probe(tiny_config("albert")).layers
    assert layer.uses == 2
    assert layer.query.parts[0].inner is None  # the projection of the embeddings is not part of it


@pytest.mark.parametrize("name", ["t5", "bart"])
def test_cross_attention_has_keys_of_another_input(name: str) -> None:
    """The rows give its queries from the decoder's input and its keys from the encoder's output."""
    model, found = tiny_model(name), probe(tiny_config(name))
    assert (len(found.layers), len(found.cross), found.skipped) == (4, 2, ())
    watch = seen(model)
    for layer in found.cross:
        call = watch.calls[layer.name]
        q, k = stream(layer.query, watch.inputs), stream(layer.key, watch.inputs)
        assert not torch.equal(q, k)
        for projection, x, actual in ((layer.query, q, call.query), (layer.key, k, call.key)):
            W, b = weights(model, projection)
            expected = torch.einsum("bld,hdk->bhlk", x, W) + b
            torch.testing.assert_close(expected, actual, rtol=1e-6, atol=1e-6, check_dtype=False)


def test_each_layer_has_its_own_window() -> None:
    assert [layer.window for layer in probe(tiny_config("gemma3")).layers] == [4096, None]
    assert [layer.window for layer in probe(tiny_config("llama")).layers] == [None, None]
    config = AutoConfig.for_model("modernbert", **TINY["modernbert"][1] | {"local_attention": 20})
    assert [layer.window for layer in probe(config).layers] == [None, 11]  # 10 on either side


def test_queries_that_are_scaled_before_the_scores_have_a_common_factor() -> None:
    assert probe(tiny_config("opt")).layers[0].query.factor == pytest.approx(8**-0.5)
    assert probe(tiny_config("llama")).layers[0].query.factor == 1


def test_columns_that_are_used_again_do_not_stand_for_what_they_were() -> None:
    emitter = Emitter(nn.Linear(1, 1, device="meta"), torch.Generator().manual_seed(0))
    old = emitter.emit((PROBES, TOKENS, 5), Unknown("first"))[:, 0]
    assert emitter.locate(old)[0].tolist() == [0, 1, 2, 3, 4]
    emitter.emit((1, COLUMNS - 5), Unknown("all the others"))
    new = emitter.emit((PROBES, TOKENS, 3), Unknown("second"))[:, 0]
    assert emitter.locate(new)[0].tolist() == [0, 1, 2]
    assert emitter.locate(old)[0].tolist() == [-1] * 5
    assert [(e.start, e.size) for e in emitter.emissions] == [(5, COLUMNS - 5), (0, 3)]
    with pytest.raises(ValueError, match="at most 524288 can be distinguished"):
        emitter.emit((1, COLUMNS + 1), Unknown("too much"))


class Gain(nn.Module):
    """x over a norm of it, times some function of a weight."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.empty(*shape, device="meta"))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.weight)


def rms(x: Tensor) -> Tensor:
    return x / x.square().mean(-1, keepdim=True).sqrt()


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.RMSNorm(6, eps=1e-5, device="meta"), (0, 1, False)),
        (nn.LayerNorm(6, device="meta"), (0, 1, True)),
        (nn.LayerNorm((5, 6), device="meta"), None),  # over two axes
        (Gain(lambda x, w: rms(x) * (1 + w), 6), (1, 1, False)),
        (Gain(lambda x, w: rms(x - x.mean(-1, keepdim=True)) * w, 5, 6), (0, 1, True)),
        (Gain(lambda x, w: nn.functional.normalize(x, dim=-1) * w, 6), (0, 6**-0.5, False)),
        (Gain(lambda x, w: rms(x) * w.exp(), 6), None),
        (Gain(lambda x, w: rms(x) * w * x.sign(), 6), None),
        (Gain(lambda x, w: rms(x) * w * torch.arange(6), 6), None),
        (Gain(lambda x, w: x * w, 6), None),
        (nn.Softmax(-1), None),
        (nn.Dropout(0.5).eval(), None),
        (nn.Identity(), None),
        (nn.SiLU(), None),
        (nn.Linear(6, 6, bias=False, device="meta"), None),
        (nn.RMSNorm(7, device="meta"), None),
        (nn.BatchNorm1d(5, device="meta"), None),
    ],
)
def test_normalisations_are_known_by_what_they_do(module: nn.Module, expected: tuple[object, ...] | None) -> None:
    found = behaviour(module, torch.Size((4, 2, 5, 6)))
    assert (found is None) == (expected is None)
    if found and expected:
        assert (found.offset, found.slope) == pytest.approx(expected[:2], abs=1e-6)
        assert found.centred == expected[2]


@given(
    heads=st.sampled_from([1, 2, 6]), group=st.sampled_from([1, 2, 3]), half=st.integers(1, 9), seed=st.integers(0, 99)
)
@settings(max_examples=12, deadline=None)
def test_any_shuffling_of_channels_is_found(heads: int, group: int, half: int, seed: int) -> None:
    """q and k shuffled and scaled between projection and attention, per head: the map is that shuffling."""
    generator = torch.Generator().manual_seed(seed)
    size, kv_heads = 2 * half, heads
    order = torch.randperm(size, generator=generator)
    factor = torch.randn(size, generator=generator, dtype=torch.float64)
    config = AutoConfig.for_model(
        "llama", vocab_size=7, hidden_size=heads * group * 5, intermediate_size=3, num_hidden_layers=1, head_dim=size,
        num_attention_heads=heads * group, num_key_value_heads=kv_heads,
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *_: (q[..., order] * factor, k[..., order]))
        (layer,) = probe(config).layers
    assert layer.key_head == tuple(h // group for h in range(heads * group))
    for projection, scale in ((layer.query, factor), (layer.key, torch.ones_like(factor))):
        (part,) = projection.parts
        expected = torch.arange(projection.heads)[:, None] * size + order
        assert part.rows.view(-1, size).equal(expected)
        torch.testing.assert_close(part.scale.view(-1, size), scale.expand(projection.heads, -1))


@pytest.mark.parametrize(
    ("tampered", "reason"),
    [
        (lambda q, k: (q.tanh(), k), "query head 0 is not a multiple of one row"),
        (lambda q, k: (q, k + 0.5), "key head 0 is not a multiple of one row"),
        (lambda q, k: (q + k, k), "query head 0 is not a multiple of one row"),
        (lambda q, k: (q * q.sigmoid(), k), "query head 0 is not a multiple of one row"),
        (lambda q, k: (q / q.norm(dim=-1, keepdim=True), k), "query head 0 is not a multiple of one row"),
    ],
)
def test_what_is_not_a_row_is_refused(tampered: object, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(modeling_llama, "apply_rotary_pos_emb", lambda q, k, *_: tampered(q, k))  # type: ignore[operator]
    config = AutoConfig.for_model("llama", **TINY["llama"][1] | {"num_key_value_heads": 6})
    with pytest.raises(CheckpointError, match=reason):
        probe(config)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("jetmoe", "type 'jetmoe' .* is not a multiple of one row"),
        ("roformer", "its queries and keys are not multiples of rows of weights"),  # it rotates by a parameter
        ("fnet", "type 'fnet' .* has no attention"),
        ("mamba", "type 'mamba' .* has no attention"),
    ],
)
def test_architectures_that_cannot_be_followed_are_refused_by_name(kind: str, reason: str) -> None:
    config = AutoConfig.for_model(kind, hidden_size=48, num_hidden_layers=1, vocab_size=61)
    with pytest.raises(CheckpointError, match=reason):
        probe(config)
