"""The explorer without its page: the switch, tokenizers, views, rounding, and the API with requests at random."""

from __future__ import annotations

import math
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from conversions import byte_tokenizer
from explored import ask, causal_subject, converted_beside_its_original, offered, served, values_of
from querykey.bilinear import argmax_cycles
from querykey.cli import main
from querykey.design import Design
from querykey.explorer import builtin, subjects, views
from querykey.explorer.cache import Cache
from querykey.explorer.completion import lost
from querykey.explorer.converted import recorded_original
from querykey.explorer.matrices import matrices, scores
from querykey.explorer.measures import cycles, symmetry
from querykey.explorer.rounding import rounded
from querykey.explorer.server import listen
from querykey.explorer.subjects import SHOWN, Offer, Subject, offers
from querykey.explorer.tokenizer import ByteTokenizer, CycleTokenizer, ModelTokenizer, NumberTokenizer
from querykey.explorer.views import Focus, Viewer
from querykey.models.huggingface import HuggingFaceModel, open_model
from querykey.models.native import NativeModel
from querykey.models.replacements import Replacements
from querykey.transformer import Transformer


@pytest.fixture(scope="module")
def cycle(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Subject]:
    """The model of the cycle task, trained here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("QUERYKEY_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield offers("cycle")["cycle"].open()


def test_the_switch_shows_the_theorem(cycle: Subject) -> None:
    viewer = Viewer(cycle)
    longest, right = {}, {}
    for setting in SHOWN:
        focus = Focus(intervention=setting)
        head = viewer.look(cycle.example, focus)["head"]
        longest[setting] = max(map(len, head["cycles"]))
        right[setting] = viewer.effect(cycle.example, focus)["after"]["right"]
        if setting in ("copied", "tied", "signed"):
            assert head["symmetry"] == pytest.approx(1, abs=1e-3)
    expected = {"trained": 3, "copied": 1, "tied": 1, "signed": 2, "core": 3, "selfmask": 3, "cosine": 3}
    del longest["key_value"]
    assert longest == expected
    assert right["trained"] == right["core"] == 1
    assert max(right["copied"], right["tied"]) < 0.5


def test_the_switch_under_rotary_positions() -> None:
    subject = causal_subject()
    assert subject.interventions == list(SHOWN)
    ids = subject.tokenizer.encode(subject.example).ids
    for setting in ("copied", "tied", "signed"):
        scores = subject.model.trace(ids, subject.replacements.interventions(setting, [(0, 1)])).layers[0].scores[0, 1]
        torch.testing.assert_close(scores, scores.mT, rtol=1e-4, atol=1e-5)
    plain = subject.model.trace(ids).layers[0].scores[0, 1]
    core = subject.model.trace(ids, subject.replacements.interventions("core", [(0, 1)])).layers[0].scores[0, 1]
    assert torch.corrcoef(torch.stack([plain.flatten(), core.flatten()]))[0, 1] > 0.6


def test_a_full_core_of_a_head_that_has_one_is_that_head() -> None:
    model = NativeModel(Transformer(19, 7, 12, dim=20, heads=2, layers=1, head_dim=5, design="q=k,v", positions="none"))
    sample = torch.randint(19, (40, 12, 1), generator=torch.Generator().manual_seed(0))
    run = model.trace(sample)
    switch = Replacements.of(model, sample)
    for setting in ("copied", "tied", "signed", "core"):
        changed = model.trace(sample, switch.interventions(setting, [(0, 0), (0, 1)]))
        torch.testing.assert_close(changed.layers[0].weights, run.layers[0].weights, rtol=1e-3, atol=1e-4)


@given(st.lists(st.lists(st.floats(-1e4, 1e4), min_size=3, max_size=3), min_size=1, max_size=5))
def test_rounded_numbers_are_those_printed(rows: list[list[float]]) -> None:
    values = torch.tensor(rows, dtype=torch.float64)
    for digits in (None, 2):
        array = rounded(values, digits)
        shown = array["digits"]
        for value, back in zip(values.flatten().tolist(), values_of(array).flatten().tolist(), strict=True):
            assert abs(back - value) <= 0.5 * 10**-shown + 1e-9
            assert float(f"{back:.{shown}f}") == pytest.approx(back)


@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.integers(0, n - 1), min_size=n, max_size=n)))
def test_cycles_are_those_of_the_theorem_s_module(whom: list[int]) -> None:
    found = cycles(whom)
    lengths = argmax_cycles(torch.eye(len(whom))[whom]).tolist()
    assert {len(cycle) for cycle in found} == set(lengths)
    for cycle in found:
        assert [whom[place] for place in cycle] == cycle[1:] + cycle[:1]
        assert all(lengths[place] == len(cycle) for place in cycle)


def test_symmetry_of_known_scores() -> None:
    one = torch.tensor([[[9.0, 1, 2], [1, 9, 3], [2, 3, 9]], [[0, 1, -2], [-1, 0, 3], [2, -3, 0]]])
    assert symmetry(one).tolist() == pytest.approx([1, -1])
    assert symmetry(torch.zeros(1, 1, 1)).tolist() == [0]


DESIGNS = ("q,k,v", "q=k,v", "q,k=v", "q=k=v", "q=k,v+core=full", "q=k,v+core=signed", "q=k,v+cosine", "q=k=x,v")


@pytest.mark.parametrize("design", DESIGNS)
def test_what_a_design_implies_is_what_the_model_does(design: str) -> None:
    model = Transformer(17, 17, 9, dim=12, heads=1, layers=1, design=design, positions="learned")
    layer = NativeModel(model).trace(torch.arange(9)[None, :, None]).layers[0]
    found = scores("trained", Design.parse(design))
    assert (float(symmetry(layer.scores[0])) > 0.999) == (found in ("tied", "symmetric"))
    assert (int(argmax_cycles(layer.scores[0]).max()) == 1) or found != "tied"
    same = {
        name: torch.equal(getattr(layer, name[0]), getattr(layer, name[1]))
        for name in (("query", "key"), ("key", "value"))
        if getattr(layer, name[0]).shape == getattr(layer, name[1]).shape
    }
    named = matrices("trained", Design.parse(design))
    for (first, second), equal in same.items():
        assert (named[first[0]] == named[second[0]]) == equal


def test_what_one_matrix_misses_of_the_scores_below_the_diagonal() -> None:
    """Nothing of its own scores; else at most the noise on them, and at least what a block of low rank must miss.

    Constants in a row, the diagonal and what lies above it make no difference.
    """
    draw = torch.Generator().manual_seed(0)
    keys, constants, table, noise = (torch.randn(20, n, generator=draw) for n in (3, 1, 20, 20))
    visible = torch.ones(20, 20).tril(-1).bool()
    own = torch.where(visible, keys @ keys.mT + constants, table)
    assert lost(own, visible, 3) < 1e-4 < lost(own, visible, 2)
    assert lost(table, visible, 19) == 0.0
    noisy = own + noise
    rows = [(noisy[i, :i] - noisy[i, :i].mean(), noise[i, :i] - noise[i, :i].mean()) for i in range(1, 20)]
    total, most = (float(torch.cat(part).square().sum()) for part in zip(*rows, strict=True))
    least = torch.linalg.svdvals(noisy[10:, :10])[4:].square().sum()  # of rank 3 and one for the constants
    assert float(least) < lost(noisy, visible, 3) * total < most


def test_what_one_matrix_costs_is_said_of_causal_heads_alone(cycle: Subject) -> None:
    viewer = Viewer(causal_subject())
    found = viewer.tied("def f(x):\n    return x + sum(x, f)", Focus(1, 1))
    assert (found["width"], found["scores"]) == (12, 34 * 33 // 2)
    assert found["lost"][0] > found["lost"][1] > 0
    assert Viewer(cycle).tied(cycle.example, Focus()) == {}


def test_a_cache_keeps_what_was_used_last_within_its_bound() -> None:
    cache: Cache[str] = Cache(10, len)
    for key, value in enumerate(("aaaa", "bbbb", "cc", "dddd")):
        cache.find(0)
        cache.keep(key, value)
    assert [cache.find(key) for key in range(4)] == ["aaaa", None, "cc", "dddd"]
    cache.keep(5, "e" * 11)
    assert (cache.find(5), cache.find(0), cache.total) == (None, "aaaa", 10)
    cache.keep(0, "a")
    assert cache.total == 7


def test_what_is_kept_of_runs_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    subject = causal_subject()
    texts = ["def f(x): return x", "a" * 60, "b" * 61, "c = d[e]"]
    foci = [Focus(layer, 1, intervention) for layer in (0, 1) for intervention in ("trained", "tied")]
    whole = Viewer(subject)
    expected = [whole.look(text, focus, glance=True) for text in texts for focus in foci]
    monkeypatch.setattr(views, "RUN_BYTES", 4 * 2 * 2 * 60**2 * views.WEIGHT_BYTES)  # so that 60 tokens are too many
    bounded = Viewer(subject)
    assert [bounded.look(text, focus, glance=True) for text in texts for focus in foci] == expected
    assert 0 < bounded._runs.total <= views.RUN_BYTES < whole._runs.total
    assert {len(run.layers) for run in bounded._runs._values.values()} == {1, 2}


def test_tokenizers() -> None:
    naming = CycleTokenizer(names=5, payloads=4, length=3)
    found = naming.encode("a>C 1, B→a3 C->B")
    assert found.ids.tolist() == [[[0, 7, 11], [1, 5, 13], [2, 6, 10]]]
    assert (found.tokens, found.cut) == (("A→C 1", "B→A 3", "C→B 0"), False)
    assert naming.targets(found.ids).tolist() == [0, 1, 3]
    for text, said in {"": "no positions", "A→Z 1": "does not know", "A→B A→C": "name A is there twice"}.items():
        with pytest.raises(ValueError, match=said):
            naming.encode(text)
    assert ByteTokenizer().encode("é x").tokens == ("é₁", "é₂", "␣", "x")
    assert ByteTokenizer().answers(torch.tensor([0xC3, 32, 120])) == ["C3", "␣", "x"]
    numbers = NumberTokenizer(30, 2, 2).encode("1,2 3,4 5,6")
    assert (numbers.tokens, numbers.cut) == (("1,2", "3,4"), True)
    with pytest.raises(ValueError, match="positions of the form N,N, each N from 0 to 29"):
        NumberTokenizer(30, 2, 2).encode("1,40")


def test_parts_of_characters_are_called_by_their_character(tmp_path: Path) -> None:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({sign: place for place, sign in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    model = saved_model(tmp_path, len(alphabet), PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    found = ModelTokenizer(model).encode("注意 é\n")
    assert found.tokens == ("注₁", "注₂", "注₃", "意₁", "意₂", "意₃", "␣", "é₁", "é₂", "⏎")
    assert ModelTokenizer(model).answers(found.ids[0]) == ["E6", "B3", "A8", "E6", "84", "8F", "␣", "C3", "A9", "⏎"]
    assert (found.cut, found.unknown, set(found.special)) == (False, 0, {False})


def test_words_that_a_vocabulary_lacks_are_shown_as_they_are_in_the_text(tmp_path: Path) -> None:
    words = {"[UNK]": 0, "[CLS]": 1, "the": 2, "cat": 3}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A", special_tokens=[("[CLS]", 1)])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", cls_token="[CLS]")
    found = ModelTokenizer(saved_model(tmp_path, 4, fast)).encode("the 猫 cat")
    assert found.tokens == ("[CLS]", "the", "猫?", "cat")
    assert (found.special, found.unknown) == ((True, False, False, False), 1)


def saved_model(folder: Path, vocabulary: int, tokenizer: Any) -> HuggingFaceModel:
    """A small causal model with this tokenizer, from a folder."""
    config = GPT2Config(vocab_size=vocabulary, n_positions=32, n_embd=24, n_layer=2, n_head=3)
    torch.manual_seed(0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return open_model(folder)


def test_a_trained_model_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path))
    monkeypatch.setattr(builtin, "RECIPES", {"tiny": builtin.Recipe("cycle", "q,k,v", builtin.Config(steps=3, mlp=0))})
    steps: list[tuple[str, int, int]] = []
    path = builtin.trained("tiny", lambda *step: steps.append(step))
    assert steps == [("train", 1, 3), ("train", 2, 3), ("train", 3, 3)]
    assert builtin.trained("tiny", lambda *step: steps.append(step)) == path
    assert len(steps) == 3


def test_what_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects, "minilm", lambda: None)
    assert list(offers()) == ["cycle", "cycle-tied", "bytes"]
    assert list(offers("cycle-tied")) == ["cycle-tied", "cycle", "bytes"]
    assert next(iter(offers(tmp_path))) == "given"
    with pytest.raises(ValueError, match="holds no weights"):
        offers(tmp_path)["given"].open()


def test_a_run_of_compare_is_offered_whole(tmp_path: Path) -> None:
    from querykey.study.compare import compare

    compare("why", out=tmp_path, tasks=["cycle", "shift"], designs=["q,k,v", "q=k,v"], seeds=1, steps=2, workers=1)
    found = offers(tmp_path)
    assert list(found)[:4] == ["run:cycle:q,k,v", "run:cycle:q=k,v", "run:shift:q,k,v", "run:shift:q=k,v"]
    subject = found["run:shift:q=k,v"].open()
    assert (subject.purpose, str(subject.design)) == ("numbers", "q=k,v")
    head = Viewer(subject).look(subject.example, Focus())["head"]
    assert head["symmetry"] == pytest.approx(1, abs=1e-3)


def test_a_language_model_of_transformers(tmp_path: Path) -> None:
    words = ["[UNK]", "the", "cat", "saw", "a", "dog", "and", "it", "ran", "up", "to", "one", "tree"]
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    saved_model(tmp_path, 14, PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]"))
    subject = offers(tmp_path)["given"].open()
    assert (subject.purpose, subject.model.causal, subject.interventions) == ("language", True, list(SHOWN))
    viewer = Viewer(subject)
    look = viewer.look("the cat saw a dog", Focus(1, 2, "tied", "all"))
    assert look["tokens"] == ["the", "cat", "saw", "a", "dog"]
    assert look["targets"] == ["cat", "saw", "a", "dog", None]
    logits = subject.model.trace(subject.tokenizer.encode("the cat saw a dog").ids).logits
    assert logits is not None
    best = logits[0].softmax(-1).topk(5)
    for row, ids, shares in zip(look["head"]["before"]["predictions"], best.indices.tolist(), best.values, strict=True):
        assert [name for name, _ in row] == [
            name or f"#{id}" for name, id in zip(subject.model.tokenizer.convert_ids_to_tokens(ids), ids, strict=True)
        ]
        assert [share for _, share in row] == pytest.approx(shares.tolist(), abs=1e-4)
    head, everywhere = (viewer.effect("the cat saw a dog", Focus(1, 2, "copied", scope)) for scope in ("head", "all"))
    assert head["before"] == everywhere["before"] != everywhere["after"]
    assert head["before"]["bits"] == pytest.approx(math.log2(14), abs=0.5)
    assert viewer.look("cat " * 50, Focus())["cut"]


def test_a_converted_model_beside_its_original(tmp_path: Path) -> None:
    half = converted_beside_its_original(tmp_path)
    original = str(tmp_path / "original")
    viewer = Viewer(offers(half)["given"].open())  # the original is the one that config.json names
    about = viewer.about()
    assert about["converted"] == {"model": "half", "original": "original"}
    made = {"q": "W<sub>Q</sub>", "k": "B A<sub>K</sub>", "v": "B A<sub>V</sub>"}
    assert about["interventions"][-1]["matrices"] == made
    look = viewer.look("The cat.", Focus(1, 2, "converted"))["head"]
    before, after = (AutoModelForCausalLM.from_pretrained(place) for place in (original, half))
    ids = viewer.subject.tokenizer.encode("The cat.").ids
    for predictions, model in ((look["before"]["predictions"], before), (look["predictions"], after)):
        with torch.no_grad():
            best = model(ids).logits[0].softmax(-1).amax(-1)
        assert [row[0][1] for row in predictions] == pytest.approx(best.tolist(), abs=1e-4)
    assert viewer.effect("The cat.", Focus(0, 0, "converted")) == viewer.effect("The cat.", Focus(1, 3, "converted"))
    moved = tmp_path / "moved"
    moved.mkdir()
    for folder in (half, Path(original)):
        folder.rename(moved / folder.name)
    assert recorded_original(moved / "half") == str(moved / "original")
    half, original = moved / "half", str(moved / "original")
    (moved / "original").rename(tmp_path / "gone")
    assert Viewer(offers(half)["given"].open()).about()["converted"] is None
    saved_model(tmp_path / "other", 256, byte_tokenizer())
    for wrong, reason in ((half, "differ in"), (tmp_path / "gone", "no section 'querykey'")):
        with pytest.raises(ValueError, match=reason):
            offers(wrong, against=str(tmp_path / "other"))["given"].open()
    with pytest.raises(ValueError, match="goes with a model that querykey convert wrote"):
        offers("cycle", against=original)


# The server


@pytest.fixture(scope="module")
def port(cycle: Subject) -> Iterator[int]:
    with served(offered(cycle=cycle, causal=causal_subject())) as found:
        yield found


def test_the_api_answers(port: int, cycle: Subject) -> None:
    status, found = ask(port, "/api/models")
    assert (status, [model["id"] for model in found["models"]]) == (200, ["cycle", "causal"])
    status, about = ask(port, "/api/model?id=causal")
    assert (status, about["causal"], len(about["layers"])) == (200, True, 2)
    status, look = ask(port, "/api/look", {"model": "cycle", "text": cycle.example})
    run = cycle.model.trace(cycle.tokenizer.encode(cycle.example).ids)
    torch.testing.assert_close(
        values_of(look["head"]["scores"]), run.layers[0].scores[0, 0].double(), atol=5e-3, rtol=0
    )
    assert look["head"]["whom"] == run.layers[0].weights[0, 0].argmax(-1).tolist()
    assert look["targets"] == [row[0][0] for row in look["head"]["predictions"]]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "none", "text": "x"}, 404, "there is no model 'none'; there are cycle, causal"),
        ({"model": "causal", "text": ""}, 400, "the text is empty"),
        ({"model": "causal", "text": 3}, 400, "text must be a string"),
        ({"model": "causal", "text": "x" * 200_000}, 413, "200,000 characters"),
        ({"model": "causal", "text": "x", "layer": 9}, 400, "no head 0 in layer 9"),
        ({"model": "causal", "text": "x", "head": True}, 400, "whole numbers"),
        ({"model": "causal", "text": "x", "intervention": "odd"}, 400, "intervention must be one of trained, copied"),
        ([1], 400, "expected a JSON object, not a list"),
    ],
)
def test_what_cannot_be_answered_is_said(port: int, body: Any, status: int, said: str) -> None:
    found, answer = ask(port, "/api/look", body)
    assert found == status
    assert said in answer["error"]


def test_only_our_own_page_is_answered(port: int) -> None:
    body = {"model": "causal", "text": "x"}
    assert ask(port, "/", headers={"host": "evil.example"})[0] == 400
    assert ask(port, "/api/models", headers={"host": "evil.example"})[0] == 400
    assert ask(port, "/api/look", body, {"origin": "http://evil.example"})[0] == 403
    assert ask(port, "/api/look", body, {"origin": f"http://127.0.0.1:{port}"})[0] == 200
    assert ask(port, "/api/look", body, {"content-type": "text/plain"})[0] == 415
    assert ask(port, "/api/look", raw=b"{" * 100_000)[0] == 400
    assert ask(port, "/api/look", raw=b"x" * 2_000_000)[0] == 413
    assert ask(port, "/page/../server.py")[0] == 404
    assert ask(port, "/docs/..%2Fpyproject.toml")[0] == 404


@pytest.mark.parametrize("text", ["a", "word " * 10_000, "🚣 emoji 🧑‍🚀", "שלום עולם", "\x00\x01", "\ud800"])
def test_any_text_is_shown(port: int, text: str) -> None:
    status, look = ask(port, "/api/look", {"model": "causal", "text": text, "layer": 1, "intervention": "copied"})
    assert status == 200
    assert look["cut"] == (len(text) > 512)
    assert len(look["tokens"]) == look["head"]["scores"]["shape"][0] <= 512


def test_a_port_in_use_gives_the_next_one() -> None:
    with listen(0) as taken:
        number = taken.getsockname()[1]
        with listen(number) as other:
            assert other.getsockname()[1] > number
            assert other.getsockname()[0] == "127.0.0.1"
            assert other.family == socket.AF_INET


def test_the_command_says_what_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text("{")
    assert main(["explore", str(tmp_path), "--no-browser"]) == 2
    assert "querykey: " in capsys.readouterr().err
    assert main(["explore", "cycle", "--text", "nothing", "--export", str(tmp_path / "page.html")]) == 2
    assert "the text has no positions" in capsys.readouterr().err


def test_a_model_in_the_making_says_how_far_it_is() -> None:
    going, done = threading.Event(), threading.Event()

    def make(progress: builtin.Progress) -> Subject:
        progress("train", 1, 4)
        going.set()
        assert done.wait(30)
        return causal_subject()

    def refuse(_: builtin.Progress) -> Subject:
        raise ValueError("this one cannot be")

    with served({"slow": Offer("slow", make), "bad": Offer("bad", refuse)}) as port:
        assert ask(port, "/api/model?id=slow")[0] == 202
        assert going.wait(30)
        assert ask(port, "/api/look", {"model": "slow", "text": "x"}) == (
            202,
            {"step": "train", "done": 1, "total": 4},
        )
        done.set()
        assert until_made(port, "slow")[1]["kind"] == "bytes"
        assert until_made(port, "bad") == (400, {"error": "this one cannot be"})


def until_made(port: int, name: str) -> tuple[int, Any]:
    for _ in range(500):
        status, answer = ask(port, f"/api/model?id={name}")
        if status != 202:
            return status, answer
        time.sleep(0.02)
    pytest.fail(f"{name} was never made")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)
QUERIES = st.fixed_dictionaries(
    {},
    optional={
        "model": st.sampled_from(["cycle", "causal"]) | JSON,
        "text": st.text(max_size=80) | st.from_regex(r"([A-L]→[A-L] [0-7] ?){1,14}", fullmatch=True) | JSON,
        "layer": st.integers(-1, 2) | JSON,
        "head": st.integers(-1, 2) | JSON,
        "intervention": st.sampled_from(SHOWN) | JSON,
        "scope": st.sampled_from(["head", "layer", "all"]) | JSON,
        "overview": st.booleans() | JSON,
    },
)


def check_request(port: int, path: str, body: Any) -> None:
    status, answer = ask(port, path, body)
    assert status in (200, 400, 404, 413)
    assert status == 200 or answer["error"]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["/api/look", "/api/effect"]), body=QUERIES)
def test_requests_at_random_never_fail(port: int, path: str, body: Any) -> None:
    check_request(port, path, body)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(path=st.sampled_from(["/api/look", "/api/effect"]), body=QUERIES | JSON.filter(lambda body: body is not None))
def test_many_requests_at_random_never_fail(port: int, path: str, body: Any) -> None:
    check_request(port, path, body)
