"""The small Transformer: decoding equals the whole at once, and its sizes are what was asked for."""

import itertools

import pytest
import torch
from torch.nn.functional import cross_entropy

from querykey import PARTITIONS, KVCache
from querykey.transformer import Transformer

SIZES = {"dim": 24, "heads": 4, "layers": 3}


@pytest.mark.parametrize("positions", ["none", "learned", "rotary"])
@pytest.mark.parametrize("design", ["q,k,v", "q,k=v+selfmask", "q=k=v+core=full+kv_heads=2"])
def test_decoding_equals_the_whole_at_once(positions, design):
    model = Transformer(13, 11, 7, causal=True, design=design, positions=positions, **SIZES).double()
    inputs = torch.randint(13, (5, 7, 2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        caches = [KVCache() for _ in range(3)]
        steps = torch.cat([model(part, caches=caches) for part in inputs.split((1, 2, 4), 1)], 1)
        torch.testing.assert_close(steps, model(inputs))


def test_a_decoder_does_not_see_ahead_and_an_encoder_does():
    inputs = torch.randint(13, (1, 7, 1), generator=torch.Generator().manual_seed(0))
    changed = inputs.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 13
    for causal in (True, False):
        model = Transformer(13, 11, 7, causal=causal, **SIZES)
        assert torch.equal(model(inputs)[:, :-1], model(changed)[:, :-1]) == causal


def test_a_window_reaches_as_far_as_its_layers_together():
    inputs = torch.randint(13, (1, 17, 1), generator=torch.Generator().manual_seed(0))
    changed = inputs.clone()
    changed[0, 2] = (changed[0, 2] + 1) % 13
    model = Transformer(13, 11, 17, causal=True, window=3, **SIZES)  # of three layers, each two positions back
    same = (model(inputs) == model(changed)).all(-1)[0]
    assert same.tolist() == [True] * 2 + [False] * 7 + [True] * 8


@pytest.mark.parametrize(("mlp", "positions"), [(0, "none"), (2.5, "rotary"), (4, "learned")])
def test_parameters_by_hand(mlp, positions):
    model = Transformer(13, 11, 7, mlp=mlp, positions=positions, **SIZES)
    blocks = 3 * (4 * 24 * 24 + 24 + (2 * 24 * round(24 * mlp) + 24 if mlp else 0))
    expected = 13 * 24 + blocks + 24 + 24 * 11 + (7 * 24 if positions == "learned" else 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.usefixtures("unchecked")
def test_sizes_that_cannot_be_are_refused():
    for change, sentence in [
        ({"layers": 0}, "layers must be positive"),
        ({"mlp": -1.0}, "mlp is a width"),
        ({"positions": "absolute"}, "positions must be one of none, learned, rotary"),
        ({"heads": 5}, "5 heads do not divide dim 24"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            Transformer(13, 11, 7, **(SIZES | change))
    model = Transformer(13, 11, 7, causal=True, **SIZES)
    with pytest.raises(ValueError, match="the model has 7 learned positions; 8 would be too many"):
        model(torch.zeros(1, 8, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="one cache for each of the 3 layers, got 2"):
        model(torch.zeros(1, 2, 1, dtype=torch.long), caches=[KVCache(), KVCache()])


# Generation

PROMPTS = ([3, 1, 4, 1, 5], [9], [2, 6, 5])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("positions", "window"), [("none", None), ("learned", 4), ("rotary", None)])
def test_each_generated_token_is_the_most_likely_one_of_its_row_alone(positions, window):
    options = ("", "+selfmask", "+cosine", "+core=full+kv_heads=2")
    for design, option in itertools.product(PARTITIONS, options):
        if "core" in option and "q=k" not in design:
            continue
        model = Transformer(
            13, 13, 16, causal=True, design=design + option, positions=positions, window=window, **SIZES
        )
        model.double()
        together = model.generate(PROMPTS, 11, temperature=0)
        for prompt, row in zip(PROMPTS, together.tolist(), strict=True):
            logits = model(torch.tensor([[*prompt, *row[:-1]]]).unsqueeze(-1))[0, len(prompt) - 1 :]
            assert row == logits.argmax(-1).tolist(), design + option


def test_prompts_may_be_tensors_and_draws_come_from_the_generator():
    model = Transformer(13, 13, 16, causal=True, **SIZES)
    prompts = torch.tensor([[3, 1, 4], [1, 5, 9]])
    draws = [model.generate(prompts, 6, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert draws[0].shape == (2, 6)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert torch.equal(draws[0], model.generate(list(prompts), 6, generator=torch.Generator().manual_seed(0)))
    assert not draws[0].requires_grad


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32, torch.int64])
def test_prompts_may_be_whole_numbers_of_any_size(dtype):
    model = Transformer(13, 13, 16, causal=True, **SIZES)
    prompts = torch.tensor([[3, 1, 4], [1, 5, 9]])
    assert torch.equal(model.generate(prompts.to(dtype), 3, temperature=0), model.generate(prompts, 3, temperature=0))


def test_prompts_may_be_bytes():
    model = Transformer(256, 256, 32, causal=True, **SIZES)
    texts = [b"def ", b"class A"]
    written = model.generate(texts, 5, temperature=0)
    assert torch.equal(written, model.generate([list(text) for text in texts], 5, temperature=0))


def test_a_row_ends_at_its_stop():
    model = Transformer(13, 13, 32, causal=True, **SIZES)
    free = model.generate(PROMPTS, 20, temperature=0).tolist()
    stop = free[1][3]
    expected = [row[: row.index(stop)] + [stop] * (20 - row.index(stop)) if stop in row else row for row in free]
    stopped = model.generate(PROMPTS, 20, temperature=0, stop=stop)
    assert stopped.tolist() == [row[: stopped.shape[1]] for row in expected]
    assert model.generate(PROMPTS[1:2], 20, temperature=0, stop=stop).shape == (1, free[1].index(stop) + 1)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("model", "arguments", "sentence"),
    [
        ({"causal": False}, {}, "an encoder attends to later positions"),
        ({"classes": 11}, {}, "the 11 classes must be the 13 of the vocabulary"),
        ({}, {"prompts": []}, "at least one token, but the shapes are none"),
        ({}, {"prompts": [[1], []]}, "at least one token"),
        ({}, {"prompts": [[1.5]]}, "tokens must be whole numbers, but the prompts are of torch.float32"),
        ({}, {"prompts": [torch.tensor([True])]}, "torch.bool"),
        ({}, {"prompts": b"abc"}, "a single one goes in brackets"),
        ({}, {"prompts": [1, 2, 3]}, "a single one goes in brackets"),
        ({}, {"prompts": ["abc"]}, "a prompt must be tokens and not a string"),
        ({}, {"stop": 13}, r"a stop must be tokens from 0 to 12, at least one, not \[13\]"),
        ({}, {"steps": 2.5}, "steps must be a whole number from 0, not 2.5"),
        ({}, {"temperature": float("nan")}, "temperature must be 0 or more, not nan"),
        ({}, {"prompts": [[1, 13]]}, "tokens go from 0 to 12, but the prompts have some from 1 to 13"),
        ({}, {"prompts": [[-1]]}, "from -1"),
        ({}, {"stop": [[1], []]}, r"at least one, not \[\]"),
        ({}, {"top_k": 0}, "top_k must be a whole number of tokens from 1, not 0"),
        ({}, {"top_p": 1.5}, "top_p must be a probability above 0, not 1.5"),
        ({}, {"seed": 1, "generator": torch.Generator()}, "give generator or seed, not both"),
        ({}, {"beams": 0}, "beams must be a whole number from 1, not 0"),
        ({}, {"beams": 2, "top_k": 3}, "beam search draws nothing"),
        ({}, {"steps": -1}, "not -1"),
        ({}, {"temperature": -0.5}, "not -0.5"),
        ({}, {"steps": 13}, "7 learned positions; a prompt of 2 and 13 steps are too many"),
    ],
)
def test_what_cannot_be_generated_is_refused(model, arguments, sentence):
    made = Transformer(**({"vocabulary": 13, "classes": 13, "length": 7, "causal": True} | SIZES | model))
    with pytest.raises(ValueError, match=sentence):
        made.generate(**({"prompts": [[1, 2]], "steps": 3} | arguments))


def test_a_stream_gives_the_tokens_and_their_log_probabilities():
    model = Transformer(13, 13, 16, causal=True, **SIZES)
    free = model.generate(PROMPTS, 8, seed=3, top_k=5).tolist()
    stops = [free[0][1:3], free[1][4]]  # so that a row ends while others go on
    options = {"seed": 3, "top_k": 5, "stop": stops}
    tokens = model.generate(PROMPTS, 8, **options)
    steps = list(model.stream(PROMPTS, 8, **options))
    assert torch.equal(torch.stack([step.tokens for step in steps], 1), tokens)
    found = torch.stack([step.log_probabilities for step in steps], 1)
    for prompt, new, log in zip(PROMPTS, tokens.tolist(), found, strict=True):
        row = torch.tensor([[*prompt, *new]])
        logits = model(row.unsqueeze(-1))[0, len(prompt) - 1 : -1].log_softmax(-1)
        ends = [at + 1 for at in range(len(new)) if new[at] == stops[1] or new[max(at - 1, 0) : at + 1] == stops[0]]
        expected = logits.gather(-1, row[0, len(prompt) :, None]).squeeze(-1)
        expected[min(ends, default=len(new)) :] = 0.0
        assert 0 < len(expected.nonzero()) <= min(ends, default=len(new))
        torch.testing.assert_close(log, expected.detach(), rtol=1e-4, atol=1e-4)
    following = next(model.stream(PROMPTS, 8, temperature=0))
    assert torch.equal(following.tokens, model.generate(PROMPTS, 1, temperature=0)[:, 0])


@pytest.mark.parametrize("stop", [None, [2, [1, 3]]])
def test_enough_beams_find_the_most_likely_of_all_continuations(stop):
    model, prompts, steps = (
        Transformer(5, 5, 16, causal=True, positions="rotary", **SIZES).double(),
        [[3], [1, 4, 0]],
        3,
    )
    with torch.no_grad():
        model.unembedding.weight.mul_(0.3)  # so that the greedy choice is not the best
    found = model.generate(prompts, steps, beams=5**steps, stop=stop)
    greedy = model.generate(prompts, steps, temperature=0, stop=stop)
    assert torch.equal(model.generate(prompts, steps, beams=1, temperature=0, stop=stop), greedy)

    def ended(row):
        return bool(stop) and (row[-1:] == (2,) or row[-2:] == (1, 3))

    for prompt, best in zip(prompts, found.tolist(), strict=True):
        totals, open_rows = {}, {(): 0.0}
        for _ in range(steps):
            grown = {}
            for row, total in open_rows.items():
                log = model(torch.tensor([[*prompt, *row]]).unsqueeze(-1))[0, -1].log_softmax(-1).tolist()
                grown |= {(*row, token): total + log[token] for token in range(5)}
            totals |= {row: total for row, total in grown.items() if ended(row) or len(row) == steps}
            open_rows = {row: total for row, total in grown.items() if not ended(row)}
        expected = max(totals, key=totals.get)
        assert best == [*expected, *[expected[-1]] * (len(best) - len(expected))]


def test_as_many_tokens_as_learned_positions_and_one_are_generated():
    model = Transformer(13, 13, 7, causal=True, **SIZES)
    assert model.generate([[1, 2], [3]], 6).shape == (2, 6)  # the last is not read


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("design", "positions", "window"), [("q,k=v", "rotary", None), ("q,k,v", "learned", 9)])
def test_a_trained_model_continues_what_repeats(design, positions, window):
    """A row of random tokens is said again and again: after one round, each follows from the one a round before."""
    period, vocabulary = 6, 7
    options = {"dim": 32, "heads": 4, "layers": 2, "design": design, "positions": positions, "window": window}
    model = Transformer(vocabulary, vocabulary, 18, causal=True, mlp=0, **options)
    generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        said = torch.randint(vocabulary, (64, period), generator=generator).repeat(1, 3)
        scores = model(said[:, :-1, None])[:, period - 1 :]
        optimiser.zero_grad()
        cross_entropy(scores.flatten(0, 1), said[:, period:].flatten()).backward()
        optimiser.step()
    fresh = torch.randint(vocabulary, (32, period), generator=generator)
    right = model.generate(fresh, 2 * period, temperature=0) == fresh.repeat(1, 2)
    assert right.double().mean() > 0.95


def test_learned_positions_are_counted_after_the_padding():
    model = Transformer(13, 13, 7, causal=True, **SIZES)
    caches = model.caches(torch.tensor([2, 3]))
    inputs = torch.randint(13, (2, 9, 1), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scores = model(inputs, caches=caches)
        torch.testing.assert_close(scores[0, 2:], model(inputs[:1, 2:])[0])
        with pytest.raises(ValueError, match="7 learned positions; 8 would be too many"):
            model(inputs[:, :1], caches=caches)
