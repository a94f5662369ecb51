"""What a text shows: moments, behaviour, and the effect of replacing heads, against what can be said beforehand."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from checkpoints import tie, tiny_config, tiny_model
from querykey.checkpoint import probe
from querykey.inspection.behaviour import behaviour, blind
from querykey.inspection.forecast import COMPARISONS, REPLACEMENTS, Yardstick, forecast
from querykey.inspection.inspect import examine
from querykey.inspection.page import as_html
from querykey.inspection.summary import sentences
from querykey.inspection.tables import forecast_table
from querykey.inspection.text import pieces
from querykey.models.huggingface import HuggingFaceModel, open_model
from querykey.models.moments import Moments
from querykey.models.replacements import fit
from querykey.models.trace import LayerTrace

GENERATOR = torch.Generator().manual_seed(5)
IDS = torch.randint(3, 61, (6, 23), generator=GENERATOR)  # more tokens than the width of the models
OTHERS = torch.randint(3, 61, (3, 17), generator=GENERATOR)


def live_of(model: PreTrainedModel, folder: Path, dtype: torch.dtype = torch.float64) -> HuggingFaceModel:
    model.save_pretrained(folder)
    return open_model(folder, dtype=dtype)


def fitted(live: HuggingFaceModel, ids: Tensor = IDS) -> dict[int, Moments]:
    moments = {number: Moments(layer) for number, layer in enumerate(live.layers)}
    for batch in ids.split(2):
        for number, layer in enumerate(live.trace(batch).layers):
            moments[number].add(layer)
    return moments


def effects(live: HuggingFaceModel, per: str = "all") -> dict[tuple[str, int, int], dict[str, float]]:
    frame = forecast(Yardstick(live, OTHERS), fitted(live), per=per)
    found: dict[tuple[str, int, int], dict[str, float]] = {}
    for row in frame.itertuples():
        found.setdefault((row.scope, row.layer, row.head), {})[row.replacement] = row.cosine
    return found


def random_model(name: str) -> PreTrainedModel:
    """One in which attention makes most of the output: small projections, large values, no biases after norms."""
    model = tiny_model(name)
    for path, parameter in model.named_parameters():
        if "norm" in path.lower() or "ln_" in path:
            parameter.fill_(0.0 if path.endswith("bias") else 1.0)
        elif "value" in path or "v_proj" in path:
            parameter.mul_(3)
        elif any(role in path for role in ("query", "key", "q_proj", "k_proj", "attn", ".q.", ".k.")):
            parameter.mul_(0.5)
    return model


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "gpt_neox", "t5"])
def test_tied_heads_are_found_again(name: str, tmp_path: Path) -> None:
    """Their closest tied, signed and full-core heads are themselves, biases and rotation and groups included."""
    model = random_model(name)
    for layer in probe(model.config).layers:
        tie(model, layer)
    found = effects(live_of(model, tmp_path))["all", -1, -1]
    for kind in ("tied", "signed", "core"):
        assert found[kind] == pytest.approx(1, abs=1e-6), kind
    assert found["uniform"] < 0.999


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("name", "flipped"),
    [("bert", [1, 2, 5]), ("llama", [1, 5, 2, 6]), ("cohere2", [2, 3, 6, 7])],  # pairs are (1, 5) here, (2, 3) there
)
def test_heads_with_a_sign_per_dimension_are_found_again(name: str, flipped: list[int], tmp_path: Path) -> None:
    """W_Q = W_K but for the sign of some pairs of dimensions; no tied head can do that."""
    model = random_model(name)
    for layer in probe(model.config).layers:
        tie(model, layer)
        (query,) = layer.query.parts
        rows = query.rows.view(layer.query.heads, layer.query.size)[:, flipped].flatten()
        for place in (query.weight, *(bias.name for bias in query.biases)):
            model.get_parameter(place)[rows] *= -1
    found = effects(live_of(model, tmp_path))["all", -1, -1]
    assert found["signed"] == pytest.approx(1, abs=1e-6)
    assert found["tied"] < found["signed"] - 1e-3


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_heads_with_a_core_are_found_again(name: str, tmp_path: Path) -> None:
    """W_Q = W_K C: exactly where positions rotate, and where not, as good as the search for the best W is."""
    model = random_model(name)
    for layer in probe(model.config).layers:
        tie(model, layer)
        (query,) = layer.query.parts
        rows = query.rows.view(layer.query.heads, layer.query.size)
        for head in range(layer.query.heads):
            core = torch.randn(8, 8, generator=torch.Generator().manual_seed(head), dtype=torch.float64) / 8**0.5
            for place in (query.weight, *(bias.name for bias in query.biases)):
                assert place
                parameter = model.get_parameter(place)
                parameter[rows[head]] = core.T @ parameter[rows[head]]
    found = effects(live_of(model, tmp_path))["all", -1, -1]
    assert found["core"] == pytest.approx(1, abs=1e-6)
    assert found["core"] > found["signed"] > found["tied"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_keys_that_are_values_are_found_again(name: str, tmp_path: Path) -> None:
    """W_V = W_K R for a random R and any bias: one tensor holds both."""
    model = random_model(name)
    for layer in probe(model.config).layers:
        assert layer.value
        (key,), (value,) = layer.key.parts, layer.value.parts
        R = torch.randn(8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        for group in range(layer.key.heads):
            rows = slice(8 * group, 8 * group + 8)
            model.get_parameter(value.weight)[rows] = R @ model.get_parameter(key.weight)[rows]
    found = effects(live_of(model, tmp_path))["all", -1, -1]
    assert found["key_value"] == pytest.approx(1, abs=1e-6)
    assert found["tied"] < 0.999


def test_every_layer_and_every_head_has_its_rows(tmp_path: Path) -> None:
    live = live_of(random_model("bert"), tmp_path)
    by_layer, by_head = effects(live, "layer"), effects(live, "head")
    assert set(by_layer) == {("none", -1, -1), ("all", -1, -1), ("layer", 0, -1), ("layer", 1, -1)}
    assert set(by_head) == {("none", -1, -1), ("all", -1, -1), *(("head", n, h) for n in (0, 1) for h in range(6))}
    assert set(by_head["all", -1, -1]) == {*REPLACEMENTS, *COMPARISONS}
    assert by_head["none", -1, -1][""] == pytest.approx(1, abs=1e-12)
    assert by_layer["layer", 1, -1]["tied"] > by_layer["all", -1, -1]["tied"]
    for kind in REPLACEMENTS:  # a layer is the sum of its heads, so that one of them changes less
        assert max(by_head["head", 1, h][kind] for h in range(6)) > by_layer["layer", 1, -1][kind]


def test_layers_that_share_weights_are_replaced_together(tmp_path: Path) -> None:
    live = live_of(random_model("albert"), tmp_path)
    moments = Moments(live.layers[0])
    for layer in live.trace(IDS).layers:
        moments.add(layer)
    yardstick = Yardstick(live, OTHERS)
    frame = forecast(yardstick, {0: moments}, per="layer")
    one, both = (
        yardstick.effect({(place, None): fit("uniform", moments).intervention() for place in places})
        for places in ([0], [0, 1])
    )
    mine = frame[(frame["scope"] == "all") & (frame["replacement"] == "uniform")]
    assert mine["cosine"].item() == pytest.approx(both.cosine)
    assert mine["cosine"].item() != pytest.approx(one.cosine)


def test_perplexity_is_that_of_the_library_s_own_loss(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_config(
        tiny_config("llama"), dtype=torch.float64, attn_implementation="eager"
    ).eval()
    live = live_of(model, tmp_path)
    with torch.no_grad():
        loss = model(input_ids=OTHERS, labels=OTHERS).loss
    frame = forecast(Yardstick(live, OTHERS), fitted(live), per="all")
    assert frame["perplexity"].iloc[0] == pytest.approx(math.exp(loss), rel=1e-6)
    assert frame["perplexity"].notna().all()
    bert = live_of(AutoModel.from_config(tiny_config("bert"), dtype=torch.float64).eval(), tmp_path / "bert")
    assert math.isnan(Yardstick(bert, OTHERS).effect({}).perplexity)


@pytest.mark.parametrize("name", ["llama", "gpt_neox", "bert"])
def test_moments_are_those_of_queries_and_keys_before_their_rotation(name: str, tmp_path: Path) -> None:
    model = random_model(name)
    live = live_of(model, tmp_path)
    moments = fitted(live)[1]
    weights = live.checkpoint.read(1, values=True, dtype=torch.float64)
    x = live.trace(IDS).layers[1].x.flatten(0, 1)
    for head, group in enumerate(weights.map.key_head):
        parts = []
        for W, b, at in (
            (weights.W_Q, weights.b_Q, head),
            (weights.W_K, weights.b_K, group),
            (weights.W_V, weights.b_V, group),
        ):
            parts.append(x @ W[at] + (0 if b is None else b[at]))
        together = torch.cat(parts, -1)
        near = {"atol": 1e-5, "rtol": 1e-4}  # models make their angles in float32
        torch.testing.assert_close(moments.mean[head], together.mean(0), **near)
        torch.testing.assert_close(moments.covariance[head], together.T.cov(correction=0), **near)
    torch.testing.assert_close(moments.spectrum(), torch.linalg.eigvalsh(x.T.cov(correction=0)).flip(0))


def run_of(pattern: Tensor, allowed: Tensor | None = None) -> LayerTrace:
    """A run of which only the pattern matters."""
    other = torch.zeros(*pattern.shape[:2], pattern.shape[2], 4)
    return LayerTrace(
        torch.zeros(len(pattern), pattern.shape[2], 4), other, other, other, pattern, allowed, pattern, other
    )


def test_behaviour_of_heads_that_are_known() -> None:
    """Heads that look at themselves, at the position before, in a circle, in pairs, nowhere, in threes."""
    n = 6
    eye, equal = torch.eye(n), torch.full((n, n), 1 / n)
    before = torch.cat([eye[:1], eye[:-1]])  # the first one looks at itself
    circle, pairs, threes = eye.roll(1, 0), eye[[1, 0, 3, 2, 5, 4]], eye[[1, 2, 0, 4, 5, 3]]
    found = behaviour(run_of(torch.stack([eye, before, circle, pairs, equal, threes])[None]), two_way=True)
    expected = {
        "entropy": [0, 0, 0, 0, 1, 0],
        "self_mass": [1, 1 / 6, 0, 0, 1 / 6, 0],
        "previous_mass": [0, 1, 1, 3 / 5, 1 / 6, 0],
        "next_mass": [0, 0, 0, 3 / 5, 1 / 6, 4 / 5],
        "first_mass": [0, 1 / 5, 1 / 5, 1 / 5, 1 / 6, 1 / 5],
        "cycle_1": [1, 1, 0, 0, 1, 0],
        "cycle_2": [0, 0, 0, 1, 0, 0],
        "cycle_longer": [0, 0, 1, 0, 0, 1],
    }
    for name, values in expected.items():
        assert found[name].tolist() == pytest.approx(values, abs=1e-6), name


def test_behaviour_under_a_causal_mask() -> None:
    """Entropy against that of equal weights on what may be seen; the first position has no choice and no neighbour."""
    n = 5
    allowed = torch.ones(n, n, dtype=torch.bool).tril()
    equal = (allowed / allowed.sum(-1, keepdim=True))[None, None]
    run = run_of(equal, allowed[None, None])
    found = behaviour(run, two_way=False)
    null = blind(run, False, torch.Generator().manual_seed(0))
    assert found["entropy"].item() == pytest.approx(1)
    assert found["self_mass"].item() == pytest.approx((1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 5)
    assert found["previous_mass"].item() == pytest.approx((1 / 2 + 1 / 3 + 1 / 4 + 1 / 5) / 4)
    assert "next_mass" not in found
    assert "cycle_1" not in found
    assert {name: values.item() for name, values in found.items()} == pytest.approx(null)


def test_a_random_map_s_cycles_are_the_null_of_cycles() -> None:
    """Counted over all 3³ maps of three positions."""
    run = run_of(torch.full((1, 1, 3, 3), 1 / 3))
    null = blind(run, True, torch.Generator().manual_seed(0))
    counts = {"cycle_1": 0, "cycle_2": 0, "cycle_longer": 0}
    for code in range(27):
        step = [code // 3**i % 3 for i in range(3)]
        for start in range(3):
            at = start
            for _ in range(3):
                at = step[at]
            length, after = 1, step[at]
            while after != at:
                length, after = length + 1, step[after]
            counts[["cycle_1", "cycle_2", "cycle_longer"][length - 1]] += 1
    for name, count in counts.items():
        assert null[name] == pytest.approx(count / 81, abs=0.06), name
    assert counts["cycle_1"] / 81 == pytest.approx(0.63, abs=0.01)


def test_replacements_without_anything_to_fit(tmp_path: Path) -> None:
    """`copied` scores queries with queries, `uniform` gives every position the same."""
    live = live_of(random_model("bert"), tmp_path)
    moments = fitted(live)[0]
    for kind, key in (("copied", lambda run: run.query), ("uniform", lambda run: 0 * run.key)):
        before = live.trace(OTHERS).layers[0]
        after = live.trace(OTHERS, {(0, None): fit(kind, moments).intervention()}).layers[0]
        expected: Callable[[LayerTrace], Tensor] = key
        scores = before.query @ expected(before).mT * 8**-0.5
        torch.testing.assert_close(after.weights, scores.softmax(-1), atol=1e-5, rtol=1e-4)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    numbers = torch.randint(0, 55, (4000,), generator=torch.Generator().manual_seed(2))
    (tmp_path / "text").write_text(" ".join(f"w{number}" for number in numbers.tolist()))
    return tmp_path / "text"


def with_words(model: PreTrainedModel, folder: Path) -> Path:
    """The model beside a tokenizer of 55 words."""
    words = {"[PAD]": 0, "[UNK]": 1} | {f"w{number}": number + 3 for number in range(55)}
    tokenizer = Tokenizer(WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


@pytest.mark.usefixtures("unchecked")
def test_a_language_model_on_a_text(tmp_path: Path, text: Path) -> None:
    """Columns of every head, and what is said of the perplexity; pieces are as long as the model allows."""
    model = AutoModelForCausalLM.from_config(tiny_config("llama"), dtype=torch.float64)
    found = examine(with_words(model, tmp_path / "llama"), text=text, pieces=6, forecast="head")
    assert found.data is not None
    assert (found.data.calibrated_on, found.data.measured_on, found.data.context) == (3 * 64, 3 * 64, 64)
    heads = found.heads
    for kind in REPLACEMENTS:
        assert heads[f"cosine_{kind}"].between(0, 1).all()
        assert heads[f"perplexity_{kind}"].between(40, 90).all()  # of 61 tokens of which the model knows nothing
    assert heads["entropy"].between(0, 1).all()
    assert heads["symmetry_data_rotary"].notna().all()
    assert heads["symmetry_data_null"].notna().all()
    assert "next_mass" not in heads
    assert "cycle_1" not in heads
    words = " ".join(sentences(found))
    before, tied = found.data.forecast["perplexity"].iloc[:2]
    assert f"The perplexity on text, 192 tokens in contexts of 64, is {before:.2f} and becomes {tied:.2f} (W_Q" in words
    assert "12.0 tokens per dimension" not in words
    assert "do what no head with W_Q = W_K can" not in words
    name, *cells = forecast_table(found.data, {}).rows[1]
    assert name == "all heads"
    assert all(cell.detail for cell in cells)  # the perplexity


@pytest.mark.usefixtures("unchecked")
def test_positions_that_cannot_be_undone_are_not_forecast(tmp_path: Path, text: Path) -> None:
    folder = with_words(tiny_model("hunyuan"), tmp_path / "hunyuan")
    found = examine(folder, text=text, pieces=4)
    assert found.data is not None
    assert found.data.forecast["scope"].tolist() == ["none"]
    assert "symmetry_data" not in found.heads
    assert found.heads["entropy"].notna().all()
    assert any("There is no forecast" in sentence for sentence in sentences(found))


@pytest.mark.usefixtures("unchecked")
def test_the_measures_on_data_are_those_of_the_covariance(tmp_path: Path, text: Path) -> None:
    """A dense oracle: symmetry of Σ^½ M Σ^½, with the covariance Σ of the layer's inputs on the same pieces.

    The tied head is fitted under the Σ of the first half, and what it keeps is measured under that of the second.
    """
    folder = with_words(random_model("bert"), tmp_path / "bert")
    found = examine(folder, text=text, pieces=8, forecast="none")
    assert found.data is not None
    assert found.data.forecast["scope"].tolist() == ["none"]
    model = open_model(folder)
    weights = model.checkpoint.read(1, dtype=torch.float64)
    (fit, fit_inverse), (root, _) = (roots(model, ids) for ids in pieces(model, text.read_text(), 128, 8).split(4))
    for head in range(6):
        M = weights.W_Q[head] @ weights.W_K[head].T
        fitted, own = fit @ M @ fit, root @ M @ root
        row = found.heads.query(f"layer == 1 and head == {head}").iloc[0]
        assert row["symmetry_data"] == pytest.approx(((own * own.T).sum() / own.square().sum()).item(), abs=1e-4)
        values, vectors = torch.linalg.eigh((fitted + fitted.T) / 2)
        tied = root @ fit_inverse @ vectors @ values.clamp(min=0).diag() @ vectors.T @ fit_inverse @ root
        kept = 1 - (own - tied).square().sum() / own.square().sum()
        assert row["tied_share_data"] == pytest.approx(kept.item(), abs=1e-4)


def roots(model: HuggingFaceModel, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Σ^½ and its inverse, of the inputs of layer 1."""
    x = model.trace(ids).layers[1].x.flatten(0, 1).double()
    values, vectors = torch.linalg.eigh(x.T.cov(correction=0))
    inverse = torch.where(values > 1e-9 * values.max(), values.clamp(min=1e-30).rsqrt(), 0.0)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T, vectors * inverse @ vectors.T


@pytest.mark.parametrize("name", ["bert", "llama", "albert"])
def test_a_forecast_that_starts_in_the_middle_equals_whole_passes(name: str, tmp_path: Path) -> None:
    """Rows of heads and layers against traces from the first layer on."""
    model = live_of(random_model(name), tmp_path)
    moments = fitted(model)
    moments = {model.numbers[at]: one for at, one in moments.items()}
    frame = forecast(Yardstick(model, OTHERS), moments, per="head")
    before = model.trace(OTHERS).hidden
    for row in frame[frame["scope"] == "head"].iloc[::7].itertuples():
        replacement = fit(row.replacement, moments[row.layer]).intervention(row.head)
        after = model.trace(
            OTHERS, {(at, row.head): replacement for at, n in enumerate(model.numbers) if n == row.layer}
        )
        assert row.cosine == pytest.approx(float(F.cosine_similarity(after.hidden, before, dim=-1).mean()), abs=1e-9)


def test_pieces_hold_the_text_in_order_with_special_tokens(tmp_path: Path) -> None:
    model = open_model(with_words(tiny_model("llama"), tmp_path))
    ids = range(3, 58)
    words = " ".join(f"w{number - 3}" for number in ids)
    assert pieces(model, words, 20, 9).tolist() == [list(ids[:20]), list(ids[20:40])]
    assert pieces(model, words, 18, 2).tolist() == [list(ids[:18]), list(ids[18:36])]
    assert pieces(model, words, 64, 9, least=3).tolist() == [list(ids[at : at + 18]) for at in (0, 18, 36)]
    long = pieces(model, " ".join([words] * 103), 64, 5)
    assert long.shape == (5, 64)
    assert len(set(long[:, 0].tolist())) > 2  # from all over it
    with pytest.raises(ValueError, match="it has 55 tokens, and at least 64 are needed"):
        pieces(model, words, 64, 9, least=4)
    added = TemplateProcessing(single="[PAD] $A [UNK]", special_tokens=[("[PAD]", 0), ("[UNK]", 1)])
    model.tokenizer.backend_tokenizer.post_processor = added
    assert pieces(model, words, 20, 9).tolist() == [[0, *ids[at : at + 18], 1] for at in (0, 18, 36)]


@pytest.mark.usefixtures("unchecked")
def test_calibration_on_another_text_and_on_too_few_tokens(tmp_path: Path, text: Path) -> None:
    folder = with_words(tiny_model("llama"), tmp_path / "llama")
    other = tmp_path / "other"
    other.write_text(" ".join(f"w{number % 5}" for number in range(100)))
    found = examine(folder, text=text, calibrate=other, context=32, pieces=3)
    assert found.data is not None
    assert (found.data.calibrated_on, found.data.measured_on, found.data.context) == (96, 96, 32)
    assert "6.0 tokens per dimension of a head's keys and values" in " ".join(sentences(found))
    whole = examine(folder, text=text, context=32, pieces=6)
    assert whole.data is not None
    assert whole.data.forecast["cosine"].iloc[1] != found.data.forecast["cosine"].iloc[1]
    with pytest.raises(ValueError, match="is both read and calibrated on"):
        examine(folder, text=text, calibrate=text)


@pytest.mark.usefixtures("unchecked")
def test_chosen_layers_alone_are_replaced_and_the_work_is_known_from_the_start(tmp_path: Path, text: Path) -> None:
    model = AutoModelForCausalLM.from_config(tiny_config("llama"), dtype=torch.float64)
    folder = with_words(model, tmp_path / "llama")
    steps = []
    whole, second = (
        examine(folder, text=text, pieces=4, forecast="layer", layers=chosen, watch=steps.append)
        for chosen in (None, [1])
    )
    rows = [
        found.data.forecast.query("layer == 1 and scope == 'layer'")["cosine"].to_numpy() for found in (whole, second)
    ]
    assert rows[0] == pytest.approx(rows[1])
    assert second.data.forecast["layer"].max() == 1
    assert not (second.data.forecast["layer"] == 0).any()
    work = [step for step in steps[: len(steps) // 2 + 1] if step.what.endswith("layers run")]
    assert len({step.total for step in work[:8]}) == 1
    assert work[0].done > 0
    ends = [step for step in steps if step.what.startswith("replacements")]
    assert ends[-1].done == ends[-1].total  # neither more nor less than was announced


@pytest.mark.usefixtures("unchecked")
def test_layers_that_the_text_does_not_reach_are_named(tmp_path: Path, text: Path) -> None:
    """The decoder of T5: the encoder alone is run."""
    found = examine(with_words(tiny_model("t5").float(), tmp_path / "t5"), text=text, pieces=4)
    words = " ".join(sentences(found))
    assert "The text runs through 2 of 4 layers of self-attention" in words
    assert "(decoder 0, decoder 1)" in words
    assert "12 heads of cross-attention" in words
    as_html([found])  # rows without behaviour, and without eigenvalues, are no error
