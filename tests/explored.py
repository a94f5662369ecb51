"""A served explorer with small models, for the tests of its API and of its page."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest
import torch
import uvicorn
from torch import Tensor
from transformers import AutoModelForCausalLM

from conversions import SMALL, byte_tokenizer, tiny
from querykey.conversion.convert import convert
from querykey.explorer.rounding import Rounded
from querykey.explorer.server import application, listen
from querykey.explorer.subjects import WINDOW, Offer, Subject
from querykey.explorer.tokenizer import ByteTokenizer
from querykey.models.native import NativeModel
from querykey.models.replacements import Replacements
from querykey.transformer import Transformer


def needed(*commands: str) -> str:
    """The path of the first of these commands that is installed; without any, the tests of a file are skipped.

    In continuous integration, where the environment variable CI is set, they fail instead.
    """
    found = next(filter(None, map(shutil.which, commands)), None)
    if found is None and os.environ.get("CI"):
        raise RuntimeError(f"{commands[0]} is not installed, without which tests of the explorer cannot run")
    if found is None:
        pytest.skip(f"needs {commands[0]}", allow_module_level=True)
    return found


def values_of(array: Rounded) -> Tensor:
    """The values of a rounded array, as the page has them; NaN where there is none."""
    numbers = [math.nan if value is None else value for value in array["values"]]
    return torch.tensor(numbers, dtype=torch.float64).view(array["shape"]) / 10.0 ** array["digits"]


def causal_subject() -> Subject:
    """An untrained model of bytes that may only look back, with rotary positions and two heads."""
    model = NativeModel(Transformer(256, 256, 64, dim=24, heads=2, layers=2, causal=True, positions="rotary", seed=1))
    sample = torch.randint(256, (3, 47, 1), generator=torch.Generator().manual_seed(0))
    return Subject(
        "bytes",
        model,
        ByteTokenizer(),
        Replacements.of(model, sample, WINDOW),
        "def f(x): return x",
    )


def converted_beside_its_original(folder: Path) -> Path:
    """A folder that `querykey convert` wrote: half of the cache of a small model, which is there too."""
    tiny().float().save_pretrained(folder / "original")
    byte_tokenizer().save_pretrained(folder / "original")
    model = AutoModelForCausalLM.from_pretrained(folder / "original")
    return convert(model, byte_tokenizer(), **SMALL | {"cache": 0.5}).save(folder / "half")


def offered(**subjects: Subject) -> dict[str, Offer]:
    """Models that are open already."""
    return {name: Offer(name, lambda _, subject=subject: subject, subject) for name, subject in subjects.items()}


@contextmanager
def served(offers: Mapping[str, Offer], first: Mapping[str, str] | None = None, port: int = 0) -> Iterator[int]:
    """The port of a server that runs as long as the context."""
    listener = listen(port)
    server = uvicorn.Server(uvicorn.Config(application(offers, first or {}), log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        thread.join()
        listener.close()


def ask(
    port: int, path: str, body: Any = None, headers: Mapping[str, str] | None = None, raw: bytes | None = None
) -> tuple[int, Any]:
    """The status and the JSON that the server answers."""
    connection = HTTPConnection("127.0.0.1", port, timeout=60)
    content = json.dumps(body).encode() if raw is None else raw
    sent = {"content-type": "application/json"} | dict(headers or {})
    try:
        if body is None and raw is None:
            connection.request("GET", path, headers=dict(headers or {}))
        else:
            connection.request("POST", path, content, sent)
        response = connection.getresponse()
        text = response.read().decode()
        return response.status, json.loads(text) if text.startswith("{") else text
    finally:
        connection.close()
