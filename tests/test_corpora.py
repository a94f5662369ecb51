"""Text through a tokenizer, and from data sets: the same splits, no padding, and losses that compare."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from querykey.tasks import Corpus, Task, Text, make_task
from querykey.tasks.corpus import SPLITS
from querykey.tasks.tokenizer import PIECE, Tokenizer

tokenizers = pytest.importorskip("tokenizers")
WORDS = ["matrix", "query", "key", "naïve", "值", "\n", "attention", "symmetric ", "  "]


def prose(seed: int, words: int = 120) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=words))


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level tokenizer that loses nothing, and that pads, truncates and adds a special token if it is let."""
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=307,
        special_tokens=["<pad>", "<s>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([prose(seed) for seed in range(20)], trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.enable_padding(pad_id=0, pad_token="<pad>", length=1000)
    tokenizer.enable_truncation(max_length=7)
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """80 documents that are split by document."""
    for seed in range(80):
        (tmp_path / f"{seed}.txt").write_text(prose(seed))
    return tmp_path


def documents_of(corpus: Corpus, split: str) -> list[list[int]]:
    data, ends, _ = getattr(corpus, split)
    symbols = data.tolist()
    return [symbols[a:b] for a, b in zip([0, *ends.tolist()], ends.tolist(), strict=False)]


class TestTokenizer:
    def test_documents_are_those_of_bytes_with_nothing_added(self, folder: Path, tokenizer_file: Path) -> None:
        as_bytes, as_tokens = Corpus.read(folder), Corpus.read(folder, tokenizer=Tokenizer.read(tokenizer_file))
        decode = tokenizers.Tokenizer.from_file(str(tokenizer_file)).decode
        assert "split by document" in as_tokens.description
        for split in SPLITS:
            texts = [bytes(document).decode() for document in documents_of(as_bytes, split)]
            tokens = documents_of(as_tokens, split)
            assert [decode(document, skip_special_tokens=False) for document in tokens] == texts
            assert getattr(as_tokens, split).size == len(getattr(as_bytes, split).data)
            assert 0 < sum(map(len, tokens)) < 0.7 * getattr(as_tokens, split).size
        assert as_tokens.vocabulary == 307
        assert as_tokens.data_hash != as_bytes.data_hash
        assert "read as 307 tokens" in as_tokens.description

    def test_a_long_document_is_encoded_whole(self, tokenizer_file: Path) -> None:
        text = prose(0, words=30_000)
        assert len(text) > 2 * PIECE
        library = tokenizers.Tokenizer.from_file(str(tokenizer_file))
        assert library.decode(Tokenizer.read(tokenizer_file).encode(text)) == text

    def test_is_a_task_whose_windows_stay_in_one_document(self, folder: Path, tokenizer_file: Path) -> None:
        task = make_task("text", paths=[str(folder)], length=11, tokenizer=str(tokenizer_file))
        assert isinstance(task, Task)
        assert isinstance(task, Text)
        assert task.vocabulary == task.classes == 307
        examples = task.sample(200, torch.Generator().manual_seed(0), "test")
        documents = [f" {' '.join(map(str, document))} " for document in documents_of(task.corpus, "test")]
        for inputs, targets, counted in zip(
            examples.inputs.squeeze(-1).tolist(), examples.targets.tolist(), examples.counted.tolist(), strict=True
        ):
            window = inputs[:1] + [target for target, counts in zip(targets, counted, strict=True) if counts]
            assert any(f" {' '.join(map(str, window))} " in document for document in documents)

    def test_losses_are_in_bits_per_byte(self, folder: Path, tokenizer_file: Path) -> None:
        task = Text.read(folder, length=5, tokenizer=tokenizer_file)
        train, test = (task.corpus.train.data.tolist(), task.corpus.test.data.tolist())
        seen = Counter(train)
        bits = -sum(math.log2((seen[token] + 1) / (len(train) + 307)) for token in test)
        size = len(Corpus.read(folder).test.data)
        assert task.chance == pytest.approx(bits / size, rel=1e-9)
        assert task.bytes_per_token("test") == pytest.approx(size / len(test))
        assert Text.read(folder, length=5).bytes_per_token("test") == 1

    def test_the_hash_is_that_of_the_tokens(self, folder: Path, tokenizer_file: Path, tmp_path: Path) -> None:
        copy = tmp_path / "copy"
        copy.write_bytes(tokenizer_file.read_bytes())
        one, same = (Text.read(folder / "*.txt", length=5, tokenizer=path) for path in (tokenizer_file, copy))
        assert one.data_hash == same.data_hash

    def test_tiny_documents_leave_no_empty_parts(self, tokenizer_file: Path) -> None:
        corpus = Corpus.from_documents([b"ab", b"c", prose(0).encode()], "tiny", Tokenizer.read(tokenizer_file))
        assert all(document for split in SPLITS for document in documents_of(corpus, split))

    @pytest.mark.parametrize("content", [None, "{}", "no JSON"])
    def test_a_file_that_is_no_tokenizer(self, content: str | None, tmp_path: Path, folder: Path) -> None:
        path = tmp_path / "odd.json"
        if content is not None:
            path.write_text(content)
        with pytest.raises(
            ValueError, match=r"the tokenizer .*odd\.json cannot be read \(.+\); give 'bytes' or a file"
        ):
            Text.read(folder, tokenizer=path)

    def test_too_few_tokens(self, tmp_path: Path, tokenizer_file: Path) -> None:
        (tmp_path / "short").write_text("attention " * 22)
        Text.read(tmp_path / "short", length=10)
        with pytest.raises(ValueError, match="needs 11 tokens in a row"):
            Text.read(tmp_path / "short", length=10, tokenizer=tokenizer_file)


class TestDataSet:
    @pytest.fixture
    def save(self, tmp_path: Path) -> Callable[..., str]:
        datasets = pytest.importorskip("datasets")

        def save(**splits: dict[str, list[Any]]) -> str:
            path = tmp_path / "saved"
            sets = {name: datasets.Dataset.from_dict(columns) for name, columns in splits.items()}
            (datasets.DatasetDict(sets) if len(sets) > 1 else sets.popitem()[1]).save_to_disk(str(path))
            return f"hf:{path}"

        return save

    def test_rows_are_documents(self, save: Callable[..., str], folder: Path) -> None:
        texts = [path.read_text() for path in sorted(folder.glob("*.txt"))]
        path = save(train={"id": list(range(len(texts))), "text": texts, "title": ["same"] * len(texts)})
        assert Corpus.read(path) == Corpus.read(folder / "*.txt")

    def test_all_its_splits_are_read_and_split_anew(self, save: Callable[..., str]) -> None:
        texts = [prose(seed) for seed in range(60)]
        path = save(train={"story": texts[:40]}, test={"story": [*texts[40:], None, ""]})
        assert Corpus.read(path) == Corpus.from_documents([text.encode() for text in texts], "")

    def test_with_files_beside_it(self, save: Callable[..., str], folder: Path) -> None:
        path = save(train={"text": [prose(seed) for seed in range(100, 130)]})
        both = Corpus.read([path, folder / "*.txt"])
        assert both == Corpus.from_documents([prose(s).encode() for s in (*range(80), *range(100, 130))], "")
        assert "110 documents" in both.description

    def test_no_more_rows_than_the_limit(self, save: Callable[..., str]) -> None:
        texts = [prose(seed) for seed in range(30)]
        corpus = Corpus.read(save(train={"text": texts}), limit=5000)
        assert sum(getattr(corpus, split).size for split in SPLITS) == 5000
        assert "5,000 bytes (the limit)" in corpus.description

    def test_a_task_from_a_data_set_and_a_tokenizer(self, save: Callable[..., str], tokenizer_file: Path) -> None:
        path = save(train={"text": [prose(seed) for seed in range(80)]})
        task = make_task("text", paths=[path], tokenizer=str(tokenizer_file), length=13)
        assert task.sample(3, torch.Generator().manual_seed(0)).inputs.shape == (3, 13, 1)

    def test_name_and_configuration(self, monkeypatch: pytest.MonkeyPatch) -> None:
        datasets = pytest.importorskip("datasets")
        asked: list[tuple[str, str | None]] = []

        def load(name: str, configuration: str | None) -> Any:
            asked.append((name, configuration))
            return datasets.Dataset.from_dict({"text": [prose(seed) for seed in range(9)]})

        monkeypatch.setattr(datasets, "load_dataset", load)
        Corpus.read(["hf:owner/name", "hf:owner/name:config"])
        assert asked == [("owner/name", None), ("owner/name", "config")]

    def test_one_that_cannot_be_loaded(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        datasets = pytest.importorskip("datasets")

        def load(name: str, configuration: str | None) -> Any:
            raise ConnectionError("no way there\nat all")

        monkeypatch.setattr(datasets, "load_dataset", load)
        with pytest.raises(ValueError, match=r"the data set owner/name cannot be loaded: no way there$"):
            Corpus.read("hf:owner/name")
        with pytest.raises(ValueError, match=r"the data set .* cannot be loaded: .+"):
            Corpus.read(f"hf:{tmp_path}")

    def test_one_without_a_column_of_text(self, save: Callable[..., str]) -> None:
        path = save(train={"question": ["a"], "answer": ["b"], "n": [1]})
        with pytest.raises(ValueError, match="one column of strings alone; its columns are question, answer, n"):
            Corpus.read(path)


def test_nothing_heavy_is_imported_for_plain_files() -> None:
    heavy = ("datasets", "tokenizers", "transformers", "pandas")
    code = (
        f"import sys; from querykey.tasks import Text; Text.read({__file__!r}); print(*set({heavy}) & {{*sys.modules}})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("tokens", [False, True])
def test_a_kept_corpus_is_the_same_and_stays_in_its_file(
    tokens: bool, folder: Path, tokenizer_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    made = Text.read(folder, length=7, tokenizer=tokenizer_file if tokens else "bytes")
    path = tmp_path_factory.mktemp("kept") / "corpora" / "text.safetensors"
    made.corpus.save(path)
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]  # no partial file is left
    kept = Text.read(folder / "moved away", length=7, prepared=path)  # what is prepared needs no other
    assert kept.corpus == made.corpus
    assert (kept.corpus.description, kept.vocabulary, kept.chance) == (
        made.corpus.description,
        made.vocabulary,
        made.chance,
    )
    for split in SPLITS:
        ours, theirs = (task.sample(17, torch.Generator().manual_seed(3), split) for task in (kept, made))
        assert all(torch.equal(one, other) for one, other in zip(ours[:3], theirs[:3], strict=True))
        assert kept.bytes_per_token(split) == made.bytes_per_token(split)
    if sys.platform == "linux":
        assert str(path) in Path("/proc/self/maps").read_text()


def test_a_prepared_text_that_is_not_there_is_read_from_its_place(folder: Path) -> None:
    assert Text.read(folder, length=7, prepared=folder / "gone").corpus == Text.read(folder, length=7).corpus
