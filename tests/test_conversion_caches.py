"""Converted models generate with every kind of cache as they do without, and the cache holds one latent per layer."""

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from transformers import Cache, DynamicCache, QuantizedCache, StaticCache
from transformers.cache_utils import QuantizedLayer

import querykey.conversion.convert as conversion
from conversions import FAMILIES, SMALL, byte_tokenizer, cached, converted, logits, tiny, tokens
from querykey.conversion.convert import Conversion, convert
from querykey.conversion.layers import ConversionError
from querykey.modeling import Rotation


@pytest.fixture(scope="module")
def half() -> Conversion:
    return converted(cache=0.5)


def cache_of(generated):
    return generated[{"cache", "past_key_values"}.intersection(generated).pop()]


def numbers(cache) -> list[int]:
    """Per layer and token."""
    return [
        layer.keys.shape[1] * layer.keys.shape[3] + layer.values.shape[1] * layer.values.shape[3]
        for layer in cache.layers
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_at_full_width_every_family_is_what_it_was(family):
    before = tiny(family)
    ids, mask = tokens(), torch.ones(2, 20, dtype=torch.int64)
    mask[0, :5] = 0  # left padding
    expected = logits(before, ids)
    greedy = {"attention_mask": mask, "max_new_tokens": 12, "do_sample": False, "return_dict_in_generate": True}
    said = before.generate(ids, **greedy)
    model = convert(before, byte_tokenizer(), cache=1.0, **SMALL).model
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-7)
    again = model.generate(ids, **greedy)
    assert torch.equal(again.sequences, said.sequences)
    assert sum(numbers(cache_of(again))) <= sum(numbers(cache_of(said)))


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("share", ["kv", "qk", "qkv"])
def test_a_cache_changes_nothing(family, share):
    cache = 0.5 if share == "kv" else 0.4
    model = converted(family, share=share, cache=cache).model
    ids = tokens(length=24)
    whole = logits(model, ids)
    pieces = (ids[:, :9], ids[:, 9:14], *ids[:, 14:].split(1, 1))  # a prompt, more of it, single tokens
    cache = DynamicCache(config=model.config)
    parts = [cached(model, piece, cache).logits.detach() for piece in pieces]
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=0, atol=1e-7)


def test_the_cache_holds_one_latent_per_layer_and_nothing_else(half):
    model, length = half.model, 11
    cached(model, tokens(length=length), cache := DynamicCache())
    for layer, rank in zip(cache.layers, half.ranks, strict=True):
        assert layer.keys.shape == (2, 1, length, rank)
        assert layer.values.numel() == 0
    before, after = half.cache_bytes()
    assert before == 2 * 2 * 2 * 12 * 8  # layers, keys and values, heads, size, bytes
    assert after == sum(half.ranks) * 8 == before / 2


@pytest.mark.parametrize(
    "how",
    [
        {"num_beams": 3},
        {"cache_implementation": "static", "disable_compile": True},
        {"prompt_lookup_num_tokens": 3},
        {"assistant_model": "the original"},
        {"do_sample": True, "top_k": 9},
    ],
    ids=lambda how: next(iter(how)),
)
@pytest.mark.parametrize("family", ["llama", "gemma3_text"])
def test_generation_is_the_same_with_and_without_a_cache(family, how):
    model, ids = converted(family).model, tokens(batch=1, length=13)
    options = {"max_new_tokens": 12, "do_sample": False} | how
    if "assistant_model" in how:
        options["assistant_model"] = tiny(family)

    def said(**more) -> Tensor:
        torch.manual_seed(3)
        return model.generate(ids, **options | more)

    cached = said()
    only = ("cache_implementation", "prompt_lookup_num_tokens", "assistant_model")  # with a cache
    options = {key: options[key] for key in options if key not in only}
    assert torch.equal(cached, said(use_cache=False))


def test_a_static_cache_holds_the_latent(half):
    model, ids = half.model, tokens(length=9)
    cache = StaticCache(config=model.config, max_cache_len=16)
    whole = logits(model, ids)
    first = cached(model, ids[:, :5], cache).logits
    rest = cached(model, ids[:, 5:], cache).logits
    torch.testing.assert_close(torch.cat([first, rest], 1).detach(), whole, rtol=0, atol=1e-7)
    assert [layer.keys.shape for layer in cache.layers] == [(2, 1, 16, rank) for rank in half.ranks]


class Kept(QuantizedLayer):
    """Quantisation that loses nothing, so that only what is around it is tested."""

    def _quantize(self, tensor, axis):
        assert tensor.shape[-1] % self.q_group_size == 0
        return tensor

    def _dequantize(self, tensor):
        return tensor


def test_a_quantised_cache_holds_halves_of_the_latent(half):
    model, ids = half.model, tokens(length=20)
    whole = logits(model, ids)

    def errors(cache) -> Tensor:
        parts = [cached(model, part, cache).logits for part in ids.split((9, 1, 4, 6), 1)]
        return (torch.cat(parts, 1).detach() - whole).abs()

    cache = QuantizedCache("fp8", config=model.config)
    kept = Cache(layers=[Kept(q_group_size=1, residual_length=4) for _ in half.ranks])
    kept.__class__ = QuantizedCache
    assert errors(kept).max() < 1e-7
    found = errors(cache)
    saturates = (
        torch.tensor(600.0).to(torch.float8_e4m3fn).float().isfinite()
    )  # not in torch 2.11, where more than a prompt's
    assert 1e-6 < found.mean() < 0.05 * whole.abs().mean() or not saturates  # largest number becomes NaN
    assert [layer._quantized_keys[0].shape[-1] for layer in cache.layers] == [rank // 2 for rank in half.ranks]
    kept.layers[0].q_group_size = max(half.ranks)
    with pytest.raises(ValueError, match="take other groups"):
        errors(kept)


def test_packed_sequences_are_not_cached(half):
    """Positions of cached tokens are counted back from the newest: right for padding on the left, wrong for these."""
    model, ids = half.model, tokens(batch=1, length=7)
    packed = torch.tensor([[0, 1, 2, 3, 0, 1, 2]])
    assert model(ids, position_ids=packed, use_cache=False).logits.isfinite().all()
    with pytest.raises(ValueError, match="do not follow one another"):
        model(ids, position_ids=packed, use_cache=True)
    for padded in ([1, 1, 1, 0, 1, 2, 3], [0, 0, 0, 0, 1, 2, 3]):
        cached(model, ids, cache := DynamicCache(), position_ids=torch.tensor([padded]))
        assert cache.get_seq_length() == 7


def test_a_cache_is_cropped(half):
    model, ids = half.model, tokens(length=12)
    cached(model, ids, cache := DynamicCache())
    cache.crop(-5)
    again = cached(model, ids[:, 7:], cache).logits
    torch.testing.assert_close(again.detach(), logits(model, ids)[:, 7:], rtol=0, atol=1e-7)


def test_keys_rotated_to_other_positions_are_noticed(half, monkeypatch):
    conversion.check(half)
    angles = Rotation.angles
    monkeypatch.setattr(Rotation, "angles", lambda self, newest, first, *more: angles(self, newest, first + 1, *more))
    with pytest.raises(ConversionError, match="other probabilities with its cache than without"):
        conversion.check(half)
