"""Healing trains what a conversion made, keeps it where no text gets worse, and resumes."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("transformers")

from transformers import (
    AutoModelForCausalLM,
)

from conversions import converted, logits, tiny, tokens
from querykey.conversion.evaluate import TextCost
from querykey.conversion.heal import divergence, heal, trained
from querykey.conversion.report import _healed
from querykey.conversion.texts import Text, drawn_text


@pytest.fixture
def texts() -> list[Text]:
    """One to train on, one to evaluate on."""
    return [Text("one", tokens(batch=12, length=24)), Text("two", tokens(batch=4, length=24))]


def test_healing_lowers_the_divergence_and_trains_what_was_made_only(texts, tmp_path):
    found = converted("gpt_neox", torch.float32, cache=0.2, calibration=())
    model = found.model
    before = {name: x.detach().clone() for name, x in model.named_parameters()}
    ids = texts[0].windows[:4]
    with torch.no_grad():
        high = float(divergence(found.switch, model, ids))
    heal(found, texts[:1], texts[:1], steps=24, rate=2e-3, folder=tmp_path, save_strategy="no")
    with torch.no_grad():
        assert float(divergence(found.switch, model, ids)) < 0.8 * high
    changed = {name for name, x in model.named_parameters() if not torch.equal(x, before[name])}
    assert changed
    assert all("attention.kv_proj" in name or "from_latent" in name or "attention.dense" in name for name in changed)
    with found.original():
        torch.testing.assert_close(logits(model, ids), logits(tiny("gpt_neox").float(), ids), rtol=0, atol=0)
    assert found.healed["kept"]
    assert found.healed["after"] < found.healed["before"]
    found.save(tmp_path / "plain", plain=True)  # with the trained W_O
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "plain")
    torch.testing.assert_close(logits(plain, ids), logits(model, ids), rtol=0, atol=1e-4)


def test_healing_that_makes_a_text_worse_is_not_kept(tmp_path):
    found = converted(dtype=torch.float32, cache=0.9)
    with found.original():  # what the model says itself is predicted by nothing better
        texts = [drawn_text(found.model, found.fitted.tokenizer, windows=32, length=48)]
    costs = found.evaluate(texts)
    values = [x.detach().clone() for x in found.model.parameters()]
    assert not heal(found, texts, texts, steps=3, rate=1.0, folder=tmp_path, save_strategy="no")
    assert found.costs == costs
    assert found.healed["worse"]
    for x, expected in zip(found.model.parameters(), values, strict=True):
        assert torch.equal(x, expected)


def test_half_of_the_change_is_kept_where_all_of_it_makes_a_text_worse(texts, tmp_path, monkeypatch):
    found = converted(dtype=torch.float32, cache=0.3)
    before = TextCost("two", 24, (2.0, 2.0), (2.5, 2.5), 0.5, 0.8)
    answers = iter([replace(before, after=(2.6, 2.5)), replace(before, after=(2.4, 2.5))])
    found.switch.separate_outputs()
    closed = [x.detach().clone() for x in trained(found.switch)]
    results = []

    def evaluate(texts, watch):
        results.append([x.detach().clone() for x in trained(found.switch)])
        found.costs = [next(answers)]
        return found.costs

    found.costs = [before]
    monkeypatch.setattr(found, "evaluate", evaluate)
    assert heal(found, texts[:1], texts[1:], steps=2, rate=1e-2, folder=tmp_path, save_strategy="no")
    assert found.healed["share"] == 0.5
    assert "50 % is kept" in _healed(found.healed)
    for start, end, kept in zip(closed, results[0], trained(found.switch), strict=True):
        torch.testing.assert_close(kept, (start + end) / 2)
    assert any(not torch.equal(start, end) for start, end in zip(closed, results[0], strict=True))


def test_healing_in_half_precision_leaves_the_model_in_its_own(texts, tmp_path):
    found = converted(dtype=torch.float32, cache=0.3)
    sizes, ids = found.cache_bytes(), texts[0].windows[:2]
    heal(found, texts[:1], texts[1:], steps=1, rate=0.0, folder=tmp_path, save_strategy="no", bf16=True)
    assert found.cache_bytes() == sizes
    with found.original():
        torch.testing.assert_close(logits(found.model, ids), logits(tiny().float(), ids), rtol=0, atol=0)


@pytest.mark.slow
def test_healing_resumes(texts, tmp_path):
    def stop(what: str, done: int, total: int) -> None:
        if (what, done) == ("steps of healing", 7):
            raise KeyboardInterrupt

    results = []
    for watch in (None, stop):
        found = converted(dtype=torch.float32, cache=0.3)
        run = {"steps": 12, "rate": 1e-3, "folder": tmp_path / str(bool(watch)), "save_steps": 4}
        if watch:
            with pytest.raises(KeyboardInterrupt):
                heal(found, texts[:1], texts[:1], watch=watch, **run)
            found = converted(dtype=torch.float32, cache=0.3)
        heal(found, texts[:1], texts[:1], **run)
        results.append(found)
    first, second = (torch.cat([x.flatten() for x in found.model.parameters()]) for found in results)
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
