"""Where a checkpoint's bytes come from: a folder, or a repository on the Hub, read by ranges."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol, runtime_checkable

from querykey.checkpoint.headmap import CheckpointError
from querykey.extras import load

ATTEMPTS, WAIT = 5, 1.0  # tries per request, and the seconds before the second one, doubling from there
BUSY = (408, 429, 500, 502, 503, 504)  # answers after which asking again may help


@runtime_checkable
class File(Protocol):
    """Bytes that can be read by ranges; two that lie less than `gap` bytes apart are better read as one."""

    @property
    def name(self) -> str:
        """What to call it in messages."""
        ...

    @property
    def size(self) -> int:
        """Bytes in all."""
        ...

    @property
    def gap(self) -> int:
        """Bytes."""
        ...

    def read_into(self, start: int, target: memoryview) -> None:
        """Fills `target` with the bytes from `start`; raises CheckpointError where there are fewer."""
        ...


@runtime_checkable
class Source(Protocol):
    """The files of one checkpoint."""

    @property
    def place(self) -> str:
        """What messages call the checkpoint."""
        ...

    @property
    def revision(self) -> str | None:
        """The commit, for a repository."""
        ...

    @property
    def names(self) -> frozenset[str]:
        """The files there are."""
        ...

    def file(self, name: str) -> File:
        """One of them, to be read by ranges."""
        ...

    def path(self, name: str) -> Path:
        """One of them, whole, on this machine."""
        ...


class LocalFile:
    """A file on this machine. Positioned reads leave nothing resident, as mapped memory would."""

    gap = 0

    def __init__(self, path: Path) -> None:
        self.path, self.name, self.size = path, path.name, path.stat().st_size

    def read_into(self, start: int, target: memoryview) -> None:
        """As in File."""
        with self.path.open("rb", buffering=0) as file:
            file.seek(start)
            filled = 0
            while filled < len(target):
                count = file.readinto(target[filled:])
                if not count:
                    raise torn(self.name, start + len(target), self.size)
                filled += count


class RemoteFile:
    """A file behind a server that answers range requests. What stops in the middle is asked for again from there."""

    gap = 1 << 22  # about what a link carries while a request goes back and forth

    def __init__(self, name: str, url: str, size: int) -> None:
        self.name, self.url, self.size = name, url, size

    def read_into(self, start: int, target: memoryview) -> None:
        """As in File."""
        filled, problem = 0, "nothing"
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(WAIT * 2 ** (attempt - 1))
            try:
                filled += self._request(start + filled, target[filled:])
                problem = f"only the first {filled} of {len(target)} bytes"
            except CheckpointError:
                raise
            except Exception as error:  # whatever the transport raises: a refused, reset or timed-out connection
                problem = f"an error ({error})"
            if filled == len(target):
                return
        raise CheckpointError(
            f"{self.name}: {ATTEMPTS} requests for bytes {start} to {start + len(target)} gave {problem}; "
            "try again later, or download the checkpoint and give its folder"
        )

    def _request(self, start: int, target: memoryview) -> int:
        """Asks once; the number of bytes that came, also where the connection broke after them."""
        headers = load("huggingface_hub.utils", "inspect").build_hf_headers()
        headers |= {"Range": f"bytes={start}-{start + len(target) - 1}", "Accept-Encoding": "identity"}
        session = load("huggingface_hub.utils", "inspect").get_session()
        filled = 0
        with session.stream("GET", self.url, headers=headers, timeout=30) as response:
            if response.status_code in BUSY:
                raise ConnectionError(f"status {response.status_code}")
            if response.status_code == 416:
                raise torn(self.name, start + len(target), self.size)
            if response.status_code == 200:
                raise CheckpointError(
                    f"{self.name}: the server answers without ranges, so that only whole files could be read; "
                    "download the checkpoint and give its folder"
                )
            if response.status_code != 206:
                raise CheckpointError(f"{self.name}: the server answers with status {response.status_code}")
            try:
                for chunk in response.iter_raw():
                    target[filled : filled + len(chunk)] = chunk
                    filled += len(chunk)
            except Exception:
                if not filled:
                    raise
        return filled


class Folder:
    """A checkpoint in a folder; the model may lie in a folder below, as in sentence-transformers' layout."""

    revision = None

    def __init__(self, folder: Path) -> None:
        inner = folder / "0_Transformer"
        if not (folder / "config.json").exists() and (inner / "config.json").exists():
            folder = inner
        self.folder, self.place = folder, str(folder)
        self.names = frozenset(path.name for path in folder.iterdir() if path.is_file())

    def file(self, name: str) -> LocalFile:
        """As in Source."""
        return LocalFile(self.folder / name)

    def path(self, name: str) -> Path:
        """As in Source."""
        return self.folder / name


class Hub:
    """A repository on the Hub at one commit; what the local cache holds of it is read from there."""

    def __init__(self, repository: str, revision: str | None) -> None:
        self.api = load("huggingface_hub", "inspect").HfApi()
        try:
            info = self.api.model_info(repository, revision=revision, files_metadata=True)
        except Exception as error:  # the transport's and the library's, which have no common type
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(
                f"'{repository}' is neither a folder here nor a model that the Hub gives out: {reason}"
            ) from error
        self.place, self.revision = repository, info.sha
        self.sizes = {file.rfilename: file.size for file in info.siblings}
        self.names = frozenset(self.sizes)

    def file(self, name: str) -> File:
        """As in Source."""
        hub = load("huggingface_hub", "inspect")
        cached = hub.try_to_load_from_cache(self.place, name, revision=self.revision)
        if isinstance(cached, str):
            return LocalFile(Path(cached))
        url = hub.hf_hub_url(self.place, name, revision=self.revision, endpoint=self.api.endpoint)
        return RemoteFile(name, url, self.sizes[name])

    def path(self, name: str) -> Path:
        """As in Source."""
        try:
            return Path(self.api.hf_hub_download(self.place, name, revision=self.revision))
        except Exception as error:  # as above
            reason = str(error).strip().splitlines()[0]
            raise CheckpointError(f"{name} of '{self.place}' cannot be downloaded: {reason}") from error


def open_source(path_or_id: str | Path, revision: str | None) -> Source:
    """The folder of that path, else the repository of that name."""
    path = Path(path_or_id)
    if path.is_dir():
        return Folder(path)
    if path.exists():
        raise CheckpointError(f"'{path}' is a file; give the folder that holds it and config.json")
    return Hub(str(path_or_id), revision)


def torn(name: str, needed: int, size: int) -> CheckpointError:
    """The error for a file that is too short."""
    return CheckpointError(
        f"{name} is cut off: it has {size} bytes and should have {needed} or more; download or save it again"
    )
