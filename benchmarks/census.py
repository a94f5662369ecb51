"""How many of the model types that transformers knows does `querykey inspect` trace?

python benchmarks/census.py                 # all types of AutoModel; takes half an hour, and prints a line for each
python benchmarks/census.py llama clip      # these

Each type is built from its own default configuration, with two layers where it has more, and without weights. A type is
*traced* if every attention in it is a row, *traced in part* if some is named with a reason instead, and has *no
attention* where no softmax of products of queries and keys was found.
"""

from __future__ import annotations

import gc
import signal
import sys
import warnings
from collections import Counter
from typing import Any, NoReturn

import transformers
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from querykey.checkpoint import CheckpointError, ModelMap, probe

NONE = ("it has no attention", "no softmax of products")  # in the message of `probe`
SECONDS = 90  # for one type, at most
DEPTHS = (
    "num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers", "num_encoder_layers",
    "num_decoder_layers", "depth", "num_blocks",
)  # fmt: skip


class TooLongError(BaseException):
    """The time for one type is over; not an Exception, which the probe takes for one of the model."""


def main(kinds: list[str]) -> None:
    """Print what comes of each type, and the counts."""
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    signal.signal(signal.SIGALRM, _too_long)
    counts: Counter[str] = Counter()
    for kind in kinds:
        signal.alarm(SECONDS)
        try:
            outcome, why = traced(kind)
        except (Exception, TooLongError) as error:  # a default configuration may fail in any way
            outcome, why = "refused", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        finally:
            signal.alarm(0)
        gc.collect()  # what an interrupted model has left
        counts[outcome] += 1
        print(f"{kind}: {outcome}{f' ({why[:160]})' if why else ''}", flush=True)
    print(f"transformers {transformers.__version__}, {len(kinds)} types:", dict(counts.most_common()))


def traced(kind: str) -> tuple[str, str]:
    """The outcome for one type of model, and a reason."""
    try:
        found = _found(kind)
    except CheckpointError as error:
        return ("no attention", "") if any(words in str(error) for words in NONE) else ("refused", str(error))
    if found.skipped:
        return "traced in part", f"{found.skipped[0][0]}: {found.skipped[0][1]}"
    return "traced", ""


def shallow(config: Any, depth: int = 2) -> Any:
    """The configuration with so many layers at most in each part, where it lets itself be changed."""
    for name in DEPTHS:
        if isinstance(own := getattr(config, name, None), int) and own > depth:
            setattr(config, name, depth)
    kinds = getattr(config, "layer_types", None)
    if isinstance(kinds, list) and len(kinds) > depth:
        config.layer_types = (list(dict.fromkeys(kinds)) + kinds)[:depth]
    for name in getattr(config, "sub_configs", {}):
        inner = getattr(config, name, None)
        if inner is not None and not isinstance(inner, dict):
            shallow(inner, depth)
    return config


def _found(kind: str) -> ModelMap:
    """At two layers, at ten if two have no attention (Jamba), and at its own depth if two do not run."""
    try:
        return probe(shallow(transformers.AutoConfig.for_model(kind)))
    except Exception as error:  # a changed configuration may fail in any way
        if any(words in str(error) for words in NONE):
            return probe(shallow(transformers.AutoConfig.for_model(kind), 10))
        return probe(transformers.AutoConfig.for_model(kind))


def _too_long(*_: object) -> NoReturn:
    raise TooLongError(f"it takes more than {SECONDS} s")


if __name__ == "__main__":
    main(sys.argv[1:] or list(MODEL_MAPPING_NAMES))
