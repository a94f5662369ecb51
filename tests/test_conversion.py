"""Converted models against the originals: exact at full width, with every kind of cache, and on disk."""

import copy
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")

from transformers import AutoModelForCausalLM, Cache, DynamicCache, QuantizedCache, StaticCache
from transformers.cache_utils import QuantizedLayer

import querykey.conversion.convert as conversion
from conversions import FAMILIES, SMALL, byte_tokenizer, cached, converted, logits, tiny, tokens
from querykey.conversion.calibrate import calibrate, memory_needed
from querykey.conversion.convert import Conversion, convert
from querykey.conversion.evaluate import evaluate, paired_ratio
from querykey.conversion.layers import ConversionError, shared_layers
from querykey.conversion.save import load
from querykey.conversion.texts import Text, calibration_texts, check_apart, read_texts
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


def test_the_original_comes_back(half):
    model, ids = half.model, tokens()
    shared = logits(model, ids)
    with half.original():
        torch.testing.assert_close(logits(model, ids), logits(tiny(), ids), rtol=0, atol=0)
        assert set(model.state_dict()) == set(tiny().state_dict())
    torch.testing.assert_close(logits(model, ids), shared, rtol=0, atol=0)


def test_moments_are_those_of_single_tokens():
    """Against gradients by explicit perturbation variables, with the same labels."""
    model = tiny("qwen2")
    layers, windows = shared_layers(model, "kv"), tokens(batch=2, length=7)
    found = calibrate(model, layers, windows, seed=5)
    S, S_w, G = (torch.zeros_like(x) for x in found[1].tensors().values())
    for number, window in enumerate(windows):
        attention, added, x = model.model.layers[1].self_attn, [], []

        def shifted(_, args, out, seen=x, shifts=added):
            seen.append(args[0][0])
            shifts.append(torch.zeros_like(out[0], requires_grad=True))
            return out + shifts[-1]

        handles = [projection.register_forward_hook(shifted) for projection in (attention.k_proj, attention.v_proj)]
        scores = model(window[None], use_cache=False).logits[0].float()
        generator = torch.Generator().manual_seed(5 * 1_000_003 + number)
        labels = torch.multinomial(scores.detach().softmax(-1), 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(scores, labels, reduction="sum").backward()
        for handle in handles:
            handle.remove()
        g = torch.cat([shift.grad for shift in added], 1).float()
        inputs = x[0].detach().float()
        S += sum(torch.outer(row, row) for row in inputs)
        G += sum(torch.outer(row, row) for row in g)
        S_w += sum(torch.outer(row, row) * slope.square().sum() for row, slope in zip(inputs, g, strict=True))
    for name, expected in (("inputs", S), ("weighted", S_w), ("metric", G)):
        torch.testing.assert_close(found[1].tensors()[name], expected, rtol=1e-4, atol=1e-6)


def test_calibration_leaves_the_model_alone():
    model = tiny()
    model.train()
    state = copy.deepcopy(model.state_dict())
    calibrate(model, shared_layers(model, "kv"), tokens(length=16))
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(state[name], x) for name, x in model.state_dict().items())
    assert not model.model.layers[0].self_attn.k_proj._forward_hooks


def test_moments_on_disk_are_those_in_memory(tmp_path, monkeypatch):
    model = tiny()
    layers, windows = shared_layers(model, "kv"), tokens(batch=2, length=16)
    expected = calibrate(model, layers, windows)
    assert conversion.moments_folder(layers, tmp_path / "state") is None
    needed = memory_needed(layers)
    assert needed == sum(x.nbytes for moment in expected for x in moment.tensors().values())
    monkeypatch.setattr(conversion, "enough_memory", lambda size: size < needed)
    assert conversion.moments_folder(layers, tmp_path / "state") == tmp_path
    found = calibrate(model, layers, windows, state=tmp_path / "state", folder=tmp_path)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.tensors(), b.tensors(), rtol=0, atol=0)
    assert [path.name for path in tmp_path.iterdir()] == ["state"]  # what is mapped has no name
    again = calibrate(model, layers, windows, state=tmp_path / "state", watch=lambda *_: pytest.fail("nothing is left"))
    torch.testing.assert_close(again[1].tensors(), expected[1].tensors(), rtol=0, atol=0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1))
    with pytest.raises(ConversionError, match=r"moments of calibration needs .* bytes of disk, and 1 are free"):
        conversion.moments_folder(layers, tmp_path / "state")


def test_all_but_the_shared_projections_stays_as_it_is(half):
    """No refit of W_O, which made whole conversions worse, and no biases from centring."""
    before = dict(tiny().named_parameters())
    after = dict(half.model.named_parameters())
    made = {name for name in after if "kv_proj" in name or "k_proj" in name or "v_proj" in name}
    assert {name.rpartition(".")[2] for name in made} == {"weight"}
    assert all(torch.equal(after[name], before[name]) for name in after.keys() - made)
    assert any("o_proj" in name for name in after.keys() - made)


def test_what_makes_a_calibration_uncertain_is_said(half):
    def said(windows: int, kinds: int, widest: int) -> list[str]:
        texts = [Text(str(n), torch.zeros(windows, 512, dtype=torch.int64)) for n in range(kinds)]
        return conversion.doubts(conversion.Fitted(half.model, None, "kv", [], [], texts, 0), widest)

    assert said(16, 3, 240) == []
    assert "24,000" in said(15, 3, 200)[0]
    assert "fewer than three kinds" in said(48, 1, 200)[0]
    assert "100 for each of the 300 dimensions" in said(16, 3, 300)[0]


def test_calibration_resumes_where_it_was_stopped(tmp_path, monkeypatch):
    monkeypatch.setattr("querykey.conversion.calibrate.SAVED_EVERY", 2)
    model = tiny()
    layers, windows, state = shared_layers(model, "kv"), tokens(batch=6, length=16), tmp_path / "state"
    expected = calibrate(model, layers, windows, seed=2)

    def stop(what: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        calibrate(model, layers, windows, seed=2, state=state, watch=stop)
    steps = []
    found = calibrate(model, layers, windows, seed=2, state=state, watch=lambda _, done, __: steps.append(done))
    assert steps == [5, 6]
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.tensors(), b.tensors())
        assert a.tokens == b.tokens == 96
    steps.clear()
    calibrate(model, layers, windows, seed=3, state=state, watch=lambda _, done, __: steps.append(done))
    assert steps[0] == 1  # another seed is another calibration


def test_weights_that_cannot_be_fitted_are_named_with_what_can_share_instead():
    class Packed(torch.nn.Module):
        """Stands for a projection of a library of quantised weights."""

        weight = torch.zeros(24, 48, dtype=torch.int8)

    model = tiny()
    model.model.layers[1].self_attn.v_proj = Packed()
    with pytest.raises(ConversionError, match=r"v_proj is a Packed.*plain linear.* dequantise .*; qk can share here"):
        shared_layers(model, "kv")
    assert len(shared_layers(model, "qk")) == 2


def test_values_that_are_not_finite_name_their_layer():
    model = tiny()
    model.model.layers[1].input_layernorm.weight.data[0] = torch.nan
    with pytest.raises(ConversionError, match=r"layers\.1\.self_attn holds NaN"):
        calibrate(model, shared_layers(model, "kv"), tokens(length=8))


def test_ranks_use_the_cache_that_is_asked_for(half):
    fitted = half.fitted
    with half.original():
        for part in (0.25, 0.75):
            assert sum(conversion.ranks(fitted.layers, fitted.fits, fitted.total(part))) == round(part * 96)
    for part in (0.0, 1.2):
        with pytest.raises(ConversionError, match="expected more than 0, at most 1"):
            fitted.total(part)
    with pytest.raises(ConversionError, match=r"1 dimensions in all .* expected 2"):
        conversion.ranks(fitted.layers, fitted.fits, fitted.total(0.01))


def test_costs_are_paired_over_windows(half):
    text = Text("random", tokens(batch=3, length=16))
    (cost,) = evaluate(half.switch, [text])
    ids = text.windows

    def losses(model) -> Tensor:
        scores = logits(model, ids)[:, :-1]
        return torch.nn.functional.cross_entropy(scores.mT, ids[:, 1:], reduction="none").mean(1)

    torch.testing.assert_close(torch.tensor(cost.after, dtype=torch.float64), losses(half.model), rtol=1e-5, atol=0)
    torch.testing.assert_close(torch.tensor(cost.before, dtype=torch.float64), losses(tiny()), rtol=1e-5, atol=0)
    assert cost.divergence > 0
    assert paired_ratio([0.1, 0.1]).low == pytest.approx(paired_ratio([0.1, 0.1]).high)
    one = paired_ratio([0.0, 0.2, 0.4])  # mean 0.2, standard error 0.2/√3, t(2) = 4.3027
    assert one.low == pytest.approx(float(torch.tensor(0.2 - 4.302653 * 0.2 / 3**0.5).exp()), rel=1e-6)


def test_several_sizes_are_measured_as_each_alone():
    fitted, texts = converted().fitted, [Text("random", tokens(batch=2, length=16))]
    fitted = conversion.Fitted(tiny(), None, "kv", [], fitted.fits, [], 0)
    fitted.layers += shared_layers(fitted.model, "kv")
    curve = fitted.curve([0.75, 0.25], texts)
    torch.testing.assert_close(logits(fitted.model, tokens()), logits(tiny(), tokens()), rtol=0, atol=0)
    wide = fitted.convert(0.75)
    wide.switch.restore()
    narrow = fitted.convert(0.25)
    assert curve == [(0.75, wide.evaluate(texts)), (0.25, narrow.evaluate(texts))]
    narrow.switch.restore()
    wide.switch.apply()  # after another conversion of the same model
    conversion.check(wide)
    assert wide.cache_bytes()[1] == 0.75 * wide.cache_bytes()[0]


def test_keys_rotated_to_other_positions_are_noticed(half, monkeypatch):
    conversion.check(half)
    angles = Rotation.angles
    monkeypatch.setattr(Rotation, "angles", lambda self, newest, first, *more: angles(self, newest, first + 1, *more))
    with pytest.raises(ConversionError, match="other probabilities with its cache than without"):
        conversion.check(half)


def test_folders_load_with_the_same_logits(half, tmp_path):
    ids = tokens()
    expected = logits(half.model, ids)
    half.save(tmp_path / "factors")
    found = load(tmp_path / "factors")
    torch.testing.assert_close(logits(found, ids), expected, rtol=0, atol=0)
    assert json.loads((tmp_path / "factors/config.json").read_text())["querykey"]["design"] == half.design
    half.save(tmp_path / "plain", plain=True)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    assert type(plain).__name__ == "LlamaForCausalLM"
    torch.testing.assert_close(logits(plain, ids), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(logits(half.model, ids), expected, rtol=0, atol=0)  # saving changed nothing
    for name in ("model_type", "num_key_value_heads"):
        assert getattr(half.model.config, name) == getattr(tiny().config, name)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma3_text"])
def test_other_families_load_too(family, tmp_path):
    found, ids = converted(family), tokens()
    found.save(tmp_path / "a")
    found.save(tmp_path / "b", plain=True)
    torch.testing.assert_close(logits(load(tmp_path / "a"), ids), logits(found.model, ids), rtol=0, atol=1e-6)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "b")
    torch.testing.assert_close(logits(plain, ids), logits(found.model, ids), rtol=0, atol=1e-5)  # sums in another order


SCRIPT = """
import sys; sys.modules["querykey"] = None
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, = sys.argv[1:]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
AutoTokenizer.from_pretrained(folder)
ids = torch.load(folder + "/../ids.pt")
out = model.generate(ids, max_new_tokens=5, do_sample=False, return_dict_in_generate=True)
width = next(one for one in out.values() if hasattr(one, 'layers')).layers[0].keys.shape[-1]
torch.save((model(ids).logits.detach(), out.sequences, width), folder + "/../out.pt")
"""


@pytest.mark.slow
def test_a_self_contained_folder_needs_no_querykey(half, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    ids = tokens()
    torch.save(ids, tmp_path / "ids.pt")
    half.save(tmp_path / "model", self_contained=True)
    subprocess.run([sys.executable, "-c", SCRIPT, str(tmp_path / "model")], check=True, capture_output=True)
    found, said, width = torch.load(tmp_path / "out.pt")
    torch.testing.assert_close(found, logits(half.model, ids), rtol=0, atol=1e-12)
    assert torch.equal(said, half.model.generate(ids, max_new_tokens=5, do_sample=False))
    assert width == half.ranks[0]


@pytest.mark.slow
def test_without_querykey_a_folder_is_refused_and_not_loaded_wrongly(half, tmp_path):
    half.save(tmp_path / "model")
    script = "import sys, transformers; transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "model")], capture_output=True, text=True)
    assert done.returncode != 0
    assert "querykey" in done.stderr


def test_nothing_is_overwritten_and_nothing_left_half_written(half, tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("mine")
    with pytest.raises(ConversionError, match="full is not empty"):
        half.save(tmp_path / "full")

    def fail(*_, **__):
        (tmp_path / ".new.partial").mkdir()
        raise KeyboardInterrupt

    monkeypatch.setattr(half.model, "save_pretrained", fail)
    with pytest.raises(KeyboardInterrupt):
        half.save(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]
    assert type(half.model).__name__ == "LlamaForCausalLM"


def test_texts_become_windows_from_all_over_them(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("".join(chr(97 + n // 1000) * 1000 for n in range(0, 26_000, 1000)))
    (text,) = read_texts([path], byte_tokenizer(), windows=5, length=32)
    assert text.windows.shape == (5, 32)
    assert text.tokens == 160
    assert len({int(window[0]) for window in text.windows}) > 3
    (again,) = read_texts([path], byte_tokenizer(), windows=5, length=32)
    (other,) = read_texts([path], byte_tokenizer(), windows=5, length=32, seed=1)
    assert torch.equal(text.windows, again.windows)
    assert not torch.equal(text.windows, other.windows)
    path.write_text("short")
    with pytest.raises(ConversionError, match=r"a\.txt is too short: it has no window of 32 tokens"):
        read_texts([path], byte_tokenizer(), windows=5, length=32)
    path.write_bytes("Umlaute: äöü".encode("latin-1") * 99)
    with pytest.raises(ConversionError, match="is not text in UTF-8"):
        read_texts([path], byte_tokenizer(), windows=5, length=32)


def test_one_text_is_not_for_both(tmp_path):
    (tmp_path / "a.txt").write_text("words")
    (tmp_path / "other").mkdir()
    (tmp_path / "other/copy.txt").write_text("words")
    (tmp_path / "c.txt").write_text("more words")
    check_apart([tmp_path / "a.txt"], [tmp_path / "c.txt"])
    with pytest.raises(ConversionError, match=r"copy\.txt would be evaluated on, but .*a\.txt"):
        check_apart([tmp_path / "a.txt"], [tmp_path / "other"])


def test_without_texts_three_kinds_are_found_and_named():
    model = tiny().float()
    found = calibration_texts([], model, byte_tokenizer(), windows=6, length=24)
    assert [text.windows.shape for text in found] == [(2, 24)] * 3
    assert found[2].name == "text drawn from the model"
    again = calibration_texts([], model, byte_tokenizer(), windows=6, length=24)[2]
    assert torch.equal(found[2].windows, again.windows)
    assert not torch.equal(found[2].windows[0], found[2].windows[1])
