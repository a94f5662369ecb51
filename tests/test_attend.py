"""The functions on plain tensors, against the formula written out in another way."""

import itertools
import math

import pytest
import torch

from querykey import attend, attention_scores, attention_weights


def by_hand(q, k, v, similarity="dot", causal=False, mask=None, scale=None):
    """One pair of positions at a time, in Python floats of double precision."""
    size = q.shape[-1]
    default = {"dot": size**-0.5, "cosine": size**0.5, "l2": size**-0.5}[similarity]
    scale = default if scale is None else scale
    out = torch.zeros(*q.shape[:-1], v.shape[-1], dtype=q.dtype)
    for i in range(len(q)):
        scores = []
        for j in range(len(k)):
            dot = math.fsum(float(a) * float(b) for a, b in zip(q[i], k[j], strict=True))
            norms = [math.fsum(float(a) ** 2 for a in vector) for vector in (q[i], k[j])]
            match similarity:
                case "dot":
                    score = dot
                case "cosine":
                    score = dot / math.sqrt(norms[0] * norms[1])
                case "l2":
                    score = -(norms[0] + norms[1] - 2 * dot) / 2
            score *= scale
            if causal and j > i + len(k) - len(q):
                score = -math.inf
            if mask is not None:
                score = score + float(mask[i, j]) if mask.dtype != torch.bool else score if mask[i, j] else -math.inf
            scores.append(score)
        top = max(scores)
        if top == -math.inf:
            continue
        weights = [math.exp(score - top) for score in scores]
        out[i] = sum((w / math.fsum(weights) * v[j] for j, w in enumerate(weights)), torch.zeros_like(out[i]))
    return out


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(11)


def draw(generator, *shape):
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("similarity", ["dot", "cosine", "l2"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [None, "boolean", "additive"])
@pytest.mark.parametrize("value_size", [7, 11])
@pytest.mark.parametrize("scale", [None, 0.37])
def test_attend_equals_the_formula(generator, similarity, causal, masked, value_size, scale):
    q, k, v = draw(generator, 3, 7), draw(generator, 5, 7), draw(generator, 5, value_size)
    mask = None
    if masked:
        mask = torch.rand(3, 5, generator=generator) > 0.4
        mask[1] = False  # nothing left: zeros
        if masked == "additive":
            mask = draw(generator, 3, 5).masked_fill(~mask, -math.inf)
    expected = by_hand(q, k, v, similarity, causal, mask, scale)
    got = attend(q, k, v, similarity=similarity, causal=causal, mask=mask, scale=scale)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-13)
    weights = attention_weights(q, k, similarity, causal=causal, mask=mask, scale=scale)
    torch.testing.assert_close(weights @ v, expected, rtol=0, atol=1e-13)
    if masked:
        assert not got[1].any()


def test_a_head_with_hand_computed_numbers():
    # scores (ln 2)·√1/√1 and 0, so weights 2/3 and 1/3
    q, k, v = torch.tensor([[math.log(2.0)]]), torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0, 0.0], [0.0, 6.0]])
    torch.testing.assert_close(attend(q, k, v), torch.tensor([[2.0, 2.0]]))
    torch.testing.assert_close(attention_weights(q, k), torch.tensor([[2 / 3, 1 / 3]]))
    torch.testing.assert_close(attention_scores(q, k), torch.tensor([[math.log(2.0), 0.0]]))


def test_the_articles_example(generator):
    """A sequence of 5 vectors of 10, three projections to 8, all uniform; the article forms exactly this."""
    X = torch.rand(5, 10, generator=generator)
    W_Q, W_K, W_V = (torch.rand(10, 8, generator=generator) for _ in range(3))
    Q, K, V = X @ W_Q, X @ W_K, X @ W_V
    scores = torch.matmul(Q, K.transpose(-2, -1)) / torch.sqrt(torch.tensor(8.0))
    weights = torch.nn.functional.softmax(scores, dim=-1)
    ulp = torch.finfo(torch.float32).eps
    torch.testing.assert_close(attention_scores(Q, K), scores, rtol=2 * ulp, atol=0)
    # the exponential turns an absolute error of the score into a relative one of the weight
    torch.testing.assert_close(attention_weights(Q, K), weights, rtol=4 * ulp * scores.max().item(), atol=0)
    out = attend(Q, K, V)
    assert out.shape == (5, 8)
    torch.testing.assert_close(out, weights @ V, rtol=4 * ulp, atol=0)


@pytest.mark.parametrize("leading", [(), (2,), (2, 3), (2, 3, 2), (2, 1, 3, 2)])
def test_leading_dimensions_are_free(generator, leading):
    q, k, v = draw(generator, *leading, 5, 7), draw(generator, *leading, 11, 7), draw(generator, *leading, 11, 3)
    expected = torch.empty(*leading, 5, 3, dtype=torch.float64)
    for place in itertools.product(*map(range, leading)):
        expected[place] = by_hand(q[place], k[place], v[place], causal=True)
    torch.testing.assert_close(attend(q, k, v, causal=True), expected, rtol=0, atol=1e-13)
    assert attention_scores(q, k).shape == (*leading, 5, 11)


def test_grouped_keys_go_to_neighbouring_query_heads(generator):
    q, k, v = draw(generator, 2, 6, 5, 7), draw(generator, 2, 3, 5, 7), draw(generator, 2, 3, 5, 7)
    out = attend(q, k, v)
    for head in range(6):
        torch.testing.assert_close(out[:, head], attend(q[:, head], k[:, head // 2], v[:, head // 2]))
    assert attention_weights(q, k).shape == (2, 6, 5, 5)


def test_dropout_keeps_the_mean_and_drops(generator):
    torch.manual_seed(0)  # the kernel draws from the global generator
    q, k, v = torch.zeros(1, 4), torch.zeros(512, 4), torch.ones(512, 1)
    outs = torch.stack([attend(q, k, v, dropout=0.5) for _ in range(64)])
    assert outs.std() > 0.01
    assert abs(outs.mean() - 1) < 0.05


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"q": torch.zeros(5)}, "expected tensors of one rank"),
        ({"k": torch.zeros(2, 5, 7)}, "expected tensors of one rank"),
        ({"k": torch.zeros(5, 8)}, "queries and keys must have the same size"),
        ({"v": torch.zeros(6, 7)}, "each key needs one value"),
        ({"v": torch.zeros(5, 7, dtype=torch.float64)}, "one floating point dtype"),
        (
            {"mask": torch.ones(4, 5, dtype=torch.bool)},
            r"must broadcast to \(query, key\) = \(5, 5\), but has shape \(4, 5\)",
        ),
        ({"mask": torch.ones(1, 5, 5, dtype=torch.bool)}, "must broadcast"),
        ({"mask": torch.ones(5, 5, dtype=torch.int64)}, "boolean .* or floating point"),
        ({"similarity": "angle"}, "similarity must be one of dot, cosine, l2, not 'angle'"),
    ],
)
@pytest.mark.usefixtures("unchecked")
def test_tensors_that_do_not_fit_are_refused(change, sentence):
    given = {"q": torch.zeros(5, 7), "k": torch.zeros(5, 7), "v": torch.zeros(5, 7)} | change
    with pytest.raises(ValueError, match=sentence):
        attend(given.pop("q"), given.pop("k"), given.pop("v"), **given)


def test_three_dimensions_have_no_heads_to_group(generator):
    q, k = draw(generator, 4, 5, 8), draw(generator, 2, 7, 8)
    for call in (lambda: attend(q, k, k), lambda: attention_scores(q, k), lambda: attention_weights(q, k)):
        with pytest.raises(ValueError, match="keys must have the batch of the queries"):
            call()
    with pytest.raises(ValueError, match="may be query or batch, both are 4"):
        attend(q[:, :4], q, q, mask=torch.ones(4, 5, dtype=torch.bool))


def test_masks_of_many_dimensions(generator):
    q, k, v = draw(generator, 2, 3, 4, 5, 7), draw(generator, 2, 3, 2, 11, 7), draw(generator, 2, 3, 2, 11, 3)
    mask = torch.rand(3, 1, 5, 11, generator=generator) > 0.4
    out = attend(q, k, v, mask=mask)
    for batch, row in itertools.product(range(2), range(3)):
        torch.testing.assert_close(
            out[batch, row], attend(q[batch, row][None], k[batch, row][None], v[batch, row][None], mask=mask[row])[0]
        )


@pytest.mark.parametrize("causal", [False, True])
def test_soft_cap_and_sinks_are_those_of_the_formula(causal):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, heads, 5, 4, generator=generator, dtype=torch.float64) for heads in (4, 2, 2))
    sinks = torch.randn(4, generator=generator, dtype=torch.float64)
    scores = 0.7 * (q @ k.repeat_interleave(2, 1).mT / 2 / 0.7).tanh()
    if causal:
        scores = scores.masked_fill(~torch.ones(5, 5, dtype=torch.bool).tril(), -math.inf)
    weights = scores.exp() / (scores.exp().sum(-1, keepdim=True) + sinks.exp()[:, None, None])
    found = attend(q, k, v, causal=causal, softcap=0.7, sinks=sinks)
    torch.testing.assert_close(found, weights @ v.repeat_interleave(2, 1), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"softcap": 0.0}, "softcap must be positive, not 0.0"),
        ({"sinks": torch.zeros(2)}, r"one score for each of the 4 heads, not of shape \(2,\)"),
    ],
)
def test_soft_cap_and_sinks_that_cannot_be_are_refused(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        attend(*torch.randn(3, 1, 4, 5, 4), **arguments)
