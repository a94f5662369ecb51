"""Shape annotations are checked while the tests run: jaxtyping with beartype over the whole package."""

import pytest
import torch
from jaxtyping import config, install_import_hook

# An int is a float to Python's type checkers (PEP 484), and so here.
install_import_hook("querykey", "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

torch.set_num_threads(1)  # what is tested is small


@pytest.fixture
def unchecked():
    """Without the checks: for what our own sentences must refuse, and for loops over very many small calls."""
    config.update("jaxtyping_disable", True)
    yield
    config.update("jaxtyping_disable", False)
