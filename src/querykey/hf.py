"""querykey inside the transformers library.

    import querykey.hf
    querykey.hf.register()
    model = AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="querykey-selfmask")

`register` offers the attention functions that `querykey.models.interface` lists.
"""

from __future__ import annotations

from querykey.models.interface import NAMES, register

__all__ = ["NAMES", "register"]
