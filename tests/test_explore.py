"""The explorer without its page: the switch, notations, views, rounding, and the API with requests at random."""

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
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from explored import ask, causal_subject, offered, served, values_of
from querykey.bilinear import argmax_cycles
from querykey.cli import main
from querykey.explorer import builtin, subjects
from querykey.explorer.notation import Bytes, Naming, Numbers
from querykey.explorer.rounding import rounded
from querykey.explorer.server import listen
from querykey.explorer.subjects import SETTINGS, Offer, Subject, offers
from querykey.explorer.views import Focus, Viewer, graph, symmetry
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
    for setting in SETTINGS:
        focus = Focus(setting=setting)
        head = viewer.look(cycle.example, focus)["head"]
        longest[setting] = max(map(len, head["rings"]))
        right[setting] = viewer.effect(cycle.example, focus)["head"]["after"]["right"]
        if setting in ("copied", "tied", "signed"):
            assert head["symmetry"] == pytest.approx(1, abs=1e-3)
    assert longest == {"trained": 3, "copied": 1, "tied": 1, "signed": 2, "core": 3, "selfmask": 3, "cosine": 3}
    assert right["trained"] == right["core"] == 1
    assert max(right["copied"], right["tied"]) < 0.5


def test_the_switch_under_rotary_positions() -> None:
    subject = causal_subject()
    assert subject.settings == list(SETTINGS)
    ids = subject.notation.encode(subject.example).ids
    for setting in ("copied", "tied", "signed"):
        scores = subject.model.trace(ids, subject.switch.interventions(setting, [(0, 1)])).layers[0].scores[0, 1]
        torch.testing.assert_close(scores, scores.mT, rtol=1e-4, atol=1e-5)
    plain = subject.model.trace(ids).layers[0].scores[0, 1]
    core = subject.model.trace(ids, subject.switch.interventions("core", [(0, 1)])).layers[0].scores[0, 1]
    assert torch.corrcoef(torch.stack([plain.flatten(), core.flatten()]))[0, 1] > 0.6


def test_a_full_core_of_a_head_that_has_one_is_that_head() -> None:
    model = NativeModel(Transformer(19, 7, 12, dim=20, heads=2, layers=1, head_dim=5, design="q=k,v", positions="none"))
    sample = torch.randint(19, (40, 12, 1), generator=torch.Generator().manual_seed(0))
    run = model.trace(sample)
    switch = Replacements.of(model.layers, run)
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


def test_graph_and_symmetry_of_known_scores(cycle: Subject) -> None:
    run = cycle.model.trace(cycle.notation.encode(cycle.example).ids)
    found = graph(run.layers[0], 0)
    lengths = argmax_cycles(run.layers[0].weights[0, 0])
    on_rings = {place: len(ring) for ring in found["rings"] for place in ring}
    assert all(lengths[place] == length for place, length in on_rings.items())
    assert {len(ring) for ring in found["rings"]} == set(lengths.tolist())
    one = torch.tensor([[[9.0, 1, 2], [1, 9, 3], [2, 3, 9]], [[0, 1, -2], [-1, 0, 3], [2, -3, 0]]])
    assert symmetry(one).tolist() == pytest.approx([1, -1])
    assert symmetry(torch.zeros(1, 1, 1)).tolist() == [0]


def test_notations() -> None:
    naming = Naming(names=5, payloads=4, length=3)
    ids, tokens, cut = naming.encode("a>C 1, B→a3 C->B")
    assert ids.tolist() == [[[0, 7, 11], [1, 5, 13], [2, 6, 10]]]
    assert (tokens, cut) == (("A→C 1", "B→A 3", "C→B 0"), False)
    assert naming.targets(ids).tolist() == [0, 1, 3]
    for text, said in {"": "nothing to read", "A→Z 1": "does not know", "A→B A→C": "name A is there twice"}.items():
        with pytest.raises(ValueError, match=said):
            naming.encode(text)
    assert Bytes().encode("é x").tokens == ("C3", "A9", "␣", "x")
    assert Numbers(30, 2, 2).encode("1,2 3,4 5,6")[1:] == (("1,2", "3,4"), True)
    with pytest.raises(ValueError, match="positions of the form N,N, each N from 0 to 29"):
        Numbers(30, 2, 2).encode("1,40")


def test_a_trained_model_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path))
    monkeypatch.setattr(builtin, "RECIPES", {"tiny": builtin.Recipe("cycle", "q,k,v", builtin.Config(steps=3, mlp=0))})
    shares: list[float] = []
    path = builtin.trained("tiny", shares.append)
    assert shares == pytest.approx([1 / 3, 2 / 3, 1])
    assert builtin.trained("tiny", shares.append) == path
    assert len(shares) == 3


def test_what_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subjects.builtin, "minilm", lambda: None)
    assert list(offers()) == ["bytes", "cycle", "cycle-tied"]
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
    assert (subject.kind, subject.design) == ("numbers", "q=k,v")
    head = Viewer(subject).look(subject.example, Focus())["head"]
    assert head["symmetry"] == pytest.approx(1, abs=1e-3)


def test_a_language_model_of_transformers(tmp_path: Path) -> None:
    torch.manual_seed(0)
    GPT2LMHeadModel(GPT2Config(vocab_size=14, n_positions=32, n_embd=24, n_layer=2, n_head=3)).save_pretrained(tmp_path)
    words = ["[UNK]", "the", "cat", "saw", "a", "dog", "and", "it", "ran", "up", "to", "one", "tree"]
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path)
    subject = offers(tmp_path)["given"].open()
    assert (subject.kind, subject.model.causal, subject.settings) == ("language", True, list(SETTINGS))
    viewer = Viewer(subject)
    look = viewer.look("the cat saw a dog", Focus(1, 2, "tied", "all"))
    assert look["tokens"] == ["the", "cat", "saw", "a", "dog"]
    assert look["targets"] == ["cat", "saw", "a", "dog", None]
    assert set(look["answers"]) <= set(words) | {None}
    effect = viewer.effect("the cat saw a dog", Focus(1, 2, "copied"))
    assert effect["head"]["before"] == effect["all"]["before"]
    assert effect["head"]["before"]["bits"] == pytest.approx(math.log2(14), abs=0.5)
    assert viewer.look("cat " * 50, Focus())["cut"]


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
    run = cycle.model.trace(cycle.notation.encode(cycle.example).ids)
    torch.testing.assert_close(
        values_of(look["head"]["scores"]), run.layers[0].scores[0, 0].double(), atol=5e-3, rtol=0
    )
    assert look["head"]["whom"] == run.layers[0].weights[0, 0].argmax(-1).tolist()
    assert look["targets"] == look["answers"]


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ({"model": "none", "text": "x"}, 404, "there is no model 'none'; there are cycle, causal"),
        ({"model": "causal", "text": ""}, 400, "The text is empty"),
        ({"model": "causal", "text": 3}, 400, "text must be a string"),
        ({"model": "causal", "text": "x" * 200_000}, 413, "200,000 characters"),
        ({"model": "causal", "text": "x", "layer": 9}, 400, "no head 0 in layer 9"),
        ({"model": "causal", "text": "x", "head": True}, 400, "whole numbers"),
        ({"model": "causal", "text": "x", "setting": "odd"}, 400, "setting must be one of trained, copied"),
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
    assert ask(port, "/docs/..%2Fpyproject.md")[0] == 404


@pytest.mark.parametrize("text", ["a", "word " * 10_000, "🚣 emoji 🧑‍🚀", "שלום עולם", "\x00\x01", "\ud800"])
def test_any_text_is_shown(port: int, text: str) -> None:
    status, look = ask(port, "/api/look", {"model": "causal", "text": text, "layer": 1, "setting": "copied"})
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
    assert "There is nothing to read" in capsys.readouterr().err


def test_a_model_in_the_making_says_how_far_it_is() -> None:
    going, done = threading.Event(), threading.Event()

    def make(progress: builtin.Progress) -> Subject:
        progress(0.25)
        going.set()
        assert done.wait(30)
        return causal_subject()

    def refuse(_: builtin.Progress) -> Subject:
        raise ValueError("this one cannot be")

    with served({"slow": Offer("slow", make), "bad": Offer("bad", refuse)}) as port:
        assert ask(port, "/api/model?id=slow")[0] == 202
        assert going.wait(30)
        assert ask(port, "/api/look", {"model": "slow", "text": "x"}) == (202, {"share": 0.25})
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
        "setting": st.sampled_from(SETTINGS) | JSON,
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
