"""Text: what is read, how it is split, and that a window scores nothing from another document or split."""

from __future__ import annotations

import hashlib
import itertools
import math
import os
import pickle
import random
import sysconfig
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from querykey.tasks import Corpus, MaskedText, Split, Task, Text, make_task
from querykey.tasks.corpus import SPLITS, Documents

TOO_SHORT = (
    "too short for length 10: a window needs 11 bytes in a row, and all documents of the validation split together "
    "make a row of 10"
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def words(size: int, seed: int) -> bytes:
    return bytes(random.Random(seed).choices(range(32, 127), k=size))


def split_into_documents(part: Documents) -> list[bytes]:
    ends = part.ends.tolist()
    return [bytes(part.data[a:b].tolist()) for a, b in zip([0, *ends], ends, strict=False)]


def numbered(sizes: list[int]) -> Documents:
    """Documents in which every byte tells its document and its place: 16 documents of up to 16 bytes."""
    data = [16 * document + place for document, size in enumerate(sizes) for place in range(size)]
    return Documents(torch.tensor(data, dtype=torch.uint8), torch.tensor(sizes).cumsum(0), len(data))


def corpus_of(part: Documents) -> Corpus:
    return Corpus("hash", "numbered", 256, part, part, part)


@given(
    sizes=st.lists(st.integers(1, 16), min_size=1, max_size=16).filter(lambda sizes: sum(sizes) - len(sizes) >= 7),
    length=st.integers(1, 7),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_a_window_counts_to_the_end_of_its_document_and_no_further(sizes: list[int], length: int, seed: int) -> None:
    examples = Text(corpus_of(numbered(sizes)), length=length).sample(23, seeded(seed), "test")
    assert examples.inputs.shape == (23, length, 1)
    for inputs, targets, counted in zip(
        examples.inputs.squeeze(-1).tolist(), examples.targets.tolist(), examples.counted.tolist(), strict=True
    ):
        document, start = divmod(inputs[0], 16)
        left = sizes[document] - start - 1
        assert counted == [place < left for place in range(length)]
        assert counted[0]
        for place in range(min(left, length)):
            assert inputs[place] == 16 * document + start + place
            assert targets[place] == inputs[place] + 1
        assert not any(targets[left:])


def test_every_byte_with_a_successor_is_an_equally_likely_start() -> None:
    sizes = [3, 1, 16, 2, 1, 5]
    examples = Text(corpus_of(numbered(sizes)), length=2).sample(22_000, seeded())
    starts = Counter(examples.inputs[:, 0, 0].tolist())
    assert set(starts) == {16 * d + place for d, size in enumerate(sizes) for place in range(size - 1)}
    assert min(starts.values()) > 850  # expected 1000, standard deviation 31
    assert max(starts.values()) < 1150


def test_splits_by_content_whatever_the_files_are_called(tmp_path: Path) -> None:
    contents = [words(100 + i, seed=i) for i in range(200)]
    for folder, order in (("a", contents), ("b/deep", contents[::-1])):
        for i, content in enumerate(order):
            path = tmp_path / folder / f"{i}.bin"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    (tmp_path / "b" / "copy of one").write_bytes(contents[0])
    corpus, same = Corpus.read(tmp_path / "a"), Corpus.read(str(tmp_path / "b"))
    assert corpus == same
    assert corpus.data_hash == same.data_hash
    assert "split by document" in corpus.description
    parts = {split: split_into_documents(getattr(same, split)) for split in SPLITS}
    assert sorted(document for part in parts.values() for document in part) == sorted(contents)
    assert len(parts["train"]) > 160
    assert len(parts["validation"]) > 2
    assert len(parts["test"]) > 2
    for split, low, high in zip(SPLITS, (0, 90, 95), (90, 95, 100), strict=True):
        for document in parts[split]:
            assert low <= int.from_bytes(hashlib.sha256(document).digest()[:8], "big") % 100 < high


def test_one_more_document_moves_none_of_the_others() -> None:
    documents = [words(1000, seed=i) for i in range(300)]
    before = Corpus.from_documents(documents, "before")
    after = Corpus.from_documents([*documents, b"one more"], "after")
    assert before.data_hash != after.data_hash
    for split in SPLITS:
        old, new = (set(split_into_documents(getattr(corpus, split))) for corpus in (before, after))
        assert old <= new
        assert new - old <= {b"one more"}


def test_a_single_file_is_split_into_contiguous_parts(tmp_path: Path) -> None:
    content = words(1987, seed=1)
    (tmp_path / "book").write_bytes(content)
    corpus = Corpus.read(tmp_path / "book")
    parts = [split_into_documents(getattr(corpus, split)) for split in SPLITS]
    assert parts == [[content[:1788]], [content[1788:1887]], [content[1887:]]]
    assert "each document cut into contiguous parts: 1,788 / 99 / 100 bytes" in corpus.description


def fated(split: Split, size: int, number: int) -> list[bytes]:
    """Different documents whose content sends them to one split."""
    low, high = {"train": (0, 90), "validation": (90, 95), "test": (95, 100)}[split]
    drawn = (words(size, seed) for seed in itertools.count())
    right = (d for d in drawn if low <= int.from_bytes(hashlib.sha256(d).digest()[:8], "big") % 100 < high)
    return list(itertools.islice(right, number))


@pytest.mark.parametrize(
    ("train", "validation", "how"),
    [
        (fated("train", 50, 17), 50, "each document cut"),  # 19 documents
        (fated("train", 50, 18), 50, "split by document"),
        (fated("train", 50, 18), 10, "each document cut"),  # 10 bytes of 960 for validation: less than 1.25 %
        (fated("train", 50, 18), 15, "split by document"),
        (fated("train", 50, 18) + fated("train", 4000, 1), 50, "each document cut"),
    ],
)
def test_few_or_unbalanced_documents_are_each_cut(train: list[bytes], validation: int, how: str) -> None:
    documents = [*train, *fated("validation", validation, 1), *fated("test", 50, 1)]
    corpus = Corpus.from_documents(documents, "documents")
    assert how in corpus.description
    for split, share in zip(SPLITS, (0.9, 0.05, 0.05), strict=True):
        pieces = split_into_documents(getattr(corpus, split))
        assert all(any(piece in document for document in documents) for piece in pieces)
        if how == "each document cut":
            assert len(pieces) == len(documents) - (validation == 10) * (split == "validation")
            assert len(b"".join(pieces)) == pytest.approx(share * sum(map(len, documents)), rel=0.35)


def test_tiny_documents_leave_no_empty_parts() -> None:
    corpus = Corpus.from_documents([b"ab", b"c", words(100, seed=0)], "tiny")
    pieces = [piece for split in SPLITS for piece in split_into_documents(getattr(corpus, split))]
    assert all(pieces)
    assert sum(map(len, pieces)) == 103


def test_files_folders_and_globs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i, name in enumerate(["x/a.txt", "x/b.md", "x/y/a.txt", "x/.git/hidden", "x/.hidden", "z/a.txt", "home/t"]):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(words(60, seed=i))
    (tmp_path / "x" / "link").symlink_to(tmp_path / "z" / "a.txt")
    (tmp_path / "x" / "odd[1].txt").write_bytes(words(60, seed=7))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    def size(*paths: str | Path) -> int:
        corpus = Corpus.read(paths)
        return sum(len(getattr(corpus, split).data) for split in SPLITS) // 60

    assert size("x") == 5
    assert size("x/*.txt") == 2
    assert size("x/**/*.txt") == 3
    assert size("x/a.txt", tmp_path / "z") == 2
    assert size("x/a.txt", "x", "x/*") == 5
    assert size("x/odd[1].txt") == 1
    assert size("~/t") == 1


def test_at_most_the_limit_is_read_and_said_so(tmp_path: Path) -> None:
    for i in range(10):
        (tmp_path / str(i)).write_bytes(words(100, seed=i))
    corpus = Corpus.read(tmp_path, limit=350)
    assert sum(len(getattr(corpus, split).data) for split in SPLITS) == 350
    assert "4 documents, 350 bytes (the limit);" in corpus.description
    by_name = sorted(range(10), key=lambda i: hashlib.sha256(str(i).encode()).digest())
    first = [words(100, seed=i) for i in by_name[:4]]
    assert corpus == Corpus.from_documents([*first[:3], first[3][:50]], "")
    assert "the limit" not in Corpus.read(tmp_path).description
    assert Text.read(tmp_path, length=5, limit=350).corpus == corpus


def test_the_default_is_the_standard_library_without_its_tests() -> None:
    corpus = Corpus.standard_library(limit=30_000_000)
    documents = {piece for split in SPLITS for piece in split_into_documents(getattr(corpus, split))}
    root = Path(sysconfig.get_path("stdlib"))
    assert (root / "argparse.py").read_bytes() in documents
    left_out = [
        *root.glob("_sysconfigdata*.py"),
        *root.glob("test/test_a*.py"),
        *root.glob("site-packages/*/__main__.py"),
    ]
    assert not documents & {path.read_bytes() for path in left_out}
    assert "split by document" in corpus.description
    default = Text.read()
    assert default.corpus == Corpus.standard_library()
    assert sum(len(getattr(default.corpus, split).data) for split in SPLITS) <= 8_000_000


def test_is_a_task_made_by_name(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(words(2000, seed=3))
    task = make_task("text", paths=[tmp_path / "text"], length=11)
    assert isinstance(task, Task)
    assert isinstance(task, Text)
    assert (task.length, task.vocabulary, task.classes, task.features, task.causal) == (11, 256, 256, 1, True)
    assert task.data_hash == task.corpus.data_hash
    first, again, other = (task.sample(7, seeded(seed)).inputs for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_each_split_is_sampled_from_its_own_bytes() -> None:
    parts = [Documents(torch.full((50,), byte, dtype=torch.uint8), torch.tensor([50]), 50) for byte in (1, 2, 3)]
    task = Text(Corpus("", "", 256, *parts), length=5)
    for split, byte in zip(SPLITS, (1, 2, 3), strict=True):
        examples = task.sample(9, seeded(), split)
        assert set(examples.inputs.flatten().tolist()) == {byte}
        assert set(examples.targets[examples.counted].tolist()) == {byte}


def test_chance_is_the_cross_entropy_of_byte_frequencies() -> None:
    train, test = words(5000, seed=0), b"hello, world" * 9
    parts = [
        Documents(torch.tensor(list(data), dtype=torch.uint8), torch.tensor([len(data)]), len(data))
        for data in (train, test, test)
    ]
    task = Text(Corpus("", "", 256, *parts), length=5)
    seen = Counter(train)
    bits = [-math.log2((seen[byte] + 1) / (len(train) + 256)) for byte in test]
    assert task.chance == pytest.approx(sum(bits) / len(bits), rel=1e-12)


def test_travels_to_another_process_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "text").write_bytes(words(100_000, seed=5))
    task = Text.read(tmp_path / "text", length=3)
    pickled = pickle.dumps(task)
    assert len(pickled) < 110_000
    copy = pickle.loads(pickled)
    assert copy == task
    assert torch.equal(copy.sample(5, seeded()).inputs, task.sample(5, seeded()).inputs)


def test_the_hash_tells_bytes_and_borders_apart() -> None:
    whole = words(400, seed=0)
    hashes = {
        Corpus.from_documents(documents, "").data_hash
        for documents in ([whole], [whole[:200], whole[200:]], [whole[:-1] + b"\0"], [whole[:-1]])
    }
    assert len(hashes) == 4


def test_the_hash_does_not_change_from_process_to_process_or_release_to_release() -> None:
    corpus = Corpus.from_documents([bytes(range(256)) * 2], "known")
    assert corpus.data_hash == "eaff11c3712dc06e615e0553a669234e3a3a1876902a7f09a4ca4b2b7579c1a9"


class TestRefusals:
    def test_a_missing_path(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"there is no text at .*nowhere; give files, folders or globs that exist"):
            Corpus.read([tmp_path / "nowhere"])

    def test_a_glob_that_matches_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"the glob .*\*\.txt matches nothing"):
            Corpus.read(str(tmp_path / "*.txt"))

    def test_nothing_given(self) -> None:
        with pytest.raises(ValueError, match="no text was given"):
            Corpus.read([])

    def test_a_folder_without_files(self, tmp_path: Path) -> None:
        (tmp_path / ".hidden").write_bytes(b"x")
        with pytest.raises(ValueError, match="holds no files"):
            Corpus.read(tmp_path)

    def test_an_empty_file(self, tmp_path: Path) -> None:
        (tmp_path / "empty").touch()
        with pytest.raises(ValueError, match=r"the text is empty: .*empty: 1 documents, 0 bytes"):
            Corpus.read(tmp_path / "empty")

    @pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that exists and cannot be read")
    def test_an_unreadable_file(self) -> None:
        with pytest.raises(ValueError, match=r"the text /proc/\d+/mem cannot be read: Input/output error"):
            Corpus.read("/proc/self/mem")

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_forbidden_folder(self, tmp_path: Path) -> None:
        tmp_path.chmod(0)
        with pytest.raises(ValueError, match="cannot be read: Permission denied"):
            Corpus.read(tmp_path)

    def test_a_text_too_short_for_the_length(self, tmp_path: Path) -> None:
        (tmp_path / "short").write_bytes(words(210, seed=0))
        with pytest.raises(ValueError, match=TOO_SHORT):
            Text.read(tmp_path / "short", length=10)
        (tmp_path / "enough").write_bytes(words(220, seed=0))
        assert Text.read(tmp_path / "enough", length=10).length == 10

    def test_length_and_limit(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_bytes(words(500, seed=0))
        with pytest.raises(ValueError, match="text: length must be a whole number at least 1, got 0"):
            Text.read(tmp_path / "text", length=0)
        with pytest.raises(ValueError, match="text: limit must be a whole number at least 1, got 0"):
            Text.read(tmp_path / "text", limit=0)


@given(
    sizes=st.lists(st.integers(1, 16), min_size=1, max_size=16).filter(lambda sizes: sum(sizes) - len(sizes) >= 13),
    length=st.integers(1, 13),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_hidden_bytes_are_some_of_one_document_and_the_others_are_shown(
    sizes: list[int], length: int, seed: int
) -> None:
    task = MaskedText(corpus_of(numbered(sizes)), length=length)
    assert (task.vocabulary, task.classes, task.causal) == (257, 256, False)
    examples = task.sample(23, seeded(seed), "test")
    for inputs, targets, counted in zip(
        examples.inputs.squeeze(-1).tolist(), examples.targets.tolist(), examples.counted.tolist(), strict=True
    ):
        tokens = [target if hidden else shown for shown, target, hidden in zip(inputs, targets, counted, strict=True)]
        document, start = divmod(tokens[0], 16)
        inside = min(sizes[document] - start, length)
        assert tokens[:inside] == [16 * document + start + place for place in range(inside)]
        assert all(inputs[place] == 256 for place in range(length) if counted[place])
        assert not any(counted[inside:])
        assert sum(counted) == max(1, round(0.15 * inside))


def test_any_byte_may_be_hidden() -> None:
    task = make_task("masked-text", length=20)
    counted = task.sample(4000, seeded()).counted.double().mean(dim=0)
    assert counted.min() > 0.12
    assert counted.max() < 0.18
    assert make_task("masked-text", length=20, causal=True).causal
