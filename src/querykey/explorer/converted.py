"""A converted model beside its original: both read the same tokens and have the same heads."""

from __future__ import annotations

import json
from dataclasses import dataclass
from html import escape
from pathlib import Path

import torch

from querykey.design import Design
from querykey.explorer.sample import SAMPLE
from querykey.extras import load
from querykey.models.huggingface import HuggingFaceModel
from querykey.spelling import REPOSITORY

SECTION = "querykey"  # of the config.json of a folder that `querykey convert` wrote


@dataclass(frozen=True, eq=False)
class Converted:
    """A model that `querykey convert` wrote, and its original.

    `names` are those of both, as HTML. `design` says which roles share a latent.
    """

    model: HuggingFaceModel
    original: HuggingFaceModel
    names: dict[str, str]
    design: Design

    @classmethod
    def beside(cls, original: HuggingFaceModel, model: HuggingFaceModel) -> Converted:
        """The converted `model` with its original.

        Raises ValueError where `model` is not converted, and where the two differ in their tokens or heads.
        """
        places = {"model": model.checkpoint.place, "original": original.checkpoint.place}
        section = getattr(model.checkpoint.config, SECTION, None)
        if section is None:
            raise ValueError(
                f"'{places['model']}' has no section '{SECTION}' in its config.json; expected a folder "
                "that querykey convert wrote, and not with --plain"
            )
        heads = [[layer.query.heads for layer in one.layers] for one in (original, model)]
        ids = [one.encode(SAMPLE, limit=512)[0] for one in (original, model)]
        if heads[0] != heads[1] or not torch.equal(*ids):
            raise ValueError(
                f"'{places['model']}' and '{places['original']}' differ in their heads or in the tokens "
                "of a text; expected a converted model and its original"
            )
        design = Design.parse(section["design"].partition("+")[0])
        names = {
            role: escape(Path(place).resolve().name if Path(place).is_dir() else place)
            for role, place in places.items()
        }
        return cls(model, original, names, design)


def recorded_original(folder: str | Path) -> str | None:
    """The original that the config.json of a folder names, if it is still there: a folder (as seen from that one, or
    from here), or in the Hub's cache.
    """
    path = Path(folder) / "config.json"
    if not path.exists():
        return None
    original = json.loads(path.read_text(encoding="utf-8")).get(SECTION, {}).get("original")
    if not isinstance(original, str):
        return None
    for place in (Path(folder) / original, Path(original)):
        if (place / "config.json").exists():
            return str(place.resolve())
    if not REPOSITORY.fullmatch(original):
        return None
    cached = load("huggingface_hub", "inspect").try_to_load_from_cache(original, "config.json")
    return original if isinstance(cached, str) else None
