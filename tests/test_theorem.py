"""What one head can express whose queries and keys share a matrix, with and without a causal mask (docs/why.md).

(a) Without a causal mask its attention weights are a reversible Markov chain. (b) With one, and with the self-mask, it
expresses any table of scores below the diagonal; the same pair in the other order gets the same score. (c) Without the
self-mask a position attends more to another than to itself only if that one has a longer key. (d) For the n(n − 1)/2
scores of a causal table one matrix of width k has nk − k(k − 1)/2 degrees of freedom and two have k(2n − 2k − 1), so
that two reach almost every table at k = ⌊n/2⌋ (Woerdeman 1987: completions of triangular matrices of minimal rank).
"""

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from querykey import SelfAttention

relaxed = settings(deadline=None, max_examples=40)
TIED = ["q=k,v", "q=k=v", "q=k,v+selfmask", "q=k,v+core=signed", "q=k,v+core=symmetric", "q=k,v+cosine", "q=k,v+l2"]


def head(design, dim, size, **options):
    return SelfAttention(dim, 1, design, head_dim=size, **options).double()


def put(layer, name, matrix):
    """Set a weight, (dim, size), of a layer with one head."""
    parameter, rows = layer.stored_weights()[name]
    parameter.data[rows] = matrix.T


def weights_of(layer, x):
    return layer(x, return_weights=True)[1][0, 0]


def cycle_products(p: Tensor) -> tuple[Tensor, Tensor]:
    """p_ij p_jk p_ki and p_ik p_kj p_ji for all i, j, k."""
    return (
        torch.einsum("ij,jk,ki->ijk", p, p, p),
        torch.einsum("ik,kj,ji->ijk", p, p, p),
    )


sizes = {"n": st.integers(2, 16), "size": st.sampled_from([2, 4, 6]), "seed": st.integers(0, 10**6)}


@given(design=st.sampled_from(TIED), rotary=st.booleans(), **sizes)
@relaxed
def test_a_tied_head_without_a_causal_mask_is_a_reversible_chain(design, rotary, n, size, seed):
    torch.manual_seed(seed)
    rotary = rotary and "symmetric" not in design
    layer = head(design, 7, size, rotary=rotary)
    p = weights_of(layer, 2 * torch.randn(1, n, 7).double())
    torch.testing.assert_close(*cycle_products(p), atol=1e-12, rtol=1e-9)


@pytest.mark.parametrize("design", ["q,k,v", "q=k,v+core=full", "q,k=v", "q=v,k"])
def test_other_heads_are_not_reversible(design):
    torch.manual_seed(0)
    one, other = cycle_products(weights_of(head(design, 7, 4), 2 * torch.randn(1, 9, 7).double()))
    assert (one - other).abs().max() > 1e-3


@given(n=st.integers(2, 16), extra=st.integers(0, 5), seed=st.integers(0, 10**6))
@relaxed
def test_with_causal_and_self_mask_a_tied_head_expresses_any_table(n, extra, seed):
    """By completion: L + Lᵀ + λI is positive semidefinite for a large λ, of rank n − 1 at the smallest one."""
    torch.manual_seed(seed)
    dim, size = n + extra, max(1, n - 1)
    x = torch.randn(n, dim).double()
    table = torch.randn(n, n).double().tril(-1)
    values, vectors = torch.linalg.eigh(table + table.T)
    keys = vectors[:, 1:] * (values[1:] - values[0]).sqrt()
    layer = head("q=k,v+selfmask", dim, size, causal=True)
    put(layer, "qk_proj", torch.linalg.pinv(x) @ keys * size**0.25)  # scores are divided by √k
    wanted = table.masked_fill(torch.ones(n, n).triu().bool(), -math.inf)[1:].softmax(-1)
    torch.testing.assert_close(weights_of(layer, x[None])[1:], wanted, atol=1e-8, rtol=0)


@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize(("design", "alike"), [("q=k,v", True), ("q=k,v+core=signed", True), ("q,k,v", False)])
def test_of_two_tokens_a_tied_head_scores_both_orders_alike(design, alike, rotary):
    """With rotary positions, the part of the score that is even in their distance."""
    torch.manual_seed(0)
    a, b = torch.randn(2, 8).double()
    layer = head(design, 8, 4, rotary=rotary)
    first, second = (scores_of(layer, torch.stack(order)) for order in ((a, b), (b, a)))
    b_after_a, a_after_b = (first[1, 0] + second[0, 1]) / 2, (second[1, 0] + first[0, 1]) / 2
    assert torch.allclose(b_after_a, a_after_b) == alike
    if not rotary:
        assert torch.allclose(first[1, 0], second[1, 0]) == alike


def scores_of(layer, x):
    found = []

    def attention(query, key, value, scores, mask):
        found.append(scores(query, key)[0, 0])
        return value

    layer.forward_with(attention, x[None])
    return found[0]


@given(causal=st.booleans(), **sizes)
@relaxed
def test_more_attention_than_to_itself_goes_to_longer_keys_only(causal, n, size, seed):
    torch.manual_seed(seed)
    x = torch.randn(1, n, 7).double()
    layer = head("q=k,v", 7, size, causal=causal)
    p = weights_of(layer, x)
    norms = (x[0] @ layer.named_weights()["qk_proj"].T).norm(dim=-1)
    preferred = p > p.diagonal()[:, None] * (1 + 1e-9)
    assert (norms[None, :] > norms[:, None])[preferred].all()


def test_the_example_of_three_keys_follows_two_of_three_steps_of_a_cycle():
    keys = torch.tensor([[1.0, 0.0], [1.2, 1.0], [1.0, 3.0]])
    assert (keys @ keys.T).argmax(-1).tolist() == [1, 2, 2]


@given(st.integers(1, 12).flatmap(lambda n: st.lists(st.integers(0, n - 1), min_size=n, max_size=n)))
@relaxed
def test_two_matrices_of_width_two_follow_any_relation(related):
    """Keys on a circle, and each query in the direction of the key that it is to find."""
    n = len(related)
    x = torch.randn(n, n, generator=torch.Generator().manual_seed(n)).double()
    angles = 2 * math.pi * torch.arange(n).double() / n
    keys = torch.stack([angles.cos(), angles.sin()], dim=-1)
    layer = head("q,k,v", n, 2)
    put(layer, "k_proj", torch.linalg.solve(x, keys))
    put(layer, "q_proj", torch.linalg.solve(x, 100 * keys[related]))
    assert weights_of(layer, x[None]).argmax(-1).tolist() == related


@pytest.mark.parametrize(("n", "size"), [*itertools.product([5, 8, 11], range(1, 11))])
def test_the_degrees_of_freedom_that_one_and_two_matrices_have_for_a_causal_table(n, size):
    """The rank of the derivative of the table at random keys and queries."""
    torch.manual_seed(0)
    size = min(size, n - 1)
    below = torch.ones(n, n).tril(-1).bool()
    keys, queries = torch.randn(2, n, size).double()
    one = torch.func.jacrev(lambda k: (k @ k.T)[below])(keys).flatten(1)
    both = torch.func.jacrev(lambda q, k: (q @ k.T)[below], (0, 1))(queries, keys)
    two = torch.cat([part.flatten(1) for part in both], dim=1)
    scores = n * (n - 1) // 2
    assert torch.linalg.matrix_rank(one) == min(scores, n * size - size * (size - 1) // 2)
    assert torch.linalg.matrix_rank(two) == (size * (2 * n - 2 * size - 1) if size < n // 2 else scores)


def trained(design, causal, table, steps=400):
    """The largest error of the attention weights of a head that is trained to those of one table of scores."""
    n = len(table)
    torch.manual_seed(1)
    x = torch.randn(1, n, n).double()
    layer = head(design, n, n, causal=causal)
    hidden = torch.ones(n, n).triu().bool() if causal else torch.eye(n).bool()
    wanted = table.masked_fill(hidden, -math.inf)[1:].softmax(-1)
    exact = {"tolerance_grad": 1e-12, "tolerance_change": 0, "line_search_fn": "strong_wolfe"}
    optimiser = torch.optim.LBFGS(layer.parameters(), max_iter=steps, **exact)

    def loss():
        optimiser.zero_grad()
        value = (weights_of(layer, x)[1:] - wanted).square().sum()
        value.backward()
        return value

    optimiser.step(loss)
    return (weights_of(layer, x)[1:] - wanted).abs().max().item()


@pytest.mark.usefixtures("unchecked")
def test_a_trained_tied_head_learns_a_causal_table_and_no_full_one():
    table = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()
    assert trained("q=k,v+selfmask", True, table) < 1e-3
    assert trained("q=k,v+selfmask", False, table, steps=100) > 0.1  # 400 lead nowhere else
    assert trained("q,k,v+selfmask", False, table) < 1e-3
