"""querykey inside the transformers library.

    import querykey.hf
    querykey.hf.register()
    model = AutoModelForCausalLM.from_pretrained(FOLDER, attn_implementation="querykey-selfmask")
    layer = querykey.hf.from_module(model.model.layers[0].self_attn)        # a SelfAttention with the same results
    querykey.hf.write_to(layer, model.model.layers[0].self_attn)            # and back

`register` offers the attention functions that `querykey.models.interface` lists. After this module is imported, the
Auto classes load folders that `querykey convert` wrote: `AutoModelForCausalLM.from_pretrained(DIR)`.
"""

from __future__ import annotations

from querykey import modeling
from querykey.models.interface import NAMES, register
from querykey.models.layers import from_module, write_to

modeling.register()

__all__ = ["NAMES", "from_module", "register", "write_to"]
