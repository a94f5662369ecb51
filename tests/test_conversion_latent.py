"""Shared latents in closed form, against explicit matrices, the Eckart–Young bound and gradient descent in float64."""

import pytest
import torch
from torch import Tensor

from querykey.bilinear.latent import LatentFit, allocate, fit_latent, token_weighted

DIM, OUTPUTS, TOKENS = 13, 7, 401


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    """W, inputs and gradients with directions of very different sizes."""
    sizes = torch.logspace(0, -2, DIM, dtype=torch.float64)
    gradients = normal(TOKENS, OUTPUTS, seed=2) @ normal(OUTPUTS, OUTPUTS, seed=3)
    return normal(DIM, OUTPUTS), normal(TOKENS, DIM, seed=1) * sizes, gradients


def fitted(W: Tensor, x: Tensor, g: Tensor, **options: float) -> LatentFit:
    return fit_latent(W, x.mT @ x / len(x), g.mT @ g / len(g), **options)


def error(W: Tensor, x: Tensor, g: Tensor, fit: LatentFit, rank: int) -> float:
    """E[(x ΔW gᵀ)²] with inputs and gradients independent of each other."""
    lost = W - fit.latent(rank).from_input @ fit.latent(rank).to_outputs
    return float(((x @ lost @ g.mT).square()).mean())


def test_full_width_is_exact(problem):
    W, x, g = problem
    latent = fitted(W, x, g).latent(OUTPUTS)
    torch.testing.assert_close(latent.from_input @ latent.to_outputs, W)


def test_the_error_is_the_sum_of_the_discarded_eigenvalues(problem):
    W, x, g = problem
    fit = fitted(W, x, g, ridge=0.0)
    for rank in range(1, OUTPUTS):
        assert error(W, x, g, fit, rank) == pytest.approx(float(fit.values[rank:].sum()), rel=1e-9)
        assert fit.kept(rank) == pytest.approx(1 - float(fit.values[rank:].sum() / fit.values.sum()))


@pytest.mark.parametrize("rank", [2, 3, 5])
def test_no_map_of_that_rank_does_better(problem, rank):
    W, x, g = problem
    fit = fitted(W, x, g, ridge=0.0)
    bound = float(fit.values[rank:].sum())
    B, A = (t.clone().requires_grad_(True) for t in (normal(DIM, rank, seed=5), normal(rank, OUTPUTS, seed=6)))
    optimizer = torch.optim.LBFGS([B, A], max_iter=1000, line_search_fn="strong_wolfe", tolerance_grad=1e-12)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = ((x @ (W - B @ A) @ g.mT).square()).mean() / bound
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)
    assert 1 - 1e-9 <= closure().item() < 1.02  # the optimum is reached, and never passed


def test_the_metric_decides_what_is_kept():
    W = torch.eye(3, dtype=torch.float64)
    S = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=torch.float64))
    plain = fit_latent(W, S, torch.eye(3)).latent(1)
    torch.testing.assert_close(plain.from_input.flatten().abs() > 1e-9, torch.tensor([True, False, False]))
    metric = torch.diag(torch.tensor([1.0, 1.0, 9.0], dtype=torch.float64))
    weighted = fit_latent(W, S, metric, ridge=0.0)
    torch.testing.assert_close(weighted.values, torch.tensor([9.0, 4.0, 2.0], dtype=torch.float64))
    assert weighted.latent(1).from_input.flatten().abs().argmax() == 2


def test_a_change_of_basis_of_the_outputs_changes_nothing(problem):
    W, x, g = problem
    T = normal(OUTPUTS, OUTPUTS, seed=9)
    plain, changed = fitted(W, x, g, ridge=0.0), fitted(W @ T, x, g @ torch.linalg.inv(T).mT, ridge=0.0)
    torch.testing.assert_close(plain.values, changed.values)
    for rank in (2, 4):
        a, b = plain.latent(rank), changed.latent(rank)
        torch.testing.assert_close(a.from_input @ a.to_outputs @ T, b.from_input @ b.to_outputs)


def test_entries_of_the_latent_have_second_moment_one(problem):
    W, x, g = problem
    c = x @ fitted(W, x, g).latent(5).from_input
    torch.testing.assert_close(c.square().mean(0), torch.ones(5, dtype=torch.float64))


def test_half_precision_costs_little_where_keys_themselves_as_the_latent_would_cost_much():
    """Scaled columns against the basis in which the latent is the first outputs: equal in float64, not in bfloat16."""
    w0, w1, w2, w3 = (normal(DIM, 1, seed=seed) for seed in range(4))
    W = torch.cat([w0, w0 + 1e-3 * w1, w0 + 1e-3 * w2, w0 + 1e-3 * w3, w1, w2, w3], 1)  # similar keys, other values
    x, rank = normal(TOKENS, DIM, seed=1), 4
    B, A = fit_latent(W, x.mT @ x / TOKENS, torch.eye(OUTPUTS)).latent(rank)
    first = A[:, :rank]
    exact = x @ B @ A

    def rounded(left: Tensor, right: Tensor) -> float:
        half = ((x @ left).bfloat16() @ right.bfloat16()).double()
        return float((half - exact).norm() / exact.norm())

    torch.testing.assert_close(x @ (B @ first) @ (torch.linalg.inv(first) @ A), exact)
    assert rounded(B, A) < 0.01
    assert rounded(B @ first, torch.linalg.inv(first) @ A) > 20 * rounded(B, A)


def test_token_weights_have_the_trace_of_the_plain_moment(problem):
    _, x, g = problem
    S, S_w = x.mT @ x, (x * g.square().sum(1)[:, None]).mT @ x
    for share in (0.0, 0.5, 1.0):
        blended = token_weighted(S, S_w, share)
        assert float(blended.diagonal().sum()) == pytest.approx(float(S.diagonal().sum()))
    torch.testing.assert_close(token_weighted(S, S_w, 0.0), S)
    torch.testing.assert_close(token_weighted(S, 7 * S_w, 1.0), token_weighted(S, S_w, 1.0))


def test_ranks_keep_the_largest_eigenvalues_of_all_layers():
    values = [torch.tensor([9.0, 5.0, 1.0]), torch.tensor([8.0, 0.5, 0.25]), torch.tensor([4.0, 3.0, 2.0])]
    assert allocate(values, 5) == [2, 1, 2]
    assert allocate(values, 5, least=1) == [2, 1, 2]
    assert allocate(values, 9) == [3, 3, 3]
    assert allocate([torch.tensor([9.0, 8.0]), torch.tensor([0.1, 0.1])], 2) == [1, 1]
    with pytest.raises(ValueError, match=r"2 latent dimensions .* 3 layers; expected 3 to 9"):
        allocate(values, 2)
    with pytest.raises(ValueError, match="expected 3 to 9"):
        allocate(values, 10)


def test_what_cannot_be_fitted_is_refused(problem):
    W, x, g = problem
    with pytest.raises(ValueError, match="width 8 was asked for; expected 1 to 7"):
        fitted(W, x, g).latent(8)
    with pytest.raises(ValueError, match="the metric of the outputs is zero"):
        fit_latent(W, x.mT @ x, torch.zeros(OUTPUTS, OUTPUTS))
    with pytest.raises(ValueError, match="nothing to fit"):
        fit_latent(torch.zeros_like(W), x.mT @ x, g.mT @ g)
    x[0, 0] = torch.nan
    with pytest.raises(ValueError, match="second moment of the inputs holds values that are NaN"):
        fitted(W, x, g)
