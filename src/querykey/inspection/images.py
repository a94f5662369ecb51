"""Images for a model to read: a folder of them, made into pixels of one size."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from querykey.checkpoint import Checkpoint
from querykey.checkpoint.files import first_line
from querykey.checkpoint.inputs import Reads, image_shape
from querykey.extras import load
from querykey.models.huggingface import HuggingFaceModel

FORMATS = (".png", ".jpg", ".jpeg")
FEWEST = 2  # images to fit to, and to measure on

Pixels = Float[Tensor, "images channels height width"]


class Images:
    """At most `count` images of a folder and those below it, evenly over their sorted names.

    Every second one is for calibration, or as many of another folder. An image that is there twice counts once. Raises
    ValueError for a folder that is not there or has too few images.
    """

    reads: Reads = "images"

    def __init__(self, folder: str | Path, calibrate: str | Path | None, count: int) -> None:
        self.name = Path(folder).resolve().name
        measured = _distinct(_chosen(folder, count))
        if calibrate is None:
            fitted, measured = measured[::2], measured[1::2]
        else:
            fitted = [path for path in _distinct([*measured, *_chosen(calibrate, count)]) if path not in measured]
        if min(len(fitted), len(measured)) < FEWEST:
            raise ValueError(
                f"there are too few different images in {folder}: {len(fitted)} to fit shared heads to and "
                f"{len(measured)} to measure on, and at least {FEWEST} of each are needed; add images or give more "
                "pieces"
            )
        self._paths = fitted, measured

    def check(self, checkpoint: Checkpoint) -> None:
        """Read the images. Raises ValueError if the model reads none, or if one is damaged or has another shape."""
        checkpoint.reader("images")
        make = _Maker(checkpoint)
        self._pixels = make(self._paths[0]), make(self._paths[1])

    def halves(self, model: HuggingFaceModel) -> tuple[Pixels, Pixels]:
        """The pixels for calibration and those to measure on. Raises ValueError if the model does not run on them."""
        fitted, measured = self._pixels
        try:
            model.trace(fitted[:1])
        except Exception as error:  # the library raises what it likes
            raise ValueError(
                f"the model does not run on images of {_size(fitted[0])}, as its image processor makes them: "
                f"{first_line(error)}"
            ) from error
        return fitted, measured


class _Maker:
    """Makes pixels as the image processor of a checkpoint does, or in a plain way if there is none.

    The plain way: resized to the size in the configuration (bilinear), and (x/255 − ½)/½.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        assert checkpoint.files is not None  # open_checkpoint gives some
        self.shape = image_shape(checkpoint.config)
        try:
            self.processor = checkpoint.files.image_processor()
        except Exception as error:  # the library raises what it likes
            raise ValueError(
                f"the image processor of '{checkpoint.place}' cannot be used: {first_line(error)}"
            ) from error

    def __call__(self, paths: Iterable[Path]) -> Pixels:
        made = {path: self._pixels(path) for path in paths}
        first = next(iter(made.values()))
        for path, pixels in made.items():
            if pixels.shape != first.shape or pixels.dim() != 3:
                raise ValueError(
                    f"the image processor makes {_size(first)} of one image and {_size(pixels)} of {path}, and one "
                    "size is needed; crop the images to one size"
                )
        return torch.stack([*made.values()])

    def _pixels(self, path: Path) -> Float[Tensor, "..."]:
        image = _opened(path, "L" if self.shape[0] == 1 else "RGB")
        if self.processor is not None:
            found: Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
            return found
        channels, height, width = self.shape
        resized = image.resize((width, height), load("PIL.Image", "inspect").Resampling.BILINEAR)
        numbers = torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8)
        return numbers.view(height, width, channels).permute(2, 0, 1) / 127.5 - 1


def _opened(path: Path, mode: str) -> Any:
    """The decoded image. Raises ValueError if it is damaged."""
    pillow = load("PIL.Image", "inspect")
    try:
        with pillow.open(path) as image:
            return load("PIL.ImageOps", "inspect").exif_transpose(image).convert(mode)
    except (OSError, SyntaxError, ValueError, pillow.DecompressionBombError) as error:  # what Pillow raises
        raise ValueError(f"{path} cannot be read as an image: {first_line(error)}; remove or replace it") from error


def _chosen(folder: str | Path, count: int) -> list[Path]:
    """At most `count` images, evenly over the sorted paths."""
    place = Path(folder)
    if not place.is_dir():
        raise ValueError(f"there is no folder {folder}; give a folder of images")
    paths = sorted(path for path in place.rglob("*") if path.suffix.lower() in FORMATS and path.is_file())
    if not paths:
        raise ValueError(f"there are no images in {folder}; expected files that end in {', '.join(FORMATS)}")
    number = min(count, len(paths))
    return [paths[i * len(paths) // number] for i in range(number)]


def _distinct(paths: Iterable[Path]) -> list[Path]:
    """Without files that have the same bytes as an earlier one."""
    found: dict[bytes, Path] = {}
    for path in paths:
        found.setdefault(hashlib.sha256(path.read_bytes()).digest(), path)
    return list(found.values())


def _size(pixels: Tensor) -> str:
    return " × ".join(map(str, pixels.shape))
