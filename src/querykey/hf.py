"""querykey inside the transformers library.

    import querykey.hf
    querykey.hf.register()
    model = AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="querykey-selfmask")

`register` offers the attention functions that `querykey.models.interface` lists. After this module is imported, the
Auto classes load folders that `querykey convert` wrote: `AutoModelForCausalLM.from_pretrained(DIR)`.
"""

from __future__ import annotations

from querykey import modeling
from querykey.models.interface import NAMES, register

modeling.register()

__all__ = ["NAMES", "register"]
