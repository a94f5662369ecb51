"""The closest shared heads, against explicit matrices and against gradient descent in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forms import centred, descend, form_of_sample, lost, normal, product
from querykey.bilinear import (
    BilinearForm,
    Rotation,
    best_core,
    best_key_value,
    best_signed,
    best_tied,
    copied_queries,
    core_on_keys,
    shared_bias,
)

FUNCTIONS = [best_tied, best_signed, best_core, core_on_keys, copied_queries]
relaxed = settings(deadline=None, max_examples=20)


# --- what is kept -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize(("dim", "head_dim"), [(31, 7), (11, 7), (7, 7), (5, 1)])
def test_kept_is_one_minus_the_relative_error(function, dim, head_dim):
    A, B = normal(3, dim, head_dim), normal(3, dim, head_dim, seed=1)
    form = BilinearForm.from_weights(A, B)
    head = function(form)
    approximation = product(head, A, B)
    for h in range(3):
        expected = 1 - lost(A[h] @ B[h].T, approximation[h])
        assert head.kept(form)[h].item() == pytest.approx(expected.item(), abs=1e-9)


def test_the_heads_keep_what_the_form_says():
    form = BilinearForm.from_weights(normal(4, 31, 7), normal(4, 31, 7, seed=1))
    torch.testing.assert_close(best_tied(form).kept(form), form.tied_share)
    torch.testing.assert_close(best_signed(form).kept(form), form.signed_share)


@given(st.integers(2, 23), st.integers(1, 7), st.integers(0, 2**31))
@relaxed
def test_more_freedom_never_keeps_less(dim, head_dim, seed):
    form = BilinearForm.from_weights(normal(dim, head_dim, seed=seed), normal(dim, head_dim, seed=seed + 1))
    copied, tied, signed, core, on_keys = (
        function(form).kept(form) for function in (copied_queries, best_tied, best_signed, best_core, core_on_keys)
    )
    assert copied <= tied + 1e-9
    assert tied <= signed + 1e-9
    assert max(signed, on_keys) <= core + 1e-9
    M = form.core  # ‖PMP‖² ≤ ½(‖PM‖² + ‖MP‖²), which the leading eigenvectors of MMᵀ + MᵀM make largest
    bound = torch.linalg.eigvalsh(M @ M.mT + M.mT @ M)[..., -head_dim:].sum() / 2
    assert core * form.energy <= bound * (1 + 1e-9)


# --- against the dense matrix and gradient descent --------------------------------------------------------------------


def test_the_best_tied_head_is_the_positive_part():
    A, B = normal(31, 7), normal(31, 7, seed=1)
    M = A @ B.T
    values, vectors = torch.linalg.eigh((M + M.T) / 2)
    positive = (vectors * values.clamp(min=0)) @ vectors.T
    head = best_tied(BilinearForm.from_weights(A, B))
    torch.testing.assert_close(product(head, A, B), positive, rtol=1e-9, atol=1e-10)
    assert head.mixed(A, B).shape == A.shape


def test_gradient_descent_finds_no_better_tied_head():
    A, B = normal(13, 3), normal(13, 3, seed=1)
    M, form = A @ B.T, BilinearForm.from_weights(A, B)
    found = descend(lambda W: lost(M, W @ W.T), normal(13, 3, seed=2))
    assert 1 - best_tied(form).kept(form).item() == pytest.approx(found.item(), abs=1e-10)


def test_gradient_descent_finds_no_better_symmetric_core():
    A, B = normal(13, 3), normal(13, 3, seed=1)
    M, form = A @ B.T, BilinearForm.from_weights(A, B)
    head = best_signed(form)
    assert set(head.core.diagonal().tolist()) == {-1.0, 1.0}
    symmetric = [
        descend(lambda W, S: lost(M, W @ (S + S.T) @ W.T), normal(13, 3, seed=seed), normal(3, 3, seed=seed + 1))
        for seed in (2, 4, 6)
    ]
    assert 1 - head.kept(form).item() == pytest.approx(min(symmetric).item(), abs=1e-10)


def test_gradient_descent_finds_no_better_core_on_the_keys():
    A, B = normal(13, 3), normal(13, 3, seed=1)
    M, form = A @ B.T, BilinearForm.from_weights(A, B)
    head = core_on_keys(form)
    torch.testing.assert_close(head.mixed(A, B), B)
    torch.testing.assert_close(head.core, torch.linalg.lstsq(B, A).solution, rtol=1e-9, atol=1e-10)
    found = descend(lambda C: lost(M, B @ C @ B.T), normal(3, 3, seed=2))
    assert 1 - head.kept(form).item() == pytest.approx(found.item(), abs=1e-10)


def test_the_full_core_comes_close_to_the_best_of_many_descents():
    A, B = normal(20, 31, 5), normal(20, 31, 5, seed=1)
    M = A @ B.mT

    def loss(W: Tensor) -> Tensor:
        basis = torch.linalg.qr(W).Q
        return 20 - ((basis.mT @ M @ basis).square().sum((-2, -1)) / M.square().sum((-2, -1))).sum()

    best = min(descend(loss, normal(20, 31, 5, seed=seed), steps=150).item() for seed in (2, 3, 4)) / 20
    ours = 1 - best_core(BilinearForm.from_weights(A, B)).kept(BilinearForm.from_weights(A, B)).mean().item()
    assert ours - best < 0.005  # without its shift the iteration ends 0.016 above


def test_more_iterations_of_the_full_core_never_keep_less():
    form = BilinearForm.from_weights(normal(9, 31, 5), normal(9, 31, 5, seed=1))
    kept = torch.stack([best_core(form, iterations).kept(form) for iterations in (0, 1, 2, 5, 20)])
    assert (kept.diff(dim=0) >= -1e-12).all()
    assert (kept[-1] - kept[0]).mean() > 0.005


def test_the_full_core_never_ends_below_its_starts():
    # Rare heads: from its spectral start alone the first ends below `core_on_keys`; the second swings out of a good P.
    first = BilinearForm.from_weights(normal(5, 2, seed=341), normal(5, 2, seed=1341))
    assert best_core(first).kept(first) >= max(core_on_keys(first).kept(first), first.signed_share) - 1e-12
    second = BilinearForm.from_weights(normal(7, 3, seed=2114), normal(7, 3, seed=2115))
    assert best_core(second).kept(second) >= best_core(second, 0).kept(second)


@pytest.mark.parametrize("kind", ["tied", "signed", "full"])
def test_heads_that_are_shared_are_found_again(kind):
    W, G = normal(31, 5), normal(5, 5, seed=2)
    core = {"tied": torch.eye(5, dtype=torch.float64), "signed": torch.diag(torch.tensor([1.0, -1, 1, -1, 1])).double()}
    C = core.get(kind, G)
    A, B = W @ C @ torch.linalg.inv(G).T, W @ G  # hidden behind a gauge
    form = BilinearForm.from_weights(A, B)
    function = {"tied": best_tied, "signed": best_signed, "full": best_core}[kind]
    torch.testing.assert_close(product(function(form), A, B), A @ B.T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_degenerate_heads_give_numbers(function):
    A, B = normal(5, 13, 4), normal(5, 13, 4, seed=1)
    A[0], B[0] = 0, 0
    A[1] = 0
    A[2] = A[2, :, :1] * torch.ones(4)  # rank 1
    A[3] = B[3]
    A[4] = -B[4]
    form = BilinearForm.from_weights(A, B)
    head = function(form)
    assert all(part.isfinite().all() for part in head)
    assert head.kept(form)[0] == 0
    assert head.kept(form)[2] <= 1 + 1e-6
    if function is not copied_queries:
        assert head.kept(form)[3] == pytest.approx(1)


def test_of_a_form_that_cancels_nothing_is_kept():
    mixing = torch.linalg.qr(normal(4, 4, seed=2)).Q
    A, B = normal(13, 4), normal(13, 4, seed=1)
    A[:, 2:], B[:, :2] = 0, 0
    form = BilinearForm.from_weights(A @ mixing, B @ mixing)
    assert all(function(form).kept(form) == 0 for function in FUNCTIONS)


# --- on data ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
def test_heads_fitted_on_data_keep_that_much_of_the_scores(function):
    x = normal(97, 11) @ torch.diag(torch.linspace(0.1, 2, 11).double()) + 1
    A, B = normal(11, 3, seed=1), normal(11, 3, seed=2)
    q, k = x @ A + normal(3, seed=3), x @ B + normal(3, seed=4)
    form = form_of_sample(q, k)
    head = function(form)
    shared = head.mixed(q, k)
    scores, found = centred(q) @ centred(k).T, centred(shared @ head.core) @ centred(shared).T
    assert head.kept(form).item() == pytest.approx(1 - lost(scores, found).item(), abs=1e-9)
    # the same mixture of weights and biases gives the same keys
    weight, bias = head.mixed(A, B), head.mixed(normal(1, 3, seed=3), normal(1, 3, seed=4))
    torch.testing.assert_close(x @ weight + bias, shared, rtol=1e-9, atol=1e-9)


def test_on_data_the_fit_is_that_of_whitened_weights():
    covariance = normal(13, 13)
    covariance = covariance @ covariance.T + torch.eye(13)
    A, B = normal(13, 3, seed=1), normal(13, 3, seed=2)
    L = torch.linalg.cholesky(covariance).mT
    form = BilinearForm.from_weights(L @ A, L @ B)
    M = L @ A @ B.T @ L.T
    found = descend(lambda W: lost(M, L @ W @ W.T @ L.T), normal(13, 3, seed=3), steps=1500)
    assert 1 - best_tied(form).kept(form).item() == pytest.approx(found.item(), abs=1e-10)


@pytest.mark.parametrize("function", [best_tied, best_signed, best_core, core_on_keys])
def test_the_shared_bias_is_the_best_for_the_key_only_term(function):
    q, k = normal(2, 61, 3) + normal(2, 1, 3, seed=2), normal(2, 61, 3, seed=1) + normal(2, 1, 3, seed=3)
    form = form_of_sample(q, k)
    head = function(form)
    bias = shared_bias(head, form)

    def error(bias: Tensor) -> Tensor:
        shared = head.mixed(q, k) + bias[:, None]
        ours = (shared @ head.core).mean(-2, keepdim=True) @ centred(shared).mT
        return (q.mean(-2, keepdim=True) @ centred(k).mT - ours).square().sum()

    assert error(bias) < error(torch.zeros_like(bias))
    assert error(bias).item() == pytest.approx(descend(error, torch.zeros_like(bias)).item(), rel=1e-8, abs=1e-10)
    # the key-only term and the form are separate: the bias does not touch what the head keeps of the latter
    shared = head.mixed(q, k) + bias[:, None]
    queries = shared @ head.core
    scores, found = (centred(a) @ centred(b).mT for a, b in ((q, k), (queries, shared)))
    kept = 1 - (scores - found).square().sum((-2, -1)) / scores.square().sum((-2, -1))
    torch.testing.assert_close(kept, head.kept(form))


@pytest.mark.parametrize("function", [best_tied, best_signed, best_core, core_on_keys])
@pytest.mark.parametrize("key_only", [False, True])
def test_kept_with_the_key_only_term_is_of_all_that_the_softmax_sees(function, key_only):
    q, k = normal(2, 61, 3) + normal(2, 1, 3, seed=2), normal(2, 61, 3, seed=1) + normal(2, 1, 3, seed=3)
    form = form_of_sample(q, k)
    head = function(form, key_only=True) if key_only and function is not core_on_keys else function(form)
    shared = head.mixed(q, k) + shared_bias(head, form)[:, None]
    seen, found = q @ centred(k).mT, (shared @ head.core) @ centred(shared).mT
    for h in range(2):
        assert head.kept(form, key_only=True)[h].item() == pytest.approx(1 - lost(seen[h], found[h]).item(), abs=1e-8)


@pytest.mark.parametrize("function", [best_tied, best_signed, best_core])
def test_fitting_the_key_only_term_too_keeps_more_of_the_whole(function):
    q, k = normal(9, 61, 3) + normal(9, 1, 3, seed=2), normal(9, 61, 3, seed=1) + normal(9, 1, 3, seed=3)
    form = form_of_sample(q, k)
    one_by_one, together = (
        function(form).kept(form, key_only=True),
        function(form, key_only=True).kept(form, key_only=True),
    )
    assert (together >= one_by_one - 1e-9).float().mean() > 0.8
    assert together.mean() > one_by_one.mean() + 0.01
    assert (function(form, key_only=True).kept(form) <= function(form).kept(form) + 0.02).all()


@pytest.mark.parametrize(("function", "core"), [(best_tied, [1.0, 1, 1]), (best_signed, [1.0, -1, 1])])
def test_shared_heads_with_a_bias_are_found_again(function, core):
    shared = normal(61, 5) @ normal(5, 3, seed=1) + normal(3, seed=2)
    queries, G = shared * torch.tensor(core), normal(3, 3, seed=3)
    form = form_of_sample(queries @ torch.linalg.inv(G).T, shared @ G)
    assert function(form, key_only=True).kept(form, key_only=True).item() == pytest.approx(1, abs=1e-9)


def test_gradient_descent_finds_hardly_a_better_tied_head_with_a_bias():
    q, k = normal(5, 61, 3) + 2 * normal(5, 1, 3, seed=2), normal(5, 61, 3, seed=1) + 2 * normal(5, 1, 3, seed=3)
    form = form_of_sample(q, k)
    seen, both = q @ centred(k).mT, torch.cat([q, k], -1)

    def loss(T: Tensor, bias: Tensor) -> Tensor:
        shared = both @ T + bias
        error = seen - shared @ centred(shared).mT
        return (error.square().sum((-2, -1)) / seen.square().sum((-2, -1))).sum()

    starts = [(0.3 * normal(5, 6, 3, seed=seed), normal(5, 1, 3, seed=seed + 1)) for seed in (10, 20, 30)]
    best = min(descend(loss, *start, steps=300).item() for start in starts) / 5
    ours = 1 - best_tied(form, key_only=True).kept(form, key_only=True).mean().item()
    assert ours - best < 0.01  # without a dimension of its own for the key-only term 0.08


def test_the_key_only_term_needs_means_and_no_rotation():
    form = BilinearForm.from_weights(normal(13, 3), normal(13, 3, seed=1))
    for function in (best_tied, best_signed, best_core):
        with pytest.raises(ValueError, match="needs the means"):
            function(form, key_only=True)
    with pytest.raises(ValueError, match="needs the means"):
        shared_bias(best_tied(form), form)
    form = form_of_sample(normal(13, 4), normal(13, 4, seed=1))
    with pytest.raises(ValueError, match="leave out key_only"):
        best_tied(form).kept(form, Rotation(torch.tensor([1.0, 0.37]), 4, 5), key_only=True)


def test_grouped_keys_are_mixed_with_the_queries_they_serve():
    W_Q, W_K = normal(6, 13, 5), normal(3, 13, 5, seed=1)
    head = best_tied(BilinearForm.from_weights(W_Q, W_K))
    for h in range(6):
        alone = best_tied(BilinearForm.from_weights(W_Q[h], W_K[h // 2]))
        expected = product(alone, W_Q[h], W_K[h // 2])
        W = head.mixed(W_Q, W_K)[h]
        torch.testing.assert_close(W @ W.T, expected, rtol=1e-8, atol=1e-9)


# --- one projection for keys and values -------------------------------------------------------------------------------


def key_value_problem(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys and values of 19 tokens, and W_O."""
    q, k, v = normal(19, 3, seed=seed), normal(19, 3, seed=seed + 1), normal(19, 5, seed=seed + 2)
    return q, centred(k), centred(v), normal(5, 11, seed=seed + 3)


def key_value_moments(q: Tensor, k: Tensor, v: Tensor, W_O: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kv = torch.cat([k, v], -1)
    return kv.T @ kv / 19, q.T @ q / 19, W_O @ W_O.T


@pytest.mark.parametrize("size", [None, 1, 5, 8])
def test_shared_keys_and_values_keep_what_they_say(size):
    q, k, v, W_O = key_value_problem()
    shared = best_key_value(*key_value_moments(q, k, v, W_O), size=size)
    u = k @ shared.from_key + v @ shared.from_value
    assert u.shape == (19, size or 3)
    scores = lost(q @ k.T, q @ shared.query_map @ u.T)
    output = lost(v @ W_O, u @ shared.output_map @ W_O)
    assert shared.score_share.item() == pytest.approx(1 - scores.item(), abs=1e-10)
    assert shared.value_share.item() == pytest.approx(1 - output.item(), abs=1e-10)
    if size == 8:
        assert shared.score_share.item() == pytest.approx(1)
        assert shared.value_share.item() == pytest.approx(1)


@pytest.mark.parametrize("balance", [1.0, 0.2])
def test_gradient_descent_finds_no_better_shared_keys_and_values(balance):
    q, k, v, W_O = key_value_problem()
    shared = best_key_value(*key_value_moments(q, k, v, W_O), balance=balance)
    kv = torch.cat([k, v], -1)

    def loss(T: Tensor) -> Tensor:
        u = torch.linalg.qr(kv @ T).Q  # the maps of queries and outputs at their least squares
        return lost(q @ k.T, q @ (u @ (u.T @ k)).T) + balance * lost(v @ W_O, u @ (u.T @ v) @ W_O)

    best = min(descend(loss, normal(8, 3, seed=seed)) for seed in (10, 20, 30))
    ours = 1 - shared.score_share + balance * (1 - shared.value_share)
    assert ours.item() == pytest.approx(best.item(), abs=1e-9)


def test_values_that_are_mixed_keys_cost_nothing():
    q, k, _, _ = key_value_problem()
    v, W_O = k @ normal(3, 3, seed=8), normal(3, 11, seed=9)
    shared = best_key_value(*key_value_moments(q, k, v, W_O))
    assert shared.score_share.item() == pytest.approx(1)
    assert shared.value_share.item() == pytest.approx(1)


def test_key_value_heads_are_batched_and_bear_zeros():
    problems = [key_value_moments(*key_value_problem(seed)) for seed in (0, 7)]
    covariance, moment, output = (
        torch.stack([p[i] for p in problems] + [torch.zeros_like(problems[0][i])]) for i in range(3)
    )
    shared = best_key_value(covariance, moment, output)
    alone = best_key_value(*problems[1])
    torch.testing.assert_close(shared.score_share[1], alone.score_share)
    torch.testing.assert_close(shared.value_share[1], alone.value_share)
    assert all(part.isfinite().all() for part in shared)
    assert shared.score_share[2] == shared.value_share[2] == 0


def test_key_value_sizes_that_contradict_are_refused():
    with pytest.raises(ValueError, match="expected 8, and a size of 1 to that"):
        best_key_value(torch.eye(7), torch.eye(3), torch.eye(5))
    with pytest.raises(ValueError, match="size of 9"):
        best_key_value(torch.eye(8), torch.eye(3), torch.eye(5), size=9)
