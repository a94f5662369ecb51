"""Measures averaged over distances under rotary positions, against the rotated d × d matrices in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forms import close, normal, pair
from querykey.bilinear import BilinearForm, RotaryForm, Rotation

# --- rotary positions -------------------------------------------------------------------------------------------------

frequencies = torch.tensor([1.0, 0.31, 0.043], dtype=torch.float64)
ROTATIONS = {
    "half": Rotation(frequencies, 6, 11),
    "partial": Rotation(frequencies, 9, 11),
    "slow": Rotation(torch.tensor([0.8, 0.01, 0.001], dtype=torch.float64), 7, 9),
    "distance 0": Rotation(frequencies, 7, 1),
    "one frequency twice": Rotation(torch.tensor([0.5, 0.5, 2 * torch.pi]), 6, 5),
}


def turn(rotation: Rotation, r: int) -> Tensor:
    """Rot(r), written out pair by pair."""
    R = torch.eye(rotation.head_dim, dtype=torch.float64)
    pairs = len(rotation.frequencies)
    for j, theta in enumerate(rotation.frequencies.double().tolist()):
        angle = torch.tensor(theta * r, dtype=torch.float64)
        R[j, j] = R[j + pairs, j + pairs] = angle.cos()
        R[j + pairs, j], R[j, j + pairs] = angle.sin(), -angle.sin()
    return R


def distances(rotation: Rotation) -> range:
    return range(-rotation.window + 1, rotation.window)


@pytest.mark.parametrize("name", ROTATIONS)
def test_averages_over_the_window_equal_the_sum_over_distances(name):
    rotation = ROTATIONS[name]
    X = normal(2, rotation.head_dim, rotation.head_dim)
    mean = sum(turn(rotation, r).T @ X @ turn(rotation, r) for r in distances(rotation)) / len(distances(rotation))
    close(rotation.average(X), mean, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ROTATIONS)
def test_rotary_measures_equal_the_dense_ones(name):
    rotation, n = ROTATIONS[name], ROTATIONS[name].head_dim
    A, B = normal(2, 13, n), normal(2, 13, n, seed=1)
    turning = RotaryForm(BilinearForm.from_weights(A, B), rotation)
    M = {r: A @ turn(rotation, r) @ B.mT for r in distances(rotation)}
    energy = sum(m.square().sum((-2, -1)) for m in M.values())
    symmetry = sum((M[r] * M[-r].mT).sum((-2, -1)) for r in M) / energy
    close(turning.energy, energy / len(M), rtol=1e-10, atol=0)
    close(turning.symmetry, symmetry, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ROTATIONS)
def test_tied_heads_are_symmetric_under_rotation(name):
    rotation = ROTATIONS[name]
    W = normal(13, rotation.head_dim)
    turning = RotaryForm(BilinearForm.from_weights(W, W), rotation)
    assert turning.symmetry == pytest.approx(1)
    assert turning.tied_share == pytest.approx(1)
    assert turning.distance == pytest.approx(0, abs=1e-7)
    if rotation.window > 1:  # the wrong question, tr(M(r)²), denies it
        M = [W @ turn(rotation, r) @ W.T for r in distances(rotation)]
        assert sum((m * m.T).sum() for m in M) / sum((m * m).sum() for m in M) < 0.95


def test_a_quarter_turn_between_queries_and_keys_is_antisymmetric():
    rotation = ROTATIONS["half"]
    W = normal(13, 6)
    quarter = rotation.right_angle(torch.eye(6, dtype=torch.float64))
    turning = RotaryForm(BilinearForm.from_weights(W, W @ quarter), rotation)
    assert turning.symmetry == pytest.approx(-1)
    assert turning.tied_share == pytest.approx(0, abs=1e-9)
    assert turning.distance == pytest.approx(1, abs=1e-9)


def test_without_frequencies_rotary_measures_are_the_plain_ones():
    form = BilinearForm.from_weights(normal(3, 13, 5), normal(3, 13, 5, seed=1))
    turning = RotaryForm(form, Rotation(torch.zeros(0), 5, 9))
    for name in ("energy", "symmetry", "tied_share", "distance"):
        close(getattr(turning, name), getattr(form, name), rtol=1e-9, atol=1e-9, name=name)


@given(st.integers(0, 2**31), st.sampled_from(sorted(ROTATIONS)))
@settings(deadline=None, max_examples=30)
def test_rotary_measures_stay_in_their_bounds(seed, name):
    rotation = ROTATIONS[name]
    A, B = pair((13, rotation.head_dim), seed)
    turning = RotaryForm(BilinearForm.from_weights(A, B), rotation)
    assert -1 <= turning.symmetry <= 1
    assert 0 <= turning.tied_share <= (1 + turning.symmetry) / 2 + 1e-9
    assert 0 <= turning.distance <= 2
    # Only one complex number per pair leaves rotary scores unchanged: stretch and turn every pair.
    R = torch.diag(torch.linspace(0.5, 2, rotation.head_dim).double())
    R[rotation.second, rotation.second] = R[rotation.first, rotation.first]
    R = R @ turn(rotation, 3)
    other = RotaryForm(BilinearForm.from_weights(A @ R, B @ torch.linalg.inv(R).T), rotation)
    for measure in ("energy", "symmetry", "tied_share", "distance"):
        close(getattr(other, measure), getattr(turning, measure), rtol=1e-7, atol=1e-8, name=measure)


def test_at_distance_0_alone_rotary_measures_are_the_plain_ones():
    form = BilinearForm.from_weights(normal(9, 13, 6), normal(9, 13, 6, seed=1))
    rotary = RotaryForm(form, Rotation(frequencies, 6, 1))
    close(rotary.tied_share, form.tied_share, rtol=1e-9, atol=1e-12)
    close(rotary.symmetry, form.symmetry, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("window", [2, 5, 20, 100])
def test_the_tied_share_of_short_windows_is_never_negative(window):
    """The fit for long windows alone falls below 0 for some of these heads."""
    angles = torch.tensor([1.0, 0.1, 0.01], dtype=torch.float64)
    form = BilinearForm.from_weights(normal(200, 13, 6), normal(200, 13, 6, seed=1))
    assert (RotaryForm(form, Rotation(angles, 6, window)).tied_share >= 0).all()


def test_the_limit_of_long_windows():
    form = BilinearForm.from_weights(normal(3, 31, 6), normal(3, 31, 6, seed=1))
    long, limit = (RotaryForm(form, Rotation(frequencies, 6, window)) for window in (200_000, None))
    for name in ("energy", "symmetry", "tied_share", "distance"):
        close(getattr(long, name), getattr(limit, name), rtol=1e-3, atol=1e-3, name=name)


def test_rotary_measures_of_zero_heads_are_zero():
    turning = RotaryForm(BilinearForm(torch.zeros(2, 12, 12, dtype=torch.float64)), ROTATIONS["half"])
    for name in ("energy", "symmetry", "tied_share", "distance"):
        assert (getattr(turning, name) == 0).all()


def test_a_form_that_cancels_at_every_distance_is_a_zero_head():
    # Two pairs turn alike; queries use the first, keys the second, mixed so that the cancellation is not exact.
    angle = torch.tensor(0.7, dtype=torch.float64)
    A, B = torch.zeros(13, 4, dtype=torch.float64), torch.zeros(13, 4, dtype=torch.float64)
    A[:, [0, 2]], B[:, [1, 3]] = normal(13, 2), normal(13, 2, seed=1)
    pairs = torch.stack([torch.stack([angle.cos(), angle.sin()]), torch.stack([-angle.sin(), angle.cos()])])
    mixing = torch.block_diag(pairs, pairs)
    rotation = Rotation(torch.tensor([0.5, 0.5]), 4, 9)
    turning = RotaryForm(BilinearForm.from_weights(A @ mixing, B @ mixing), rotation)
    for name in ("energy", "symmetry", "tied_share", "distance"):
        assert getattr(turning, name) == 0, name


def test_rotations_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="does not fit into a head of size 5"):
        Rotation(frequencies, 5, 11)
    with pytest.raises(ValueError, match="the window is 0; expected 1"):
        Rotation(frequencies, 6, 0)
    with pytest.raises(ValueError, match="size 6, these heads have 5"):
        RotaryForm(BilinearForm(torch.eye(10)), ROTATIONS["half"])
