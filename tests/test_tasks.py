"""Every task against its definition, solved one example at a time in plain Python."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor

from querykey.tasks import (
    TASKS,
    Copy,
    Cycle,
    Dyck,
    Examples,
    Histogram,
    Induction,
    Recall,
    Relation,
    Reverse,
    Shift,
    Sort,
    Sub,
    Swap,
    Task,
    argmax_ceiling,
    make_task,
)
from querykey.tasks.ceiling import Kind, Scores
from querykey.tasks.task import check_choice, check_size, distinct, permutations

Answers = dict[int, int]  # position -> target; a position that is not counted is absent

# Small enough that examples repeat, with distinct primes where the task allows it.
SMALL: dict[str, dict[str, int]] = {
    "cycle": {"length": 6, "names": 7, "payloads": 5},
    "swap": {"length": 4, "names": 7, "payloads": 3},
    "shift": {"length": 5, "vocabulary": 3},
    "induction": {"length": 7, "vocabulary": 5, "shortest": 2, "longest": 3},
    "relation": {"length": 6, "payloads": 3},
    "reverse": {"length": 5, "vocabulary": 3},
    "sort": {"length": 5, "vocabulary": 3},
    "histogram": {"length": 5, "vocabulary": 3},
    "copy": {"length": 5, "vocabulary": 3},
    "sub": {"length": 5, "vocabulary": 3},
    "recall": {"length": 11, "pairs": 2, "vocabulary": 5},
    "dyck": {"length": 10, "types": 3, "depth": 3},
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def follow_names(task: Cycle | Swap, row: list[list[int]]) -> Answers:
    payload_of = {name: payload - 2 * task.names for name, _, payload in row}
    return {i: payload_of[pointer - task.names] for i, (_, pointer, _) in enumerate(row)}


def token_at_offset(task: Shift, row: list[list[int]]) -> Answers:
    inside = range(len(row))
    return {i: row[i + task.offset][0] for i in inside if i + task.offset in inside}


def what_followed_last_time(task: Induction, row: list[list[int]]) -> Answers:
    tokens = [token for (token,) in row]
    answers: Answers = {}
    for i, token in enumerate(tokens):
        before = [j for j in range(i) if tokens[j] == token]
        if before:
            answers[i] = tokens[before[-1] + 1]
    return answers


def payload_of_related(task: Relation, row: list[list[int]]) -> Answers:
    payload_of = {token: payload - task.length for token, payload in row}
    related = {
        "identity": lambda token: token,
        "swap": lambda token: token ^ 1,
        "3-cycles": lambda token: 3 * (token // 3) + (token + 1) % 3,
        "n-cycle": lambda token: (token + 1) % task.length,
    }[task.kind]
    return {i: payload_of[related(token)] for i, (token, _) in enumerate(row)}


def everywhere(answer: Callable[[list[int]], list[int]]) -> Callable[..., Answers]:
    return lambda task, row: dict(enumerate(answer([token for (token,) in row])))


def value_of_key(task: Recall, row: list[list[int]]) -> Answers:
    tokens = [token for (token,) in row]
    context, rest = tokens[: 2 * task.pairs], tokens[2 * task.pairs :]
    return {
        2 * task.pairs + i: context[context.index(token) + 1]
        for i, token in enumerate(rest)
        if i % 2 == 0 and token in context[::2]
    }


def type_that_must_close(task: Dyck, row: list[list[int]]) -> Answers:
    stack: list[int] = []
    answers: Answers = {}
    for i, (token,) in enumerate(row):
        if token < task.types:
            stack.append(token)
        else:
            answers[i - 1] = stack[-1]
            assert stack.pop() == token - task.types
        assert len(stack) <= task.depth
    assert not stack
    return answers


ORACLES: dict[str, Callable[..., Answers]] = {
    "cycle": follow_names,
    "swap": follow_names,
    "shift": token_at_offset,
    "induction": what_followed_last_time,
    "relation": payload_of_related,
    "reverse": everywhere(lambda tokens: tokens[::-1]),
    "sort": everywhere(sorted),
    "histogram": everywhere(lambda tokens: [tokens.count(token) for token in tokens]),
    "copy": everywhere(lambda tokens: tokens),
    "sub": lambda task, row: {i: task.vocabulary - 1 - token for i, (token,) in enumerate(row)},
    "recall": value_of_key,
    "dyck": type_that_must_close,
}
SYNTHETIC = list(ORACLES)


def small(name: str) -> Task:
    return make_task(name, **SMALL[name])


def answers(examples: Examples, i: int) -> Answers:
    counted = examples.counted[i].nonzero().flatten().tolist()
    return {position: int(examples.targets[i, position]) for position in counted}


OTHERS = [
    Shift(length=7, vocabulary=5, offset=-2, causal=True),
    Shift(length=7, vocabulary=5, offset=3),
    Recall(length=11, pairs=2, vocabulary=5, causal=False),
]


@pytest.mark.parametrize("task", [*(make(n) for n in SYNTHETIC for make in (make_task, small)), *OTHERS], ids=str)
class TestEveryTask:
    def test_answers_are_those_of_the_definition(self, task: Task) -> None:
        examples = task.sample(53, seeded())
        for i, row in enumerate(examples.inputs.tolist()):
            expected = ORACLES[task.name](task, row)
            if isinstance(task, Recall):  # keys that stand among the filling tokens by chance are not counted
                expected = {position: expected[position] for position in answers(examples, i)}
                assert len(set(expected.values())) == len(expected) == task.pairs
            assert answers(examples, i) == expected

    def test_shapes_ranges_and_zeros_where_nothing_is_counted(self, task: Task) -> None:
        assert isinstance(task, Task)
        examples = task.sample(101, seeded())
        assert examples.inputs.shape == (101, task.length, task.features)
        assert examples.targets.shape == examples.counted.shape == (101, task.length)
        assert int(examples.inputs.min()) >= 0
        assert int(examples.inputs.max()) < task.vocabulary
        assert int(examples.targets.min()) >= 0
        assert int(examples.targets.max()) < task.classes
        assert (examples.targets[~examples.counted] == 0).all()
        assert examples.counted.any(dim=1).all()
        if examples.level is not None:
            assert (examples.level[~examples.counted] == 0).all()

    def test_depends_on_the_generator_alone(self, task: Task) -> None:
        first, again, other = (task.sample(11, seeded(seed)) for seed in (3, 3, 4))
        assert torch.equal(first.inputs, again.inputs)
        assert torch.equal(first.targets, again.targets)
        assert not torch.equal(first.inputs, other.inputs)
        torch.manual_seed(0)
        before = torch.random.get_rng_state()
        task.sample(11, seeded())
        assert torch.equal(before, torch.random.get_rng_state())

    def test_chance_is_the_score_of_the_best_fixed_answers(self, task: Task) -> None:
        learned, scored = (task.sample(20_000, seeded(seed)) for seed in (0, 1))
        seen = torch.zeros(task.length, task.classes)
        for position in range(task.length):
            seen[position] = learned.targets[learned.counted[:, position], position].bincount(minlength=task.classes)
        hits = (scored.targets == seen.argmax(dim=1))[scored.counted].float().mean()
        assert float(hits) == pytest.approx(task.chance, abs=0.005)

    def test_is_its_name_and_its_options(self, task: Task) -> None:
        assert make_task(task.name, **task.options) == task
        assert json.loads(json.dumps(task.options)) == task.options
        assert (task.data_hash, task.prepare(Path("nowhere")), task.yardsticks(9, seeded(), [])) == (None, {}, {})


TINY = {"cycle": {"length": 3, "names": 3, "payloads": 2}, "swap": {"length": 2, "names": 3, "payloads": 2}}
FEW = [make_task(name, **TINY.get(name, SMALL[name])) for name in SYNTHETIC]


@pytest.mark.parametrize("task", [*FEW, Shift(length=5, vocabulary=3, offset=-1, causal=True)], ids=str)
def test_best_is_1_because_what_is_seen_fixes_the_target(task: Task) -> None:
    assert task.best == 1.0
    examples = task.sample(8_000, seeded())
    seen: dict[tuple[object, ...], int] = {}
    repeats = 0
    for i, row in enumerate(examples.inputs.tolist()):
        for position, target in answers(examples, i).items():
            view = (position, str(row[: position + 1] if task.causal else row))
            repeats += view in seen
            assert seen.setdefault(view, target) == target
    assert repeats > 200


@pytest.mark.parametrize(("task", "group"), [(Cycle(length=12, names=17), 3), (Swap(length=10, names=11), 2)])
def test_naming_closes_after_a_full_group_and_not_before(task: Cycle | Swap, group: int) -> None:
    for row in task.sample(29, seeded()).inputs.tolist():
        pointer_of = {name: pointer - task.names for name, pointer, _ in row}
        assert len(pointer_of) == task.length
        for name in pointer_of:
            path = [name]
            for _ in range(group):
                path.append(pointer_of[path[-1]])
            assert path[-1] == name
            assert len(set(path)) == group


def test_naming_symbols_are_three_disjoint_ranges() -> None:
    names, pointers, payloads = Cycle(length=3, names=5, payloads=7).sample(997, seeded()).inputs.flatten(0, 1).T
    assert set(names.tolist()) == set(range(5))
    assert set(pointers.tolist()) == set(range(5, 10))
    assert set(payloads.tolist()) == set(range(10, 17))


def test_with_several_relations_each_pointer_names_by_one_of_them() -> None:
    task = Cycle(length=6, names=7, payloads=5, relations=3)
    assert (task.features, task.vocabulary) == (5, 2 * 3 * 7 + 5)
    examples = task.sample(101, seeded())
    used = Counter()
    for row, targets in zip(examples.inputs.tolist(), examples.targets.tolist(), strict=True):
        for i, (*own, pointer, _) in enumerate(row):
            relation = (pointer - 3 * 7) // 7
            named = [other for other in row if other[relation] == pointer - 3 * 7]
            assert len(named) == 1
            assert own[relation] != named[0][relation]
            assert named[0][-1] - 2 * 3 * 7 == targets[i]
            used[relation] += 1
    assert set(used) == {0, 1, 2}
    assert min(used.values()) > 140  # of 606, a third each


def test_every_place_for_a_cycle_is_equally_likely() -> None:
    """Of 6 positions, the one that position 0 names is any of the other five."""
    examples = Cycle(length=6, names=7).sample(10_000, seeded())
    names, pointers = examples.inputs[..., 0], examples.inputs[:, :1, 1] - 7
    named = Counter((names == pointers).long().argmax(dim=1).tolist())
    assert set(named) == {1, 2, 3, 4, 5}
    assert min(named.values()) > 1800  # expected 2000, standard deviation 40


def test_induction_level_is_the_distance_to_the_answer() -> None:
    task = Induction(length=23, vocabulary=13, shortest=5, longest=11)
    examples = task.sample(41, seeded())
    assert examples.level is not None
    for i, row in enumerate(examples.inputs.squeeze(-1).tolist()):
        for position, target in answers(examples, i).items():
            nearest = max(j for j in range(position + 1) if row[j] == target)
            assert int(examples.level[i, position]) == position - nearest
    assert set(examples.level[examples.counted].tolist()) == set(range(4, 11))


@pytest.mark.parametrize(("length", "vocabulary"), [(2, 2), (4, 3), (3, 5), (7, 2)])
@pytest.mark.parametrize("name", ["reverse", "sort", "histogram", "copy", "sub"])
def test_chance_of_sequences_is_that_of_all_of_them(name: str, length: int, vocabulary: int) -> None:
    task = make_task(name, length=length, vocabulary=vocabulary)
    targets = [ORACLES[name](task, [[s] for s in tokens]) for tokens in product(range(vocabulary), repeat=length)]
    likeliest = [max(Counter(answers[i] for answers in targets).values()) for i in range(length)]
    assert task.chance == pytest.approx(sum(likeliest) / length / len(targets), rel=1e-9)


DOCUMENTED = [
    Shift(length=5),
    Induction(length=8, shortest=3, longest=3),
    Reverse(length=5),
    Sort(length=5),
    Histogram(length=5),
    Copy(length=5),
    Sub(length=5),
    Recall(length=12, pairs=2, vocabulary=16),
]


@pytest.mark.parametrize("task", DOCUMENTED, ids=lambda task: task.name)
def test_the_documented_example_is_one(task: Task) -> None:
    rows = dict(re.findall(r"^ +(input|target) +(.+)$", task.__doc__ or "", flags=re.MULTILINE))
    row = [[int(token)] for token in rows["input"].split()]
    targets = {i: int(target) for i, target in enumerate(rows["target"].split()) if target != "-"}
    assert len(row) == task.length
    assert ORACLES[task.name](task, row) == targets


def test_the_documented_brackets_are_an_example() -> None:
    rows = dict(re.findall(r"^ +(input|target|level) +(.+)$", Dyck.__doc__ or "", flags=re.MULTILINE))
    task = Dyck(length=8, types=2)
    row = [["([)]".index(bracket)] for bracket in rows["input"].split()]
    expected = type_that_must_close(task, row)
    assert {i: int(target) for i, target in enumerate(rows["target"].split()) if target != "-"} == expected
    depths = [sum(1 if token < 2 else -1 for (token,) in row[: i + 1]) for i in range(8)]
    assert {i: int(level) for i, level in enumerate(rows["level"].split()) if level != "-"} == {
        i: depths[i] for i in expected
    }


def test_dyck_level_is_the_number_of_open_brackets() -> None:
    task = Dyck(length=26, types=3, depth=5)
    examples = task.sample(47, seeded())
    assert examples.level is not None
    steps = torch.where(examples.inputs.squeeze(-1) < task.types, 1, -1)
    assert torch.equal(examples.level, steps.cumsum(dim=1) * examples.counted)
    assert set(examples.level[examples.counted].tolist()) == {1, 2, 3, 4, 5}


def test_dyck_opens_or_closes_with_equal_chance_where_both_can_be() -> None:
    task = Dyck(length=24, types=2, depth=6)
    opening = task.sample(5_000, seeded()).inputs.squeeze(-1) < task.types
    height = torch.where(opening, 1, -1).cumsum(dim=1)[:, :-1]
    free = (height > 0) & (height < 6) & (height < torch.arange(23, 0, -1))
    assert float(opening[:, 1:][free].float().mean()) == pytest.approx(0.5, abs=0.01)


def test_recall_level_is_the_distance_to_the_value_as_a_power_of_two() -> None:
    task = Recall(length=50, pairs=7, vocabulary=31)
    examples = task.sample(43, seeded())
    assert examples.level is not None
    for i, row in enumerate(examples.inputs.squeeze(-1).tolist()):
        for position in answers(examples, i):
            distance = position - row[:14:2].index(row[position]) * 2 - 1
            level = int(examples.level[i, position])
            assert level <= distance < 2 * level
            assert level & (level - 1) == 0


def test_recall_keys_come_again_soon_rather_than_late() -> None:
    """With one pair, slot n is chosen with probability n^-0.99 / sum."""
    count = 20_000
    examples = Recall(length=14, pairs=1, vocabulary=8).sample(count, seeded())
    weights = [n**-0.99 for n in range(1, 7)]
    seen = examples.counted.sum(dim=0).tolist()
    for n, weight in enumerate(weights):
        assert seen[2 + 2 * n] / count == pytest.approx(weight / sum(weights), abs=0.015)
    assert sum(seen) == sum(seen[2::2]) == count


@pytest.mark.parametrize("kind", ["identity", "swap", "3-cycles", "n-cycle"])
def test_of_a_relation_each_position_answers_with_the_payload_of_its_partner(kind: Kind) -> None:
    task = Relation(kind, length=6, payloads=3)
    sampled = task.sample(2000, seeded())
    for i, row in enumerate(sampled.inputs[:31].tolist()):
        assert answers(sampled, i) == payload_of_related(task, row)
    sought = task.related_positions(sampled.inputs)
    assert torch.equal(sampled.inputs[..., 1].gather(1, sought) - task.length, sampled.targets)
    assert torch.equal(sampled.inputs[..., 0].gather(1, sought), task.related[sampled.inputs[..., 0]])
    assert float((sampled.targets == 1).float().mean()) == pytest.approx(task.chance, abs=0.02)


def choices(scores: Tensor, selfmask: bool) -> list[int]:
    return scores.masked_fill(torch.eye(len(scores), dtype=torch.bool) & selfmask, -torch.inf).argmax(dim=1).tolist()


def nearest_of_its_class(matrix: Tensor, scores: Scores) -> Tensor:
    """The matrix itself, or its symmetric part, the positive part of that, or that with a unit diagonal."""
    if scores == "general":
        return matrix
    values, vectors = torch.linalg.eigh((matrix + matrix.T) / 2)
    if scores == "symmetric":
        return (matrix + matrix.T) / 2
    keys: Tensor = vectors * values.clamp(min=0).sqrt()
    if scores == "equal norms":
        keys = keys / keys.norm(dim=1, keepdim=True)
    return keys @ keys.T


KINDS: tuple[Kind, ...] = ("identity", "swap", "3-cycles", "n-cycle")
CLASSES: tuple[Scores, ...] = ("equal norms", "psd", "symmetric", "general")


@pytest.mark.parametrize("selfmask", [False, True])
@pytest.mark.parametrize("scores", CLASSES)
@pytest.mark.parametrize("kind", KINDS)
class TestCeiling:
    def test_is_never_exceeded(self, kind: Kind, scores: Scores, selfmask: bool) -> None:
        related = Relation(kind, length=6).related.tolist()
        ceiling = argmax_ceiling(kind, 6, scores, selfmask)
        generator = seeded()
        for trial in range(300):
            wanted = torch.eye(6, dtype=torch.float64)[related] * (trial % 5)
            noise = torch.randn(6, 6, generator=generator, dtype=torch.float64)
            matrix = nearest_of_its_class(wanted + torch.eye(6) * (trial % 3) + noise, scores)
            right = sum(map(int.__eq__, choices(matrix, selfmask), related))
            assert Fraction(right, 6) <= ceiling.fraction
        assert ceiling.reason

    def test_is_attained(self, kind: Kind, scores: Scores, selfmask: bool) -> None:
        related = Relation(kind, length=6).related.tolist()
        right = sum(map(int.__eq__, choices(a_best_matrix(kind, scores, selfmask), selfmask), related))
        assert Fraction(right, 6) == argmax_ceiling(kind, 6, scores, selfmask).fraction


def a_best_matrix(kind: Kind, scores: Scores, selfmask: bool) -> Tensor:
    """Scores of 6 tokens, of the given class, that reach its ceiling: a chain of growing scores along each cycle."""
    related = Relation(kind, length=6).related
    if scores == "general":
        return torch.eye(6, dtype=torch.float64)[related]
    growth = 4.0 ** torch.arange(6, dtype=torch.float64)
    links = torch.zeros(6, 6, dtype=torch.float64)
    for i, j in enumerate(related.tolist()):
        if i != j and (j > i or kind == "swap"):
            links[i, j] = links[j, i] = growth[min(i, j)] + 0.1
    if kind == "identity":
        matrix = torch.eye(6, dtype=torch.float64)
    elif scores == "psd" and not selfmask:
        matrix = links + growth.diag()
    elif scores == "symmetric" and not selfmask:
        matrix = links
    else:
        matrix = links + torch.eye(6) * 10_000
    assert torch.equal(matrix, matrix.T)
    if scores != "symmetric":
        assert float(torch.linalg.eigvalsh(matrix).min()) > 0
    if scores == "equal norms":
        assert len(set(matrix.diag().tolist())) == 1
    return matrix


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("cycle", {"length": 13}, "cycle: length must divide by 3.* got 13, the nearest that does is 12"),
        ("swap", {"length": 7}, "swap: length must divide by 2"),
        ("cycle", {"length": 0}, "cycle: length must be a whole number at least 3, got 0"),
        ("cycle", {"length": 24}, "cycle: names must be a whole number at least 24, got 12"),
        ("swap", {"payloads": 1}, "swap: payloads must be a whole number at least 2, got 1"),
        ("shift", {"length": 1}, "shift: length must be a whole number at least 2"),
        ("shift", {"vocabulary": 1}, "shift: vocabulary must be a whole number at least 2"),
        ("shift", {"positions": "none"}, "shift: positions must be one of rotary, learned; got 'none'"),
        ("shift", {"offset": 16}, "shift: offset must be a whole number from -15 to 15, got 16"),
        ("shift", {"causal": True}, "shift: offset must be a whole number from -15 to -1, got 1"),
        ("shift", {"offset": 0}, "shift: offset must not be 0"),
        ("induction", {"longest": 24}, "induction: longest must be a whole number from 2 to 23, got 24"),
        ("induction", {"shortest": 13}, "induction: shortest must be a whole number from 2 to 12"),
        ("induction", {"vocabulary": 11}, "induction: vocabulary must be a whole number at least 12"),
        ("relation", {"kind": "swap", "length": 9}, "relation of swap: length must divide by 2"),
        ("relation", {"kind": "3-cycles", "length": 8}, "relation of 3-cycles: .* got 8, the nearest that does is 9"),
        ("relation", {"kind": "identity", "length": 1}, "relation: length must be a whole number at least 2"),
        ("reverse", {"length": 1}, "reverse: length must be a whole number at least 2, got 1"),
        ("sort", {"vocabulary": 1}, "sort: vocabulary must be a whole number at least 2, got 1"),
        ("recall", {"length": 15}, "recall: length must be a whole number at least 16, got 15"),
        ("recall", {"vocabulary": 7}, "recall: vocabulary must be a whole number at least 8, got 7"),
        ("recall", {"pairs": 0}, "recall: pairs must be a whole number at least 1, got 0"),
        ("dyck", {"length": 7}, "dyck: length must be even, for every bracket is closed; got 7"),
        ("dyck", {"depth": 0}, "dyck: depth must be a whole number at least 1, got 0"),
        ("dyck", {"types": 1}, "dyck: types must be a whole number at least 2, got 1"),
        ("cicle", {}, r"unknown task 'cicle' \(did you mean 'cycle'\?\); known are cycle, swap, shift"),
        ("zzz", {}, "unknown task 'zzz'; known are cycle"),
        ("shift", {"vocabulari": 3}, r"option of task shift 'vocabulari'.*did you mean 'vocabulary'.*length"),
    ],
)
def test_refusals_are_sentences(name: str, options: dict[str, object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_task(name, **options)


@pytest.mark.parametrize("value", [True, -1, 6])
def test_a_size_is_a_whole_number_within_its_bounds(value: int) -> None:
    with pytest.raises(ValueError, match=f"task: size must be a whole number from 0 to 5, got {value}"):
        check_size("task", "size", value, 0, 5)
    check_size("task", "size", 0, 0, 5)
    check_size("task", "size", 5, 0, 5)


def test_a_choice_is_one_of_the_known() -> None:
    check_choice("task", "colour", "red", ("red", "blue"))
    with pytest.raises(ValueError, match="task: colour must be one of red, blue; got 'green'"):
        check_choice("task", "colour", "green", ("red", "blue"))


def test_names_of_tasks_are_those_under_which_they_are_known() -> None:
    assert all(make_task(name).name == name for name in TASKS)


@pytest.mark.parametrize(("number", "of"), [(2, 5), (3, 3), (1, 7)])
def test_distinct_draws_every_ordered_choice_equally_often(number: int, of: int) -> None:
    count = 30_000
    seen = Counter(map(tuple, distinct(count, number, of, seeded()).tolist()))
    choices = 1
    for factor in range(of - number + 1, of + 1):
        choices *= factor
    assert len(seen) == choices
    assert all(len(set(choice)) == number for choice in seen)
    expected = count / choices
    chi_squared = sum((n - expected) ** 2 / expected for n in seen.values())
    assert chi_squared < choices - 1 + 5 * (2 * (choices - 1)) ** 0.5


def test_permutations_hold_each_symbol_once() -> None:
    rows = permutations(31, 7, seeded())
    assert torch.equal(rows.sort(dim=1).values, torch.arange(7).expand(31, 7))
    assert len(set(map(tuple, rows.tolist()))) > 25
