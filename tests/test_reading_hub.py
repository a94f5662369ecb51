"""Checkpoints on the Hub: read by ranges from a server on this machine, with answers that stop or are refused."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from checkpoints import Hub, assert_equal, tiny_model
from querykey.checkpoint import CheckpointError, open_checkpoint


@pytest.fixture
def hub(llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A server with the tiny Llama in shards, as the repository someone/tiny."""
    tiny_model("llama").save_pretrained(llama, max_shard_size="20KB")
    (llama / "model.safetensors").unlink(missing_ok=True)
    with Hub("someone/tiny", llama) as server:
        server.stands_for_the_hub(monkeypatch, tmp_path / "cache")
        yield server


def test_a_repository_is_read_by_ranges(hub: Hub, llama: Path) -> None:
    local = open_checkpoint(llama)
    remote = open_checkpoint("someone/tiny", revision="main")
    assert remote.revision == hub.commit
    for number in range(2):
        assert_equal(remote.read(number, values=True), local.read(number, values=True))
    asked = [(name, stop - start) for name, start, stop in hub.ranges]
    assert {name for name, _ in asked} <= hub.shards
    assert all(hub.sizes[name] > length for name, length in asked)  # never a whole shard
    assert not hub.whole & hub.shards
    assert sum(length for _, length in asked) == remote.bytes_read
    assert f"/someone/tiny/resolve/{hub.commit}/" in hub.paths[-1]


def test_a_cached_repository_is_read_without_the_hub(hub: Hub, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = llama.parent / "cache" / "models--someone--tiny"
    shutil.copytree(llama, cache / "snapshots" / hub.commit)
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text(hub.commit)
    expected = open_checkpoint(llama).read(1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached = open_checkpoint("someone/tiny")
    assert (cached.place, cached.revision) == ("someone/tiny", hub.commit)
    assert_equal(cached.read(1), expected)
    with pytest.raises(CheckpointError, match=r"'no/model' is neither a file .* nor in the local cache"):
        open_checkpoint("no/model")


def test_a_revision_that_is_not_there_is_reported(hub: Hub) -> None:
    with pytest.raises(
        CheckpointError, match=r"'someone/tiny' is neither a file or folder here, .* nor a model that the"
    ):
        open_checkpoint("someone/tiny", revision="no-such-branch")
    with pytest.raises(CheckpointError, match="'no/model' is neither"):
        open_checkpoint("no/model")


def test_an_answer_that_stops_in_the_middle_is_asked_for_again(hub: Hub, llama: Path) -> None:
    remote = open_checkpoint("someone/tiny")
    hub.stops_after = [100, 7, 0]  # bytes of the next answers, then none stops
    assert_equal(remote.read(0), open_checkpoint(llama).read(0))
    assert not hub.stops_after
    hub.stops_after = [3] * 100
    with pytest.raises(
        CheckpointError, match=r"5 requests for bytes \d+ to \d+ gave only the first 15 of .* try again later"
    ):
        remote.read(1)


def test_a_busy_server_is_asked_again(hub: Hub, llama: Path) -> None:
    remote = open_checkpoint("someone/tiny")
    hub.failures = [503, 429]
    assert_equal(remote.read(0), open_checkpoint(llama).read(0))
    hub.failures = [503] * 100
    with pytest.raises(CheckpointError, match=r"5 requests .* gave an error \(status 503\)"):
        remote.read(1)
    hub.failures = [403]
    with pytest.raises(CheckpointError, match="the server answers with status 403"):
        remote.read(1)


def test_a_server_without_ranges_is_refused_before_it_sends_a_shard(hub: Hub) -> None:
    hub.answers_ranges = False
    with pytest.raises(
        CheckpointError, match=r"answers without ranges, .* download the checkpoint and give its folder"
    ):
        open_checkpoint("someone/tiny").read(0)


def test_pickled_weights_are_not_read_from_the_hub(hub: Hub, llama: Path) -> None:
    for shard in hub.shards | {"model.safetensors.index.json"}:
        (llama / shard).unlink()
    torch.save({}, llama / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"holds pytorch_model\.bin only, which cannot be read in parts"):
        open_checkpoint("someone/tiny")
