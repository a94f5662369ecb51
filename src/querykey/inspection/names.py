"""What layers are called: by the model's own number, with the part of the model where one number means several."""

from __future__ import annotations

from collections import Counter

import pandas as pd


def layer_names(heads: pd.DataFrame) -> dict[str, str]:
    """The name of each layer, by its ``module``, in the order of the rows.

    `3`; where layers of several parts have one number, `encoder 3` and `decoder 3`; where that is not enough, the
    module itself. Cross-attention is marked: `decoder 3 cross`.
    """
    layers = heads.drop_duplicates("module")
    modules = [str(module) for module in layers["module"]]
    marks = [" cross" * (kind == "cross") for kind in layers["attention"]]
    short = [f"{number}{mark}" for number, mark in zip(layers["layer"], marks, strict=True)]
    if len(set(short)) < len(short):
        parts = [module.partition(".")[0] for module in modules]
        short = [f"{part} {name}" for part, name in zip(parts, short, strict=True)]
    count, numbered = Counter(short), layers["layer"] >= 0
    return {
        module: name if count[name] == 1 and known else module
        for module, name, known in zip(modules, short, numbered, strict=True)
    }
