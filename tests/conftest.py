"""Shape annotations are checked while the tests run: jaxtyping with beartype over the whole package."""

from contextlib import contextmanager

import pytest
import torch
from jaxtyping import config, install_import_hook

# An int is a float to Python's type checkers (PEP 484), and so here.
install_import_hook("querykey", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

from querykey.stats import bootstrap  # noqa: E402 - after the hook

torch.set_num_threads(1)  # what is tested is small


@contextmanager
def _without_checks():
    config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        config.update("jaxtyping_disable", False)


# 500 resamples of a study's tests are very many small calls, each of which is checked in test_statistics.py.
bootstrap.changed_findings = _without_checks()(bootstrap.changed_findings)


@pytest.fixture
def unchecked():
    """Without the checks: for what our own sentences must refuse, and for loops over very many small calls."""
    with _without_checks():
        yield


@pytest.fixture
def llama(tmp_path):
    """A folder with a tiny Llama: 6 query heads and 3 key heads of 8, width 48, with biases."""
    from checkpoints import tiny_model  # transformers, which few tests need

    tiny_model("llama").save_pretrained(tmp_path / "llama")
    return tmp_path / "llama"
