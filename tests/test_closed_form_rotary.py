"""Shared heads for rotary positions, against sums over distances and gradient descent in float64."""

import pytest
import torch
from torch import Tensor

from forms import descend, normal
from querykey.bilinear import (
    BilinearForm,
    Rotation,
    SharedHead,
    best_signed,
    best_signed_rotary,
    best_tied_rotary,
    core_on_keys,
)

# --- rotary positions -------------------------------------------------------------------------------------------------

THETA = torch.tensor([1.0, 0.37], dtype=torch.float64)


def turn(r: int, head_dim: int) -> Tensor:
    """Rot(r) of the pairs (0, 2) and (1, 3); what follows does not turn."""
    R = torch.eye(head_dim, dtype=torch.float64)
    for j, angle in enumerate(r * THETA):
        R[j, j] = R[j + 2, j + 2] = angle.cos()
        R[j + 2, j], R[j, j + 2] = angle.sin(), -angle.sin()
    return R


def rotary_loss(A: Tensor, B: Tensor, W: Tensor, C: Tensor, window: int) -> Tensor:
    error = energy = torch.zeros((), dtype=torch.float64)
    for r in range(1 - window, window):
        R = turn(r, A.shape[1])
        error = error + (A @ R @ B.T - W @ C @ R @ W.T).square().sum()
        energy = energy + (A @ R @ B.T).square().sum()
    return error / energy


@pytest.mark.parametrize("head_dim", [4, 7])
@pytest.mark.parametrize("function", ["tied", "core"])
def test_kept_under_rotation_is_the_mean_over_distances(head_dim, function):
    A, B = normal(13, head_dim), normal(13, head_dim, seed=1)
    form, rotation = BilinearForm.from_weights(A, B), Rotation(THETA, head_dim, 5)
    head = best_tied_rotary(form, rotation) if function == "tied" else core_on_keys(form)
    expected = 1 - rotary_loss(A, B, head.mixed(A, B), head.core, 5)
    assert head.kept(form, rotation).item() == pytest.approx(expected.item(), abs=1e-10)


@pytest.mark.parametrize("head_dim", [4, 7])
def test_with_rotary_positions_tied_heads_are_found_again(head_dim):
    W = normal(13, head_dim)
    form, rotation = BilinearForm.from_weights(W, W), Rotation(THETA, head_dim, 9)
    assert best_tied_rotary(form, rotation).kept(form, rotation).item() == pytest.approx(1)


def test_for_long_windows_gradient_descent_finds_no_better_rotary_head():
    A, B = normal(13, 7), normal(13, 7, seed=1)
    form, limit = BilinearForm.from_weights(A, B), Rotation(THETA, 7, None)
    W0 = best_tied_rotary(form, limit).mixed(A, B)

    def loss(W: Tensor) -> Tensor:
        agreement = (limit.average(A.T @ W) * (B.T @ W)).sum()
        own = (limit.average(W.T @ W) * (W.T @ W)).sum()
        return 1 - (2 * agreement - own) / (limit.average(A.T @ A) * (B.T @ B)).sum()

    best = min(descend(loss, start) for start in (W0, normal(13, 7, seed=2), normal(13, 7, seed=3)))
    assert loss(W0).item() == pytest.approx(best.item(), abs=1e-10)
    assert best_tied_rotary(form, limit).kept(form, limit).item() == pytest.approx(1 - best.item(), abs=1e-10)


@pytest.mark.parametrize("window", [1, 3, 9])
def test_in_short_windows_gradient_descent_finds_hardly_a_better_rotary_head(window):
    """Two pairs, the second one slow; the fit by pairs alone is 0.06, 0.01 and 0.009 below the best."""
    angles = torch.tensor([1.1, 0.02], dtype=torch.float64)
    A, B = normal(9, 13, 4), normal(9, 13, 4, seed=1)
    form, rotation = BilinearForm.from_weights(A, B), Rotation(angles, 4, window)
    energy = (rotation.average(A.mT @ A) * (B.mT @ B)).sum((-2, -1))

    def loss(W: Tensor) -> Tensor:
        agreement, own = rotation.average(A.mT @ W) * (B.mT @ W), rotation.average(W.mT @ W) * (W.mT @ W)
        return (1 - (2 * agreement - own).sum((-2, -1)) / energy).mean()

    head = best_tied_rotary(form, rotation)
    starts = [head.mixed(A, B), *(0.5 * normal(9, 13, 4, seed=seed) for seed in (2, 3, 4))]
    best = min(descend(loss, start, steps=300).item() for start in starts)
    assert 1 - head.kept(form, rotation).mean().item() < best + (1e-9 if window == 1 else 0.003)


def test_with_rotary_positions_the_best_sign_of_every_pair_is_taken():
    """Against all choices of signs, each with the tied fit for them."""
    A, B, limit = normal(5, 13, 4), normal(5, 13, 4, seed=1), Rotation(THETA, 4, None)
    form = BilinearForm.from_weights(A, B)
    head, kept = best_signed_rotary(form, limit), []
    for first, second in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        C = torch.tensor([first, second, first, second], dtype=torch.float64)
        tied = best_tied_rotary(BilinearForm.from_weights(A * C, B), limit)
        flipped = SharedHead(C[:, None] * tied.from_query, tied.from_key, C.diag().expand(5, 4, 4))
        kept.append(flipped.kept(form, limit))
    best = torch.stack(kept).amax(0)
    torch.testing.assert_close(head.kept(form, limit), best)
    assert (best > kept[0] + 0.01).any()


def test_dimensions_that_rest_have_signs_of_their_own():
    """Of 7 dimensions the last three do not turn: with nothing in the others it is the signed head of these."""
    A, B = normal(13, 7), normal(13, 7, seed=1)
    A[:, :4], B[:, :4] = 0, 0
    form, limit = BilinearForm.from_weights(A, B), Rotation(THETA, 7, None)
    rest = BilinearForm.from_weights(A[:, 4:], B[:, 4:])
    head = best_signed_rotary(form, limit)
    assert head.kept(form, limit).item() == pytest.approx(best_signed(rest).kept(rest).item())
    assert head.kept(form, limit).item() > best_tied_rotary(form, limit).kept(form, limit).item() + 0.01


def test_the_core_on_the_keys_is_the_best_at_every_distance():
    A, B = normal(13, 4), normal(13, 4, seed=1)
    form = BilinearForm.from_weights(A, B)
    found = descend(lambda C: rotary_loss(A, B, B, C, 5), normal(4, 4, seed=2))
    assert 1 - core_on_keys(form).kept(form, Rotation(THETA, 4, 5)).item() == pytest.approx(found.item(), abs=1e-10)


def test_rotary_fits_of_degenerate_heads_give_numbers():
    A, B = normal(4, 13, 4), normal(4, 13, 4, seed=1)
    A[0], B[0], A[1] = 0, 0, 0
    A[2] = B[2][:, [2, 3, 0, 1]] * torch.tensor([-1.0, -1, 1, 1])  # a quarter turn: nothing to keep
    form, rotation = BilinearForm.from_weights(A, B), Rotation(THETA, 4, 5)
    head = best_tied_rotary(form, rotation)
    assert all(part.isfinite().all() for part in head)
    torch.testing.assert_close(head.kept(form, rotation)[:3], torch.zeros(3, dtype=torch.float64), atol=1e-9, rtol=0)


def test_a_sign_per_pair_stays_with_its_pair_in_a_short_window() -> None:
    """Slow pairs with different signs: no fit may mix them, and nothing that is kept is negative."""
    A, B = normal(9, 13, 4), normal(9, 13, 4, seed=1)
    form, rotation = BilinearForm.from_weights(A, B), Rotation(torch.tensor([0.03, 0.02], dtype=torch.float64), 4, 9)
    head = best_signed_rotary(form, rotation)
    for mixture in (head.from_query, head.from_key):
        assert not mixture[:, [0, 2]][:, :, [1, 3]].any()
    kept = head.kept(form, rotation)
    long = best_signed_rotary(form, Rotation(rotation.frequencies, 4, None)).kept(form, rotation)
    assert (kept >= 0).all()
    assert (kept >= long - 1e-12).all()
