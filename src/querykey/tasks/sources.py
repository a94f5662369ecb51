"""Where text comes from: files, folders and globs, Python's own sources, and Hugging Face data sets.

Each gives its documents one after another, as bytes in UTF-8, so that no more is read than is wanted.
"""

from __future__ import annotations

import glob
import os
import sysconfig
from collections.abc import Collection, Iterator, Sequence
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, NoReturn

from querykey.extras import needs
from querykey.tasks.encoding import as_utf8

DATA_SET = "hf:"
STRINGS = ("string", "large_string")  # the types of a column of text


def standard_library(limit: int) -> tuple[list[bytes], str]:
    """Up to `limit` bytes of the running Python's own sources, without tests, and what they are."""
    root = sysconfig.get_path("stdlib")
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
    files = {
        path: name
        for path, name in _walk(root, skipped).items()
        if name.endswith(".py") and "_sysconfigdata" not in name  # which describes the machine that built this Python
    }
    if not files:
        raise ValueError(f"this Python has no sources in {root}; give other text, as files or folders")
    return _take(_files(files, limit), limit, "Python's standard library")


def read(paths: Sequence[str | os.PathLike[str]], limit: int) -> tuple[list[bytes], str]:
    """Up to `limit` bytes of files, folders, globs and data sets ("hf:NAME" or "hf:NAME:CONFIG"), and what they are.

    A file is a document, and so is a row of a data set. Files are read in the order of a hash of their names, rows
    in their own. Files in another encoding become UTF-8.

    Raises:
        ValueError: if there is nothing at a path, it cannot be read, or a file is no text.
    """
    given = [os.fspath(path) for path in paths]
    if not given:
        raise ValueError("no text was given; give files, folders, globs or data sets (hf:NAME)")
    sets = [path for path in given if path.startswith(DATA_SET)]
    local = [path for path in given if not path.startswith(DATA_SET)]
    files = {file: name for path in local for file, name in _find(os.path.expanduser(path)).items()}
    if local and not files:
        raise ValueError(f"{', '.join(local)} holds no files (hidden ones are skipped); give others")
    rows = (_rows(name.removeprefix(DATA_SET)) for name in sets)
    return _take(chain(_files(files, limit), *rows), limit, ", ".join(given))


def _take(documents: Iterator[bytes], limit: int, source: str) -> tuple[list[bytes], str]:
    """The first `limit` bytes; the last document may be cut."""
    taken: list[bytes] = []
    left = limit
    for document in documents:
        taken.append(document[:left])
        left -= len(taken[-1])
        if not left:
            break
    reached = "" if left else " (the limit)"
    return taken, f"{source}: {len(taken):,} documents, {limit - left:,} bytes{reached}"


def _find(path: str) -> dict[str, str]:
    """The files that one argument means, and their names: those do not depend on where the files lie."""
    if os.path.isdir(path):
        return _walk(path)
    if os.path.exists(path):
        return {os.path.realpath(path): os.path.basename(path)}
    if not glob.has_magic(path):
        raise ValueError(f"there is no text at {path}; give files, folders or globs that exist")
    matches = sorted(glob.glob(path, recursive=True))
    if not matches:
        raise ValueError(f"the glob {path} matches nothing; give files, folders or globs that exist")
    return {file: name for match in matches for file, name in _find(match).items()}


def _walk(folder: str, skipped: Collection[str] = ()) -> dict[str, str]:
    """All files in a folder but hidden ones, and those in skipped folders."""
    files: dict[str, str] = {}
    for parent, folders, names in os.walk(folder, onerror=_refuse):
        folders[:] = (name for name in folders if not name.startswith(".") and name not in skipped)
        for name in names:
            path = os.path.join(parent, name)
            if not name.startswith(".") and os.path.isfile(path):
                files[os.path.realpath(path)] = Path(path).relative_to(folder).as_posix()
    return files


def _files(files: dict[str, str], limit: int) -> Iterator[bytes]:
    """Contents of files, each up to a limit; the files are given with their names."""
    for path in sorted(files, key=lambda path: (sha256(files[path].encode()).digest(), path)):
        try:
            with open(path, "rb") as file:
                document = file.read(limit)
        except OSError as error:
            error.filename = path  # of a failure after opening, the system does not say it
            _refuse(error)
        yield as_utf8(document, path)


def _refuse(error: OSError) -> NoReturn:
    raise ValueError(f"the text {error.filename} cannot be read: {error.strerror}") from error


def _rows(given: str) -> Iterator[bytes]:
    """The texts of a data set, which stays on disk (memory-mapped) but for some rows at a time."""
    for split in _load(given):
        column = _text_column(split, given)
        for batch in split.select_columns([column]).iter(batch_size=1000):
            yield from (text.encode() for text in batch[column] if text)


def _load(given: str) -> list[Any]:
    """All splits of a data set by its name and configuration, or of one that was saved on disk."""
    with needs("text"):
        import datasets

    folder = os.path.expanduser(given)
    name, _, configuration = given.partition(":")
    try:
        if os.path.isdir(folder):
            found = datasets.load_from_disk(folder)
        else:
            found = datasets.load_dataset(name, configuration or None)
    except Exception as error:  # whatever a hub, a network or a file can raise
        reason = str(error).partition("\n")[0]
        raise ValueError(f"the data set {given} cannot be loaded: {reason}") from error
    return list(found.values()) if isinstance(found, dict) else [found]


def _text_column(split: Any, given: str) -> str:
    columns = [name for name, feature in split.features.items() if getattr(feature, "dtype", "") in STRINGS]
    if "text" in columns:
        return "text"
    if len(columns) == 1:
        return str(columns[0])
    raise ValueError(
        f"the data set {given} must have a column 'text', or one column of strings alone; its columns are "
        f"{', '.join(split.column_names)}"
    )
