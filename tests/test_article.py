"""What the article says of Q, K and V, exactly: its example, what one matrix makes of the scores, two wrong answers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from querykey import SelfAttention, attend, attention_scores, attention_weights
from querykey.attention.rotary import rotate
from querykey.attention.sequence import Span
from querykey.positions import Rotary

seeds = st.integers(0, 2**31)
relaxed = settings(max_examples=40, deadline=None)


def inputs(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_example_of_the_article():
    """X of 5 positions and width 10, three matrices to size 8: 5 is the length of the sequence, there is no batch."""
    generator = torch.Generator().manual_seed(0)
    x, *weights = (torch.rand(*shape, generator=generator) for shape in ((5, 10), (10, 8), (10, 8), (10, 8)))
    q, k, v = (x @ weight for weight in weights)
    scores = torch.tensor(
        [[sum(a * b for a, b in zip(q[i], k[j], strict=True)) / 8**0.5 for j in range(5)] for i in range(5)]
    )
    assert torch.allclose(attention_scores(q, k), scores)
    rows = (scores - scores.max(1, keepdim=True).values).exp()
    expected = (rows / rows.sum(1, keepdim=True)) @ v
    assert expected.shape == (5, 8)
    assert torch.allclose(attend(q, k, v), expected, atol=1e-6)


@given(seeds)
@relaxed
def test_one_matrix_makes_scores_symmetric_and_positive_semidefinite(seed):
    x, w = inputs(seed, 7, 11), inputs(seed + 1, 11, 3)
    s = attention_scores(x @ w, x @ w)
    assert torch.allclose(s, s.T)
    assert torch.linalg.eigvalsh(s).min() > -1e-9
    largest = torch.maximum(s.diagonal()[:, None], s.diagonal()[None, :])
    assert (s <= largest + 1e-9).all()  # s_ij ≤ max(s_ii, s_jj)


@given(seeds)
@relaxed
def test_two_matrices_do_neither(seed):
    x, w_q, w_k = inputs(seed, 7, 11), inputs(seed + 1, 11, 3), inputs(seed + 2, 11, 3)
    s = attention_scores(x @ w_q, x @ w_k)
    assert not torch.allclose(s, s.T, atol=1e-3)
    assert torch.linalg.eigvalsh(s + s.T).min() < 0


@given(seeds)
@relaxed
def test_rotary_positions_keep_the_symmetry(seed):
    q = rotate(inputs(seed, 7, 11) @ inputs(seed + 1, 11, 6), Rotary().frequencies(6), Span(5, 12))
    assert torch.allclose(attention_scores(q, q), attention_scores(q, q).T)


def test_wrong_answer_one_matrix_for_the_product_need_not_be_symmetric():
    """«As W_Q W_Kᵀ is one matrix W, the scores are symmetric»: they are not, for W can be any matrix."""
    x, w = inputs(0, 5, 4), inputs(1, 4, 4)
    s = x @ w @ x.T
    u, sigma, v = torch.linalg.svd(w)
    assert torch.allclose(attention_scores(x @ u * sigma, x @ v.T, scale=1.0), s)  # two factors, the same scores
    assert not torch.allclose(s, s.T, atol=0.1)


@pytest.mark.parametrize("causal", [False, True])
def test_wrong_answer_shared_weights_do_not_make_attention_symmetric(causal):
    """The scores are, before softmax and mask; what i gives to j and j to i is not the same."""
    layer = SelfAttention(12, heads=2, design="q=k,v", causal=causal)
    layer.reset_parameters(torch.Generator().manual_seed(0))
    weights = layer(inputs(0, 1, 6, 12).float(), return_weights=True)[1][0]
    assert (weights - weights.mT).abs().max() > 0.05


def test_what_the_initial_scores_of_a_tied_head_are():
    """A tied head begins with large scores of each token for itself, about √k more than the others."""
    x, w = inputs(0, 200, 256), inputs(1, 256, 64) / 256**0.5
    s = attention_scores(x @ w, x @ w)
    others = s[~torch.eye(200, dtype=torch.bool)]
    assert float(s.diagonal().mean()) == pytest.approx(64**0.5, rel=0.1)
    assert float(others.mean()) == pytest.approx(0, abs=0.2)
    weights = attention_weights(x @ w, x @ w)
    assert float(weights.diagonal().mean()) > 0.7
