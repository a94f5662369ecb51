"""N-gram levels against a count in plain Python, written from the formula."""

import math
from collections import Counter, defaultdict
from fractions import Fraction

import numpy as np
import pytest
import torch

from querykey.tasks import Examples, make_task
from querykey.tasks.ngrams import ORDERS, Events, bits, probabilities

TEXT = b"to be, or not to be: that is the question. " * 30 + b"whether 'tis nobler in the mind to suffer " * 25


@pytest.fixture(scope="module", params=["text", "masked-text", "causal masked-text"])
def task(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text"
    path.write_bytes(TEXT)
    name = request.param.removeprefix("causal ")
    return make_task(name, paths=[str(path)], length=11, **({"causal": True} if name != request.param else {}))


def windows(task, count, seed, split):
    """Examples with tokens in a row of which the last are hidden in `text`, or some anywhere in `masked-text`."""
    return task.sample(count, torch.Generator().manual_seed(seed), split)


def events_of(task, examples, counting):
    """(target, nearest tokens), by loops over positions; `counting` for what an n-gram model reads."""
    for row, targets, counted in zip(
        examples.inputs[..., 0].tolist(), *map(torch.Tensor.tolist, examples[1:3]), strict=True
    ):
        if task.name == "text":
            tokens, wanted, offsets = [*row, -1], [i + 1 for i, c in enumerate(counted) if c], (-1, -2, -3, -4)
            answer = {i + 1: target for i, target in enumerate(targets)}
        else:
            tokens, offsets = row, (-1, -2, -3, -4) if task.causal else (-1, 1, -2, 2)
            answer = dict(enumerate(targets))
            wanted = [i for i, c in enumerate(counted) if c]
            if counting:
                tokens = [target if c else token for token, target, c in zip(row, targets, counted, strict=True)]
                wanted, answer = range(len(tokens)), dict(enumerate(tokens))
        for i in wanted:
            near = [tokens[i + o] if 0 <= i + o < len(tokens) else None for o in offsets]
            yield answer[i], near


def counted_bits(task, read, scored, order):
    """The formula, with exact fractions."""
    followers = [defaultdict(Counter) for _ in range(order)]
    for target, near in events_of(task, read, counting=True):
        for k in range(order):
            followers[k][tuple(near[:k])][target] += 1

    def p(k, target, near):
        if k < 0:
            return Fraction(1, task.classes)
        seen = followers[k].get(tuple(near[:k]))
        if seen is None:
            return p(k - 1, target, near)
        return (seen[target] + len(seen) * p(k - 1, target, near)) / (sum(seen.values()) + len(seen))

    costs = [-math.log2(p(order - 1, target, near)) for target, near in events_of(task, scored, counting=False)]
    return sum(costs) / len(costs)


def test_levels_are_those_of_a_count_by_hand(task):
    read, scored = windows(task, 40, 0, "train"), windows(task, 25, 1, "test")
    levels = task.yardsticks(40, torch.Generator().manual_seed(0), [scored])
    assert list(levels) == ["unigram", "bigram", "trigram", "5-gram"]
    for name, order in ORDERS.items():
        assert levels[name] == pytest.approx(counted_bits(task, read, scored, order), abs=1e-9)
    assert levels["trigram"] < levels["bigram"] < levels["unigram"] < 8


def test_where_a_cell_reads_more_than_the_text_all_of_it_is_counted_once(task):
    scored, data = windows(task, 25, 1, "test"), task.corpus.train.data.tolist()
    assert len(task.corpus.train.ends) == 1
    rows = [data[start : start + 11 + (task.name == "text")] for start in range(0, len(data) - 10, 11)]
    followers = defaultdict(Counter)
    for row in rows:
        for i in range(task.name == "text", len(row)):
            before = row[i - 1] if i else None
            followers[before][row[i]] += 1
    single = sum(followers.values(), Counter())
    bigram = 0.0
    for target, near in events_of(task, scored, counting=False):
        p = (single[target] + len(single) / 256) / (single.total() + len(single))
        if seen := followers.get(near[0]):
            p = (seen[target] + len(seen) * p) / (seen.total() + len(seen))
        bigram -= math.log2(p) / int(scored.counted.sum())
    levels = task.yardsticks(10**6, torch.Generator().manual_seed(0), [scored])
    assert levels["bigram"] == pytest.approx(bigram, abs=1e-9)


def test_parts_are_joined(task):
    read = windows(task, 40, 0, "train")
    parts = [Examples(*(column[start : start + 7] for column in read[:3])) for start in range(0, 40, 7)]
    for one, other in zip(Events.of([read], (0, -1, 2)), Events.of(parts, (0, -1, 2)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_probabilities_of_all_tokens_sum_to_one():
    rng = np.random.default_rng(0)
    read = Events(rng.integers(7, size=200), rng.integers(-1, 7, size=(4, 200)))
    contexts = np.concatenate([rng.integers(-1, 7, size=(4, 30)), read.context[:, :30]], axis=1)
    asked = Events(np.tile(np.arange(7), 60), np.repeat(contexts, 7, axis=1))
    found = list(probabilities(read, asked, 7))
    assert len(found) == 5
    for p in found:
        assert (p > 0).all()
        np.testing.assert_allclose(p.reshape(60, 7).sum(axis=1), 1, atol=1e-12)


def test_a_uniform_source_costs_its_entropy():
    rng = np.random.default_rng(0)
    read, scored = (Events(rng.integers(4, size=20_000), rng.integers(4, size=(2, 20_000))) for _ in range(2))
    assert bits(read, scored, 4) == pytest.approx([2, 2, 2], abs=0.01)
