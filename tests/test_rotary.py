"""Rotary positions: against complex rotation, against layers of transformers, and given or counted over tokens."""

import pytest
import torch

from querykey import DesignError, KVCache, Layout, Rotary, SelfAttention
from querykey.attention import rotary
from querykey.attention.sequence import Span
from querykey.positions import SCALINGS

DIM, HEADS = 24, 4
PLAIN = {size: Rotary().frequencies(size) for size in (6, 8, 16)}


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def placed(x, start):
    return rotary.rotate(x, PLAIN[x.shape[-1]], Span(start, start + x.shape[-2]))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("start", [0, 1, 63, 64, 1000, rotary._MOST - 2])
def test_places_are_those_of_complex_rotation(dtype, start):
    x = normal(2, 3, 5, 6).to(dtype)
    theta = 10000.0 ** (-torch.arange(3).double() / 3)
    turning = torch.polar(torch.ones(5, 3).double(), torch.outer(torch.arange(start, start + 5).double(), theta))
    z = torch.complex(x[..., :3].double(), x[..., 3:].double()) * turning
    expected = torch.cat([z.real, z.imag], -1)
    torch.testing.assert_close(placed(x, start).double(), expected, rtol=0, atol=20 * torch.finfo(dtype).eps)
    torch.testing.assert_close(rotary.rotate(x, PLAIN[6], torch.arange(start, start + 5)), placed(x, start))
    assert placed(x, start).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_rotation_rounds_as_the_formula_does(dtype):
    """To the last bit, forward and backward: or what was trained could not be trained again."""
    x, direction = normal(2, 3, 33, 16).to(dtype).requires_grad_(), normal(2, 3, 33, 16, seed=1).to(dtype)
    angle = rotary.angles(PLAIN[16], torch.arange(33))
    (first, second), cos, sin = x.chunk(2, -1), angle.cos().to(dtype), angle.sin().to(dtype)
    formula = torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    rotated = placed(x, 0)
    assert torch.equal(rotated, formula)
    gradients = (torch.autograd.grad(out, x, direction)[0] for out in (rotated, formula))
    assert torch.equal(*gradients)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # which torch itself uses in forward mode
def test_rotation_has_gradients_of_every_kind():
    x = normal(2, 5, 6).requires_grad_()
    turn = lambda y: placed(y, 3)  # noqa: E731
    assert torch.autograd.gradcheck(turn, x, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(turn, x)
    tangent = normal(2, 5, 6, seed=1)
    with torch.autograd.forward_ad.dual_level():
        dual = turn(torch.autograd.forward_ad.make_dual(x, tangent))
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(dual).tangent, turn(tangent))
    batched = torch.func.vmap(torch.func.grad(lambda y: turn(y).pow(3).sum()))(x.detach())
    torch.testing.assert_close(batched, torch.autograd.grad(turn(x).pow(3).sum(), x)[0])


def test_what_is_kept_of_rotations_grows_and_serves_training_after_inference():
    rotary._tables.clear()
    x = torch.ones(1, 1, 8, requires_grad=True)
    with torch.inference_mode():
        placed(x, 0)
    (table,) = rotary._tables.values()
    placed(x, 63).sum().backward()
    assert next(iter(rotary._tables.values())) is table
    placed(x, 64)
    assert next(iter(rotary._tables.values()))[0].shape == (128, 8)
    placed(x, rotary._MOST)  # worked out, and not kept
    assert next(iter(rotary._tables.values()))[0].shape == (128, 8)
    layer = torch.nn.Linear(8, 8)
    placed(layer(x), 64).sum().backward()
    assert layer.weight.grad.isfinite().all()


def test_fake_tensors_are_not_kept():
    from torch._subclasses.fake_tensor import FakeTensorMode

    rotary._tables.clear()
    with FakeTensorMode() as mode:
        layer = SelfAttention(DIM, HEADS, causal=True, rotary=True)
        assert layer(torch.zeros(2, 5, DIM)).shape == (2, 5, DIM)
    assert not rotary._tables
    placed(torch.ones(2, 5, 6), 0)
    with mode:  # and what is kept is not mixed with them
        assert layer(torch.zeros(2, 5, DIM)).shape == (2, 5, DIM)


@pytest.mark.parametrize("length", [5, 5000])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("size", [None, 6])
def test_pairs_of_any_kind_are_complex_rotations(size, interleaved, length):
    frequencies = Rotary(500.0, size, interleaved).frequencies(10)
    x, rotated = normal(2, 3, length, 10).requires_grad_(), size or 10
    first, second = frequencies.pairs.T
    assert sorted([*first.tolist(), *second.tolist()]) == list(range(rotated))
    assert (second - first == (1 if interleaved else rotated // 2)).all()
    angle = torch.outer(torch.arange(length).double(), 500.0 ** (-torch.arange(0, rotated, 2).double() / rotated))
    z = torch.complex(x[..., first], x[..., second]) * torch.polar(torch.ones_like(angle), angle)
    expected = x.clone()
    expected[..., first], expected[..., second] = z.real, z.imag
    for positions in (Span(0, length), torch.arange(length), torch.arange(length).expand(2, -1)):
        out = rotary.rotate(x, frequencies, positions)
        torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
        gradients = (
            torch.autograd.grad((one * expected.detach().sin()).sum(), x, retain_graph=True)[0]
            for one in (out, expected)
        )
        torch.testing.assert_close(*gradients, rtol=0, atol=1e-12)


def test_a_table_grows_with_what_is_rotated_and_not_with_how_far_it_is():
    rotary._tables.clear()
    many, one = torch.ones(1, 1, rotary._MOST + 500, 8), torch.ones(1, 1, 1, 8)
    placed(one, 10 * rotary._MOST)
    assert not rotary._tables
    placed(many, 0)  # as keys that are rotated at each reading
    (table,) = rotary._tables.values()
    assert table[0].shape[0] == 2 * rotary._MOST
    placed(many, 3)
    placed(one, rotary._MOST + 500)
    assert next(iter(rotary._tables.values())) is table
    rotary._tables.clear()


# Against transformers

SCALED = {
    "default": {},
    "linear": {"factor": 4.0},
    "dynamic": {"factor": 3.0},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 8},
    "llama3": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8,
    },
    "longrope": {
        "short_factor": [1.0, 1.1, 1.3],
        "long_factor": [1.0, 2.0, 5.0],
        "factor": 4.0,
        "original_max_position_embeddings": 9,
    },
}


def theirs(scaling, length):
    """A Llama attention of transformers, and its function of (x, positions)."""
    from transformers.models.llama import modeling_llama

    entries = {"rope_type": scaling, "rope_theta": 5e5, **SCALED[scaling]}
    config = modeling_llama.LlamaConfig(
        hidden_size=DIM,
        intermediate_size=29,
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=2,
        head_dim=6,
        vocab_size=61,
        bos_token_id=0,
        eos_token_id=0,
        max_position_embeddings=length,
        rope_parameters=entries,
        attn_implementation="eager",
    )
    torch.manual_seed(0)
    layer = modeling_llama.LlamaAttention(config, layer_idx=0).eval().double()
    embedding = modeling_llama.LlamaRotaryEmbedding(config).double()

    def run(x, positions):
        allowed = torch.ones(x.shape[1], x.shape[1]).tril().log().double()[None, None]
        return layer(x, position_embeddings=embedding(x, positions), attention_mask=allowed)[0]

    return layer, run


@pytest.mark.parametrize("scaling", [*SCALED])
def test_layers_equal_those_of_llama_with_every_scaling(scaling):
    import querykey.hf

    for length in (7, 12):  # before and beyond where frequencies change
        layer, run = theirs(scaling, 9)
        ours = querykey.hf.from_module(layer)
        plain = SelfAttention(DIM, HEADS, "q,k,v+kv_heads=2", causal=True, rotary=Rotary(5e5)).double()
        plain.load_state_dict(ours.state_dict())
        x, positions = normal(2, length, DIM), torch.arange(length).expand(2, -1)
        expected = run(x, positions)
        torch.testing.assert_close(ours(x), expected, rtol=0, atol=1e-6)
        torch.testing.assert_close(ours(x, positions=positions), expected, rtol=0, atol=1e-6)
        later = positions * 3 + torch.tensor([[2], [5]])
        torch.testing.assert_close(ours(x, positions=later), run(x, later), rtol=0, atol=1e-6)
        changed = (plain(x) - expected).abs().max() > 1e-4
        assert changed == (scaling not in ("default", "dynamic") or (scaling == "dynamic" and length > 9))


def test_configurations_of_every_form_are_read():
    old = {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}, "hidden_size": 64}
    old |= {"num_attention_heads": 4, "max_position_embeddings": 128, "partial_rotary_factor": 0.25}
    assert Rotary.from_config(old) == Rotary(5e5, 4, scaling={"rope_type": "linear", "factor": 2.0}, length=128)
    new = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e6}, "head_dim": 16}
    assert Rotary.from_config(new) == Rotary(1e6)
    two = {"rope_parameters": {"full": {"rope_theta": 1e6}, "sliding": {"rope_theta": 1e4}}, "head_dim": 16}
    assert Rotary.from_config(two, layer_type="full") == Rotary(1e6)
    with pytest.raises(ValueError, match="unknown layer_type 'None'; known are full, sliding"):
        Rotary.from_config(two)
    assert hash(Rotary.from_config(old)) == hash(Rotary.from_config(dict(old)))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"size": 5}, "size must be even and positive, not 5"),
        ({"base": 0.0}, "base must be positive, not 0"),
        (
            {"scaling": {"rope_type": "lama3"}},
            "unknown scaling 'lama3' .did you mean 'llama3'.*; known are linear, dynamic",
        ),
        ({"scaling": {"rope_type": "llama3", "factor": 8.0}}, "llama3 scaling needs low_freq_factor, high_freq_factor"),
        ({"scaling": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic scaling needs length"),
    ],
)
def test_rotations_that_are_impossible_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        Rotary(**arguments)


def test_more_rotated_numbers_than_a_head_has_are_refused():
    with pytest.raises(DesignError, match=r"8 numbers of a head are rotated, but the head size .* is 6"):
        Layout.of("q,k,v", DIM, HEADS, rotary=Rotary(size=8))
    assert set(SCALINGS) == set(SCALED) - {"default"}


# Positions that are given, or counted over tokens


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("design", ["q,k,v", "q,k=v", "q=k=v+core=signed", "q,k=v+latent=9", "q,k,v+cosine"])
def test_padding_anywhere_changes_nothing_where_tokens_are_counted(design):
    """Rows with padding on the right, on the left and in the middle, read at once and in steps."""
    layer = SelfAttention(DIM, HEADS, design, causal=True, rotary=True).double()
    real = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1], [1, 0, 0, 1, 0]], dtype=torch.bool)
    real = torch.cat([real, torch.ones(3, 3, dtype=torch.bool)], 1)  # three steps after the prompts
    x = normal(3, 8, DIM)
    with torch.no_grad():
        alone = [layer(x[row : row + 1, real[row]]) for row in range(3)]
        whole = layer(x, key_padding=real)
        for cache in (KVCache(), KVCache(keep_rotated=True), KVCache.static(3, 8, layer.layout, dtype=torch.float64)):
            parts, end = [], 0
            for part in x.split((5, 1, 2), 1):
                end += part.shape[1]
                shown = real if isinstance(cache, type(KVCache.static(1, 1, layer.layout))) else real[:, :end]
                parts.append(layer(part, cache=cache, key_padding=shown & (torch.arange(shown.shape[1]) < end)))
            for row, expected in enumerate(alone):
                for got in (whole, torch.cat(parts, 1)):
                    torch.testing.assert_close(got[row : row + 1, real[row]], expected, rtol=0, atol=1e-10)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("design", ["q,k,v", "q,k=v", "q,k=v+latent=9"])
def test_given_positions_are_those_of_the_tokens_in_every_step(design):
    layer = SelfAttention(DIM, HEADS, design, causal=True, rotary=True).double()
    x, positions = normal(2, 6, DIM), torch.tensor([[0, 2, 3, 7, 8, 9], [5, 1, 4, 4, 0, 2]])
    with torch.no_grad():
        expected = layer(x, positions=positions)
        assert not torch.allclose(expected, layer(x))
        torch.testing.assert_close(layer(x, positions=positions[:1] + 4)[:1], expected[:1])  # distances alone count
        for cache in (KVCache(), KVCache(keep_rotated=True)):
            parts = zip(x.split((3, 1, 2), 1), positions.split((3, 1, 2), 1), strict=True)
            steps = [layer(part, cache=cache, positions=where) for part, where in parts]
            torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=0, atol=1e-10)


def test_cross_attention_takes_the_positions_of_both_sides():
    layer = SelfAttention(DIM, HEADS, rotary=True).double()
    x, context = normal(2, 3, DIM), normal(2, 5, DIM, seed=1)
    both = torch.cat([context, x], 1)
    mask = torch.zeros(8, 8, dtype=torch.bool)
    mask[5:, :5] = True
    expected = layer(both, mask)[:, 5:]
    got = layer(x, context=context, positions=(torch.arange(5, 8), torch.arange(5)))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match=r"give both: positions=\(of_x, of_context\)"):
        layer(x, context=context)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "arguments", "sentence"),
    [
        ({}, {"positions": torch.arange(5)}, "this layer does not have; make it with rotary=True"),
        ({"rotary": True}, {"positions": torch.arange(5.0)}, "must be integers"),
        ({"rotary": True}, {"positions": torch.arange(4)}, r"\(1, 5\), not torch.int64 of shape \(4,\)"),
        ({"rotary": True}, {"positions": (torch.arange(5), torch.arange(5))}, "must be one tensor, and with a context"),
        ({}, {"key_padding": torch.ones(2, 4, dtype=torch.bool)}, r"of shape \(2, 5\), not torch.bool of shape"),
        ({}, {"key_padding": torch.ones(2, 5)}, r"must be torch.bool of shape \(2, 5\), not torch.float32"),
    ],
)
def test_positions_and_padding_that_do_not_fit_are_refused(options, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        SelfAttention(DIM, HEADS, **options)(torch.zeros(2, 5, DIM), **arguments)


def test_layers_on_the_meta_device_have_their_frequencies():
    with torch.device("meta"):
        layers = [
            SelfAttention(DIM, HEADS, rotary=Rotary(scaling={"rope_type": kind} | SCALED[kind], length=9))
            for kind in SCALINGS
        ]
    assert len({layer.layout.frequencies for layer in layers}) == len(SCALINGS)
    assert all(min(layer.layout.frequencies.near) > 0 for layer in layers)
