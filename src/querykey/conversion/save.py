"""Converted models on disk: with their factors, self-contained, or multiplied out; and loading them.

| form | config.json | loads with |
|---|---|---|
| factors | type `querykey` | `querykey.load(DIR)`; after `import querykey.hf`, transformers' Auto classes |
| self-contained | the same and `auto_map` | also without querykey, with `trust_remote_code=True` |
| plain | type of the original | anything that loads the original; its cache is as large as before |
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers import AutoModelForCausalLM

from querykey import modeling
from querykey.conversion.fit import Switch
from querykey.conversion.layers import ConversionError, out_by_in
from querykey.report.numbers import amount

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CODE = "modeling_querykey"


def load(folder: str | Path, **options: Any) -> PreTrainedModel:
    """A converted model from its folder, or from the Hub; `options` as for `AutoModelForCausalLM.from_pretrained`."""
    modeling.register()
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, **options)
    return model


def check_free(folder: str | Path) -> None:
    """Raises ConversionError where the folder holds something: nothing is overwritten."""
    place = Path(folder)
    if place.exists() and (not place.is_dir() or any(place.iterdir())):
        raise ConversionError(f"{place} is not empty; expected a new folder, so that nothing is overwritten")


def check_space(needed: int, folder: str | Path, what: str = "the model") -> None:
    """Raises ConversionError where the disk of a folder has fewer than `needed` bytes free."""
    place = Path(folder).absolute()
    free = shutil.disk_usage(next(parent for parent in (place, *place.parents) if parent.exists())).free
    if free < needed:
        raise ConversionError(
            f"{what} needs {amount(needed)} bytes of disk, and {amount(free)} are free at {place}; choose another "
            "folder, or free some"
        )


def model_bytes(model: PreTrainedModel) -> int:
    """Bytes of its weights."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def save(
    switch: Switch,
    section: dict[str, Any],
    tokenizer: Any,
    folder: str | Path,
    *,
    plain: bool = False,
    self_contained: bool = False,
) -> Path:
    """Writes model and tokenizer to a new folder, whole or not at all; `section` is for its configuration.

    Raises ConversionError where the folder is not empty or the disk too small.
    """
    check_free(folder)
    model, place = switch.model, Path(folder)
    check_space(model_bytes(model), place)
    original = section["original"]
    if original and Path(original).exists():  # named from the new folder, so that both can move together
        section = section | {"original": Path(os.path.relpath(original, place)).as_posix()}
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        with _plain(switch) if plain else _converted(model, section, self_contained):
            model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        if self_contained and not plain:
            (partial / f"{CODE}.py").write_text(Path(modeling.__file__).read_text("utf-8"), encoding="utf-8")
        if place.exists():
            place.rmdir()
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return place


@contextmanager
def _converted(model: PreTrainedModel, section: dict[str, Any], self_contained: bool) -> Iterator[None]:
    """The model under the class and configuration with which it is saved."""
    config = model.config
    kinds: tuple[Any, Any] = type(model), type(config)
    changed = modeling.converted_config(kinds[1])
    config.querykey = json.loads(json.dumps(section))
    if self_contained:
        config.auto_map = {"AutoConfig": f"{CODE}.ConvertedConfig", "AutoModelForCausalLM": f"{CODE}.ConvertedModel"}
    config.__class__ = changed
    kind: Any = AutoModelForCausalLM._model_mapping[changed]
    model.__class__ = kind
    try:
        yield
    finally:
        model.__class__, config.__class__ = kinds
        for name in ("querykey", "auto_map"):
            if hasattr(config, name):
                delattr(config, name)


@contextmanager
def _plain(switch: Switch) -> Iterator[None]:
    """The original with B A in place of the weights of the projections that share, and what healing made of W_O."""
    products = [(module, runs, rows.detach()) for module, runs, rows in switch.products()]
    before = [module.get_parameter("weight").detach().clone() for module, _, _ in products]
    with switch.original():
        try:
            for module, runs, rows in products:
                _write(out_by_in(module).detach(), runs, rows)
            yield
        finally:
            for (module, _, _), weight in zip(products, before, strict=True):
                module.get_parameter("weight").data.copy_(weight)


def _write(weight: Tensor, runs: list[tuple[int, int]], rows: Tensor) -> None:
    at = 0
    for start, stop in runs:
        weight[start:stop] = rows[at : at + stop - start].to(weight)
        at += stop - start
