"""What the argmax map of a head can do: tied heads only fixed points, symmetric ones swaps, others any cycle."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from querykey.bilinear import argmax_cycles

# Small whole numbers: products are exact, and ties, which the statements cover, are frequent.
entries = st.integers(-3, 3)
relaxed = settings(deadline=None, max_examples=200)


@st.composite
def matrices(draw: st.DrawFn, square: bool = False) -> Tensor:
    rows = draw(st.integers(1, 9))
    columns = rows if square else draw(st.integers(1, 4))
    return torch.tensor(draw(st.lists(entries, min_size=rows * columns, max_size=rows * columns))).view(rows, columns)


def walked(scores: Tensor) -> list[int]:
    """Cycle lengths by walking: the oracle."""
    lengths = []
    for start in range(len(scores)):
        seen: list[int] = []
        position = start
        while position not in seen:
            seen.append(position)
            row = scores[position].tolist()
            position = row.index(max(row))
        lengths.append(len(seen) - seen.index(position))
    return lengths


# --- the theorems -----------------------------------------------------------------------------------------------------


@given(matrices())
@relaxed
def test_every_path_of_a_tied_head_ends_in_a_position_that_attends_to_itself(keys):
    scores = (keys @ keys.T).double()
    assert (argmax_cycles(scores) == 1).all()
    # ... because every step to another position goes to a longer key, or to an equal one
    step, norms = scores.argmax(-1), scores.diagonal()
    assert ((norms[step] > norms) | (keys[step] == keys).all(-1)).all()


@given(matrices(), st.data())
@relaxed
def test_every_cycle_of_symmetric_scores_has_at_most_two_positions(keys, data):
    columns = keys.shape[1]
    signs = torch.tensor(data.draw(st.lists(st.sampled_from([-1, 1]), min_size=columns, max_size=columns)))
    scores = ((keys * signs) @ keys.T).double()
    assert argmax_cycles(scores).max() <= 2


@given(matrices(square=True))
@relaxed
def test_symmetric_scores_of_any_rank_too(x):
    assert argmax_cycles((x + x.T).double()).max() <= 2


@given(st.permutations(range(9)))
@relaxed
def test_other_scores_reach_every_cycle(permutation):
    scores = torch.zeros(9, 9)
    scores[torch.arange(9), torch.tensor(permutation)] = 1
    assert argmax_cycles(scores).tolist() == walked(scores)


def test_keys_of_equal_norm_attend_to_themselves():
    keys = torch.nn.functional.normalize(
        torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).double(), dim=-1
    )
    scores = keys @ keys.T
    assert (scores.argmax(-1) == torch.arange(50)).all()


def test_a_signed_core_swaps_partners_and_no_tied_head_does():
    # Two keys that differ in sign score each other highest once the core is negative.
    keys = torch.tensor([[1.0], [-1.0]])
    assert argmax_cycles(-keys @ keys.T).tolist() == [2, 2]


def test_two_dimensions_and_a_rotation_make_one_cycle_of_twelve():
    angle = torch.arange(12) * (2 * torch.pi / 12)
    keys = torch.stack([angle.cos(), angle.sin()], -1)
    assert argmax_cycles(keys @ keys.roll(-1, 0).T.contiguous()).unique().tolist() == [12]


# --- the function -----------------------------------------------------------------------------------------------------


@given(matrices(square=True))
@relaxed
def test_cycles_equal_those_found_by_walking(scores):
    assert argmax_cycles(scores.double()).tolist() == walked(scores)


def test_every_length_is_told_apart_in_one_batch():
    length, scores = 13, torch.zeros(13, 13, 13)
    for cycle in range(1, length + 1):  # the first `cycle` positions in a ring, the others lead into it
        following = [(i + 1) % cycle if i < cycle else i - 1 for i in range(length)]
        scores[cycle - 1, torch.arange(length), torch.tensor(following)] = 1
    found = argmax_cycles(scores.view(1, 13, 13, 13))
    assert found.shape == (1, 13, 13)
    assert (found[0] == torch.arange(1, 14)[:, None]).all()


def test_masked_scores_may_be_minus_infinity():
    scores = torch.full((3, 3), float("-inf"))
    scores[[0, 1, 2], [0, 0, 1]] = 0.0
    assert argmax_cycles(scores).tolist() == [1, 1, 1]


@pytest.mark.parametrize("shape", [(2, 3), (4, 3, 2), (0, 0)])
def test_scores_that_map_to_nothing_are_refused(shape):
    unchecked = getattr(argmax_cycles, "__wrapped__", argmax_cycles)  # without the check of the annotation
    with pytest.raises(ValueError, match="as many queries as keys"):
        unchecked(torch.zeros(shape))


def test_scores_with_nan_are_refused():
    with pytest.raises(ValueError, match="NaN"):
        argmax_cycles(torch.tensor([[0.0, 1.0], [float("nan"), 0.0]]))
