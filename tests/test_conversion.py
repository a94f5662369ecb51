"""From calibration to cost: moments, fits, ranks, texts, and what a conversion is measured by."""

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

pytest.importorskip("transformers")


import querykey.conversion.convert as conversion
from conversions import byte_tokenizer, converted, logits, tiny, tokens
from querykey.conversion.calibrate import calibrate, memory_needed
from querykey.conversion.convert import Conversion
from querykey.conversion.evaluate import evaluate, paired_ratio
from querykey.conversion.layers import ConversionError, shared_layers
from querykey.conversion.texts import Text, calibration_texts, check_apart, read_texts


@pytest.fixture(scope="module")
def half() -> Conversion:
    return converted(cache=0.5)


def test_the_original_comes_back(half):
    model, ids = half.model, tokens()
    shared = logits(model, ids)
    with half.original():
        torch.testing.assert_close(logits(model, ids), logits(tiny(), ids), rtol=0, atol=0)
        assert set(model.state_dict()) == set(tiny().state_dict())
    torch.testing.assert_close(logits(model, ids), shared, rtol=0, atol=0)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_both_models_move_together(family):
    conversion, ids = converted(family, torch.float32, cache=0.5), tokens()
    conversion.model.to(torch.bfloat16)
    with conversion.original():
        expected = logits(tiny(family).to(torch.bfloat16), ids)
        torch.testing.assert_close(logits(conversion.model, ids), expected, rtol=0, atol=0)
    assert logits(conversion.model, ids).dtype == torch.bfloat16
    assert {x.dtype for x in conversion.model.parameters()} == {torch.bfloat16}


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
