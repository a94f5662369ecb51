"""Shape annotations are checked while the tests run: jaxtyping with beartype over the whole package."""

import torch
from jaxtyping import install_import_hook

install_import_hook("querykey", "beartype.beartype")

torch.set_num_threads(2)
