"""Measures of W_Q W_Kᵀ from Gram matrices, against the d × d matrix itself in float64."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from forms import close, dense, form_of_sample, normal, pair
from querykey.bilinear import METRICS, BilinearForm, Rotation, null, random_heads

INVARIANT = [name for name in METRICS if name not in ("norm", "directionality")]


# --- against the dense matrix -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dim", "head_dim"), [(37, 7), (13, 7), (11, 11), (29, 1), (5, 7), (2, 3)], ids=lambda size: str(size)
)
def test_every_measure_equals_the_dense_one(dim, head_dim):
    A, B = normal(2, 3, dim, head_dim), normal(2, 3, dim, head_dim, seed=1)
    form = BilinearForm.from_weights(A, B)
    found = form.metrics()
    assert set(found) == set(METRICS)
    for h in range(2):
        for i in range(3):
            for name, expected in dense(A[h, i], B[h, i]).items():
                close(found[name][h, i], expected, rtol=1e-10, atol=1e-12, name=name)


def test_spectra_equal_the_dense_ones():
    A, B = normal(31, 7), normal(31, 7, seed=1)
    form, M = BilinearForm.from_weights(A, B), A @ B.T
    close(form.singular_values, torch.linalg.svdvals(M)[:7], rtol=1e-10, atol=0)
    nonzero = torch.linalg.eigvalsh((M + M.T) / 2)
    close(form.eigenvalues, torch.cat([nonzero[:7], nonzero[-7:]]), rtol=1e-10, atol=0)


def test_a_head_computed_by_hand():
    # M = [[0, 1], [0, 0]]: sym(M) has the eigenvalues 1/2 and −1/2.
    form = BilinearForm.from_weights(torch.tensor([[1.0], [0.0]]), torch.tensor([[0.0], [1.0]]))
    expected = {name: 0.0 for name in METRICS} | {"norm": 1, "tied_share": 0.25, "negative_share": 0.25}
    expected |= {
        "signed_share": 0.25,
        "positive": 1,
        "negative": 1,
        "effective_rank": 1,
        "stable_rank": 1,
        "distance": 1,
    }
    assert {name: pytest.approx(value.item()) for name, value in form.metrics().items()} == expected


def test_directionality_is_negative_for_large_columns_as_published():
    # Every position scores basis vector 0 alone: the column norms of M are (3, 0, …, 0), their mean + 2 std is 7/3.
    query, key = torch.ones(9, 1), torch.zeros(9, 1)
    key[0] = 1
    assert BilinearForm.from_weights(query, key).directionality == pytest.approx(-1)
    assert BilinearForm.from_weights(key, query).directionality == pytest.approx(1)


# --- heads with a known answer ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", [7, 4, 1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_tied_heads_are_symmetric_and_keep_everything(rank, dtype):
    W = (normal(31, rank) @ normal(rank, 7, seed=1)).to(dtype)
    tied, opposite = BilinearForm.from_weights(W, W), BilinearForm.from_weights(W, -W)
    for form, share, distance in ((tied, 1, 0), (opposite, 0, 2)):
        assert form.symmetry == pytest.approx(1, abs=1e-12)
        assert form.tied_share == pytest.approx(share, abs=1e-12)
        assert form.negative_share == pytest.approx(1 - share, abs=1e-12)
        assert form.signed_share == pytest.approx(1, abs=1e-12)
        assert form.overlap == pytest.approx(1, abs=1e-6)
        assert form.distance == pytest.approx(distance, abs=1e-7)
    if dtype == torch.float64:  # rounding the weights fills the other directions
        assert (tied.positive, tied.negative) == (rank, 0)
        assert (opposite.positive, opposite.negative) == (0, rank)


def test_an_antisymmetric_head():
    A = normal(13, 2)
    form = BilinearForm.from_weights(A, A @ torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64))
    assert form.symmetry == pytest.approx(-1)
    assert form.tied_share == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("rank", [5, 2])
def test_rank_deficient_heads_equal_the_dense_ones(rank):
    A, B = normal(31, rank) @ normal(rank, 7, seed=1), normal(31, 7, seed=2)
    found = BilinearForm.from_weights(A, B).metrics()
    for name, expected in dense(A, B).items():
        close(found[name], expected, rtol=1e-6, atol=1e-9, name=name)  # √eps: the price of a Gram matrix


def test_every_measure_of_a_zero_head_is_zero():
    A, B = normal(3, 13, 5), normal(3, 13, 5, seed=1)
    A[0], B[0], A[1] = 0, 0, 0
    form = BilinearForm.from_weights(A, B)
    for name, value in form.metrics().items():
        assert value[0] == 0, name
        assert value[1] == 0, name
    expected = BilinearForm.from_weights(A[2], B[2]).metrics()
    assert all(form.metrics()[name][2] == pytest.approx(value.item()) for name, value in expected.items())


def test_a_form_that_cancels_is_a_zero_head():
    # W_Q and W_K use different head dimensions, mixed by a rotation so that the cancellation is not exact.
    Q = torch.linalg.qr(normal(6, 6, seed=2)).Q
    A, B = normal(13, 6), normal(13, 6, seed=1)
    A[:, 3:], B[:, :3] = 0, 0
    found = BilinearForm.from_weights(A @ Q, B @ Q).metrics()
    assert all(value == 0 for name, value in found.items() if name != "overlap")
    assert all(value.isfinite() for value in found.values())


# --- properties -------------------------------------------------------------------------------------------------------

sizes = st.tuples(st.integers(2, 17), st.integers(1, 7))
seeds = st.integers(0, 2**31)
relaxed = settings(deadline=None, max_examples=30)


def same(one: BilinearForm, other: BilinearForm, names: list[str], rtol: float = 1e-6) -> None:
    for name in names:
        close(getattr(one, name), getattr(other, name), rtol=rtol, atol=1e-7, name=name)


@given(sizes, seeds, st.floats(0.1, 10))
@relaxed
def test_the_gauge_changes_nothing_that_scores_show(size, seed, stretch):
    A, B = pair(size, seed)
    U, V = (torch.linalg.qr(normal(size[1], size[1], seed=seed + i)).Q for i in (1, 2))
    R = U @ torch.diag(torch.linspace(1, stretch, size[1]).double()) @ V
    same(
        BilinearForm.from_weights(A, B),
        BilinearForm.from_weights(A @ R, B @ torch.linalg.inv(R).T),
        ["norm", *INVARIANT],
    )


@given(sizes, seeds)
@relaxed
def test_a_rotation_of_the_model_dimension_changes_all_but_directionality_nothing(size, seed):
    A, B = pair(size, seed)
    turned = torch.linalg.qr(normal(size[0], size[0], seed=seed + 1)).Q
    same(BilinearForm.from_weights(A, B), BilinearForm.from_weights(turned @ A, turned @ B), ["norm", *INVARIANT])


@given(sizes, seeds, st.floats(1e-3, 1e3))
@relaxed
def test_scale_changes_only_the_norm_and_sign_swaps_the_parts(size, seed, scale):
    A, B = pair(size, seed)
    form, scaled, flipped = (BilinearForm.from_weights(A * s, B) for s in (1, scale, -1))
    same(form, scaled, [*INVARIANT, "directionality"])
    close(scaled.norm, form.norm * scale, rtol=1e-9, atol=0)
    close(flipped.tied_share, form.negative_share, rtol=1e-9, atol=1e-12)
    close(flipped.distance, 2 - form.distance, rtol=1e-9, atol=1e-12)


@given(sizes, seeds)
@relaxed
def test_transposition_only_turns_directionality_around(size, seed):
    A, B = pair(size, seed)
    form, transposed = BilinearForm.from_weights(A, B), BilinearForm.from_weights(B, A)
    same(form, transposed, ["norm", *INVARIANT])
    close(transposed.directionality, -form.directionality, rtol=1e-9, atol=1e-12)


@given(sizes, seeds)
@relaxed
def test_shares_and_symmetry_fit_together(size, seed):
    form = BilinearForm.from_weights(*pair(size, seed))
    symmetric = (1 + form.symmetry) / 2
    close(form.tied_share + form.negative_share, symmetric, rtol=1e-10, atol=1e-12)
    assert form.tied_share <= form.signed_share + 1e-12
    assert form.negative_share <= form.signed_share + 1e-12
    assert form.signed_share <= symmetric + 1e-12
    assert 1 - 1e-9 <= form.stable_rank <= form.effective_rank.ceil() + size[1]
    assert 1 - 1e-9 <= form.effective_rank <= min(size) + 1e-6
    assert max(form.positive, form.negative) <= size[1]
    assert -1e-9 <= form.distance <= 2 + 1e-9


@given(sizes, seeds)
@relaxed
def test_distance_is_the_least_over_the_gauge(size, seed):
    A, B = pair(size, seed)
    M, k = A @ B.T, min(size)
    U, S, Vh = torch.linalg.svd(M, full_matrices=False)
    balanced_A, balanced_B = U[:, :k] * S[:k].sqrt(), Vh[:k].T * S[:k].sqrt()  # the least, where M has rank k
    least = (balanced_A - balanced_B).square().sum()
    whole = balanced_A.square().sum() + balanced_B.square().sum()
    close(BilinearForm.from_weights(A, B).distance, least / whole, rtol=1e-7, atol=1e-7)
    for i in range(3):  # no other gauge comes closer
        R = torch.eye(k, dtype=torch.float64) + 0.3 * normal(k, k, seed=seed + i)
        assert (balanced_A @ R - balanced_B @ torch.linalg.inv(R).T).square().sum() >= least - 1e-9


# --- grouped keys, precision, refusals --------------------------------------------------------------------------------


def test_query_head_h_reads_key_head_h_over_the_group_size():
    W_Q, W_K = normal(2, 6, 13, 5), normal(2, 3, 13, 5, seed=1)
    grouped = BilinearForm.from_weights(W_Q, W_K)
    spread = BilinearForm.from_weights(W_Q, W_K[:, [0, 0, 1, 1, 2, 2]])
    same(grouped, spread, list(METRICS), rtol=1e-12)
    wrong = BilinearForm.from_weights(W_Q, W_K[:, [0, 1, 2, 0, 1, 2]])
    assert (grouped.symmetry - wrong.symmetry).abs().max() > 1e-3


@pytest.mark.parametrize("rows", ["rows", "columns"])
def test_weights_may_be_views_of_rows_or_of_columns(rows):
    W_Q, W_K = normal(4, 13, 5), normal(2, 13, 5, seed=1)
    expected = BilinearForm.from_weights(W_Q, W_K)
    if rows == "rows":
        W_Q, W_K = W_Q.mT.contiguous().mT, W_K.mT.contiguous().mT
    same(BilinearForm.from_weights(W_Q, W_K), expected, list(METRICS), rtol=1e-12)


@pytest.mark.parametrize(
    ("queries", "keys", "words"),
    [
        ((6, 13, 5), (4, 13, 5), "multiple of kv_heads"),
        ((6, 13, 5), (13, 5), "multiple of kv_heads"),
        ((2, 6, 13, 5), (3, 3, 13, 5), "multiple of kv_heads"),
        ((6, 13, 5), (0, 13, 5), "multiple of kv_heads"),
        ((13, 5), (11, 5), "differ in their last two sizes"),
        ((13, 5), (13, 7), "differ in their last two sizes"),
    ],
)
def test_weights_that_do_not_pair_are_refused(queries, keys, words):
    from querykey.bilinear.gram import paired

    unchecked = getattr(paired, "__wrapped__", paired)  # without the check of the annotation
    with pytest.raises(ValueError, match=words):
        unchecked(torch.zeros(queries), torch.zeros(keys))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_low_precision_weights_are_measured_in_float64(dtype):
    A, B = normal(4, 31, 7).to(dtype), normal(2, 31, 7, seed=1).to(dtype)
    form, exact = BilinearForm.from_weights(A, B), BilinearForm.from_weights(A.double(), B.double())
    assert form.gram.dtype == torch.float64
    same(form, exact, list(METRICS), rtol=1e-12)
    single = BilinearForm.from_weights(A, B, dtype=torch.float32)
    assert single.gram.dtype == torch.float32
    close(single.symmetry, exact.symmetry, rtol=1e-4, atol=1e-5)


def test_parameters_are_measured_without_a_graph():
    form = BilinearForm.from_weights(torch.nn.Parameter(normal(13, 5)), torch.nn.Parameter(normal(13, 5, seed=1)))
    assert not any(value.requires_grad for value in form.metrics().values())


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(value):
    A = normal(13, 5)
    A[3, 2] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        BilinearForm.from_weights(A, normal(13, 5, seed=1))


def test_a_gram_matrix_of_odd_size_is_refused():
    with pytest.raises(ValueError, match="even size"):
        BilinearForm(torch.eye(5))


# --- data -------------------------------------------------------------------------------------------------------------


def centred(x: Tensor) -> Tensor:
    return x - x.mean(-2, keepdim=True)


def test_forms_of_activations_measure_the_scores_themselves():
    q, k = normal(2, 41, 5) + normal(2, 1, 5, seed=2), normal(2, 41, 5, seed=1) + normal(2, 1, 5, seed=3)
    form = form_of_sample(q, k)
    for h in range(2):
        expected = dense(centred(q[h]), centred(k[h]))
        expected["norm"] = expected["norm"] / 41
        for name in set(METRICS) - {"directionality"}:
            close(getattr(form, name)[h], expected[name], rtol=1e-9, atol=1e-11, name=name)


def test_activations_give_the_form_of_weights_on_whitened_inputs():
    x, A, B = normal(53, 13), normal(4, 13, 5, seed=1), normal(2, 13, 5, seed=2)
    x = x @ torch.diag(torch.linspace(0.1, 3, 13).double())
    root = torch.linalg.cholesky(centred(x).T @ centred(x) / 53).T
    by_weights = BilinearForm.from_weights(root @ A, root @ B)
    by_activations = form_of_sample(x @ A + 3, x @ B.repeat_interleave(2, 0) - 2)
    close(by_weights.gram, by_activations.gram, rtol=1e-10, atol=1e-12)
    assert "directionality" not in by_activations.metrics()


def test_a_tied_head_with_a_bias_is_symmetric_on_data():
    x, W, b = normal(53, 13) + 2, normal(13, 5, seed=1), normal(5, seed=2)
    k = x @ W + b
    form = form_of_sample(k, k)
    assert form.symmetry == pytest.approx(1)
    assert form.tied_share == pytest.approx(1)


def test_key_only_share_is_the_part_of_the_variance_that_queries_agree_on():
    q, k = normal(41, 5) + normal(5, seed=2), normal(41, 5, seed=1) + 7
    scores = q @ k.T
    scores = scores - scores.mean(-1, keepdim=True)  # what the softmax sees
    agreed = scores.mean(0).square().mean()
    form = form_of_sample(q, k)
    close(form.key_only_share, agreed / scores.square().mean(), rtol=1e-10, atol=0)


def test_measures_that_need_more_say_so():
    form = BilinearForm.from_covariance(torch.eye(6))
    assert "directionality" not in form.metrics()
    with pytest.raises(ValueError, match="property of weights"):
        _ = form.directionality
    with pytest.raises(ValueError, match="needs the means"):
        _ = form.key_only_share


# --- nulls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "head_dim"), [(13, 3), (13, 5), (41, 5)], ids=lambda size: str(size))
def test_formulas_of_the_null_equal_many_random_heads(dim, head_dim):
    draws = 4000
    heads = BilinearForm.from_weights(normal(draws, dim, head_dim), normal(draws, dim, head_dim, seed=1))
    formulas = null(dim, head_dim, torch.Generator().manual_seed(2), draws=8)
    for name in ("symmetry", "tied_share", "negative_share", "overlap"):
        values, expected = getattr(heads, name), formulas[name]
        assert values.mean().item() == pytest.approx(expected.mean, abs=4 * expected.std / draws**0.5), name
        # Exact but for the tied share, whose spread is a first order in 1/dim.
        tolerance = 0.05 if name in ("symmetry", "overlap") else 0.1
        assert values.std().item() == pytest.approx(expected.std, rel=tolerance), name


def test_directionality_of_random_heads_is_wide():
    expected = null(1024, 32, torch.Generator().manual_seed(0), draws=8)["directionality"]
    W_Q, W_K = (torch.randn(200, 1024, 32, generator=torch.Generator().manual_seed(i)) for i in range(2))
    values = BilinearForm.from_weights(W_Q, W_K).directionality
    assert abs(values.mean().item()) < 4 * expected.std / 200**0.5
    assert values.std().item() == pytest.approx(expected.std, rel=0.15)


def test_heads_drawn_as_gram_matrices_are_as_those_drawn_as_weights():
    drawn = random_heads(1024, 3, 1000, torch.Generator().manual_seed(0)).metrics()
    W_Q, W_K = normal(1000, 1024, 3), normal(1000, 1024, 3, seed=1)
    for name, expected in BilinearForm.from_weights(W_Q, W_K).metrics().items():
        if name == "directionality":
            assert name not in drawn
            continue
        one, other = drawn[name].double(), expected.double()
        assert abs(one.mean() - other.mean()) <= 4 * other.std() * (2 / 1000) ** 0.5, name
        assert one.std().item() == pytest.approx(other.std().item(), rel=0.1), name


def test_random_gram_matrices_have_the_mean_of_a_wishart_distribution():
    heads = random_heads(1024, 32, 500, torch.Generator().manual_seed(0))
    mean = heads.gram.mean(0)
    noise = (2 * 1024 / 500) ** 0.5
    assert (mean - 1024 * torch.eye(64)).abs().max() < 5 * noise


def test_the_null_of_data_follows_the_spectrum_of_the_inputs():
    # Random weights on inputs of effective dimension (Σλ)²/Σλ²: that, not dim, sets the symmetry of chance.
    spectrum = torch.linspace(0, 1, 31).double() ** 6
    effective = spectrum.sum() ** 2 / spectrum.square().sum()
    found = null(31, 3, torch.Generator().manual_seed(0), draws=2000, spectrum=spectrum)
    assert found["symmetry"].source == "simulated"
    assert "directionality" not in found
    few = null(31, 3, torch.Generator().manual_seed(0), draws=2000, spectrum=spectrum, measures=("symmetry",))
    assert few == {"symmetry": found["symmetry"]}
    assert found["symmetry"].mean == pytest.approx(1 / effective.item(), rel=0.15)
    assert found["symmetry"].mean > 3 / 31


def test_nulls_cover_every_measure_and_repeat_with_the_generator():
    rotation = Rotation(torch.tensor([1.0, 0.31, 0.043], dtype=torch.float64), 7, 64)
    one, other = (null(37, 7, torch.Generator().manual_seed(3), draws=16, rotation=rotation) for _ in range(2))
    assert one == other
    assert set(one) == set(METRICS) - {"norm"} | {"symmetry_rotary", "tied_share_rotary", "distance_rotary"}
    assert one["directionality"].mean == 0
    assert 0.2 < one["directionality"].std < 1
    assert one["tied_share_rotary"].mean == pytest.approx(0.25, abs=0.1)


def test_nulls_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="1 dimensions and 64 draws"):
        null(1, 1, torch.Generator())
    with pytest.raises(ValueError, match="13 dimensions and 1 draws"):
        null(13, 3, torch.Generator(), draws=1)
    with pytest.raises(ValueError, match="5 values; expected 13"):
        null(13, 3, torch.Generator(), spectrum=torch.ones(5))
