"""Converting a trained model so that its roles share a latent: calibrate, fit, check, report.

conversion = querykey.convert(model, tokenizer, cache=0.5)
conversion.save("out")                          # loads with querykey.load("out")
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Int
from torch import Tensor

from querykey import machine
from querykey.bilinear.latent import LatentFit
from querykey.conversion.calibrate import Moments, calibrate, memory_needed
from querykey.conversion.evaluate import TextCost, cache_bytes, evaluate, evaluate_each, log_probabilities
from querykey.conversion.fit import Switch, fit_layers, ranks
from querykey.conversion.layers import ConversionError, SharedLayer, shared_layers
from querykey.conversion.save import check_space, save
from querykey.conversion.source import enough_memory
from querykey.conversion.texts import Text, calibration_texts, check_apart, read_texts
from querykey.extras import cache_argument, load

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from querykey.report.progress import Watch

Share = Literal["kv", "qk", "qkv"]
DESIGNS = {"kv": "q,k=v+latent", "qk": "q=k,v+latent", "qkv": "q=k=v+latent"}
LENGTH = 512
CALIBRATION, EVALUATION = 48, 8  # windows: in all, and of each text
ENOUGH = 24_000  # tokens of calibration text
PER_DIMENSION = 100


@dataclass(eq=False)
class Fitted:
    """A calibrated model: the latents of every width for each layer, before a size is chosen."""

    model: PreTrainedModel
    tokenizer: Any
    share: Share
    layers: list[SharedLayer]
    fits: list[LatentFit]
    calibration: list[Text]
    seed: int

    @property
    def numbers(self) -> int:
        """Numbers that the cache of the original holds for each token, in all layers that share."""
        return sum(layer.cached_numbers for layer in self.layers)

    def total(self, cache: float) -> int:
        """Latent dimensions of all layers together for this part of the cache.

        Raises ConversionError where that cannot be.
        """
        if not 0 < cache <= 1:
            raise ConversionError(
                f"a cache of {cache:g} of the original was asked for; expected more than 0, at most 1"
            )
        return round(cache * self.numbers)

    def convert(self, cache: float = 0.5) -> Conversion:
        """The model, changed in place, with latents for this part of the cache (for "qk": of the keys and values)."""
        widths = ranks(self.layers, self.fits, self.total(cache))
        latents = [fit.latent(width) for fit, width in zip(self.fits, widths, strict=True)]
        switch = Switch(self.model, self.layers, latents)
        return Conversion(self, switch, cache, widths)

    def curve(
        self, sizes: Sequence[float], texts: Sequence[Text], watch: Watch = lambda what, done, total: None
    ) -> list[tuple[float, list[TextCost]]]:
        """What each of these parts of the cache would cost on texts; the model is as it was afterwards."""
        tried = []
        for cache in sizes:
            tried.append(self.convert(cache).switch)
            tried[-1].restore()
        if not tried:
            return []
        costs = evaluate_each(tried, texts, watch)
        tried[-1].restore()
        return list(zip(sizes, costs, strict=True))


@dataclass(eq=False)
class Conversion:
    """A converted model; `model` shares its latents, and is its original self within `original()`."""

    fitted: Fitted
    switch: Switch
    cache: float
    ranks: list[int]
    costs: list[TextCost] = field(default_factory=list)
    curve: list[tuple[float, list[TextCost]]] = field(default_factory=list)
    healed: dict[str, Any] | None = None

    @property
    def model(self) -> PreTrainedModel:
        """The converted model."""
        return self.switch.model

    def original(self) -> Any:
        """A context in which the model is as it was."""
        return self.switch.original()

    @property
    def design(self) -> str:
        """The design of the layers, such as ``q,k=v+latent=192``, or with the narrowest and the widest latent."""
        narrow, wide = min(self.ranks), max(self.ranks)
        return f"{DESIGNS[self.fitted.share]}={narrow}" + (f" to {wide}" if wide > narrow else "")

    def kept(self) -> list[float]:
        """For each layer, the share of the metric that its latent keeps."""
        return [fit.kept(rank) for fit, rank in zip(self.fitted.fits, self.ranks, strict=True)]

    def cache_bytes(self) -> tuple[float, float]:
        """Bytes per token of the cache of the original and of this model, both counted."""
        with self.original():
            before = cache_bytes(self.model)
        return before, cache_bytes(self.model)

    def parameters(self) -> tuple[int, int]:
        """Parameters of the original and of this model."""
        with self.original():
            before = sum(parameter.numel() for parameter in self.model.parameters())
        return before, sum(parameter.numel() for parameter in self.model.parameters())

    def evaluate(self, texts: Sequence[Text], watch: Watch = lambda what, done, total: None) -> list[TextCost]:
        """Both models on these texts; also kept in `costs`."""
        self.costs = evaluate(self.switch, texts, watch)
        return self.costs

    def save(self, folder: str | Path, *, plain: bool = False, self_contained: bool = False) -> Path:
        """Write model and tokenizer to a new folder, whole or not at all.

        Args:
            folder: new or empty.
            plain: multiplied out: an ordinary checkpoint of the original's architecture, with a full cache.
            self_contained: with modelling code, so that it loads without querykey (`trust_remote_code=True`).

        Raises:
            ConversionError: where the folder is not empty, or the disk too small.
        """
        tokenizer = self.fitted.tokenizer
        return save(self.switch, self.section(), tokenizer, folder, plain=plain, self_contained=self_contained)

    def section(self) -> dict[str, Any]:
        """What config.json tells of this conversion."""
        fitted = self.fitted
        return self.switch.section | {
            "design": self.design,
            "original": fitted.model.config.name_or_path,
            "model_type": fitted.model.config.model_type,
            "cache": self.cache,
            "calibration": [{"text": text.name, "tokens": text.tokens} for text in fitted.calibration],
            "seed": fitted.seed,
            "healed": self.healed,
            "provenance": machine.description(),
        }


def convert(
    model: PreTrainedModel,
    tokenizer: Any,
    *,
    share: Share = "kv",
    cache: float = 0.5,
    calibration: Sequence[str | Path] = (),
    evaluation: Sequence[str | Path] = (),
    windows: int = CALIBRATION,
    length: int = LENGTH,
    seed: int = 0,
    state: Path | None = None,
    watch: Watch = lambda what, done, total: None,
) -> Conversion:
    """Convert `model` in place, so that the roles in `share` read one latent per layer.

    Args:
        model: a causal language model of transformers, with its weights in 16 bits or more.
        tokenizer: its tokenizer.
        share: "kv" (the cache holds the latent), "qk" (fewer parameters), or "qkv" (both).
        cache: part of the cache that is to remain.
        calibration, evaluation: texts (files, folders, globs, hf:NAME), which must differ; each is a kind of text.
        windows, length: windows of calibration text in all, and their length in tokens.
        seed: for the choice of windows and the labels drawn from the model.
        state: a file from which calibration resumes.
        watch: called with what is done, how much of it, and of how much.

    Raises:
        ConversionError: for a model, a text or a size that cannot be used.
    """
    check_apart(calibration, evaluation)
    fitted = fit(
        model, tokenizer, share=share, texts=calibration, windows=windows, length=length, seed=seed, state=state,
        watch=watch,
    )  # fmt: skip
    conversion = fitted.convert(cache)
    check(conversion)
    if evaluation:
        conversion.evaluate(read_texts(evaluation, tokenizer, windows=EVALUATION, length=length, seed=seed), watch)
    return conversion


def fit(
    model: PreTrainedModel,
    tokenizer: Any,
    *,
    share: Share,
    texts: Sequence[str | Path] = (),
    windows: int = CALIBRATION,
    length: int = LENGTH,
    seed: int = 0,
    state: Path | None = None,
    watch: Watch = lambda what, done, total: None,
) -> Fitted:
    """Calibrate `model` on texts and fit the latents of every width; the model is as it was afterwards.

    Where memory is too small for the moments, they are kept on disk, beside `state`.
    """
    layers = shared_layers(model, share)
    folder = moments_folder(layers, state)
    read = calibration_texts(texts, model, tokenizer, windows=windows, length=length, seed=seed)
    moments = calibrate(model, layers, mixed(read), seed=seed, state=state, folder=folder, watch=watch)
    return Fitted(model, tokenizer, share, layers, fits(layers, moments, watch), read, seed)


def moments_folder(layers: Sequence[SharedLayer], state: Path | None) -> Path | None:
    """Where the moments of these layers are to be kept: None for in memory, which has to hold half as much again.

    Raises ConversionError where neither memory nor disk can hold them.
    """
    needed = memory_needed(layers)
    if enough_memory(needed + needed // 2):
        return None
    folder = state.absolute().parent if state else Path(tempfile.gettempdir())
    check_space(2 * needed, folder, "the moments of calibration")
    return folder


def fits(layers: Sequence[SharedLayer], moments: Sequence[Moments], watch: Watch) -> list[LatentFit]:
    """`fit_layers`, one layer after another."""
    found = []
    for number, (layer, moment) in enumerate(zip(layers, moments, strict=True), start=1):
        found += fit_layers([layer], [moment])
        watch("layers fitted", number, len(layers))
    return found


def mixed(texts: Sequence[Text]) -> Int[Tensor, "windows length"]:
    """The windows of all texts by turns, so that a part of them is of all kinds."""
    queues = [list(text.windows) for text in texts]
    order = [queue[n] for n in range(max(map(len, queues))) for queue in queues if n < len(queue)]
    return torch.stack(order)


def doubts(fitted: Fitted, widest: int) -> list[str]:
    """What makes this calibration less certain than it should be, a sentence each."""
    tokens, found = sum(text.tokens for text in fitted.calibration), []
    if tokens < ENOUGH:
        found.append(f"calibrated on {tokens:,} tokens; expected at least {ENOUGH:,}")
    if tokens < PER_DIMENSION * widest:
        found.append(
            f"calibrated on {tokens:,} tokens; expected {PER_DIMENSION * widest:,}, which is {PER_DIMENSION} for each "
            f"of the {widest} dimensions of the largest latent"
        )
    if len(fitted.calibration) < 3:
        found.append("calibrated on fewer than three kinds of text; other kinds may lose more than the report shows")
    return found


def check(conversion: Conversion, length: int = 12) -> None:
    """Compares next-token probabilities with and without the cache; raises ConversionError where they do not agree."""
    model = conversion.model
    ids = torch.arange(3, 3 + length) % model.config.get_text_config().vocab_size
    whole = log_probabilities(model, ids)
    cache, rows = load("transformers", "convert").DynamicCache(config=model.config), []
    for part in (ids[: length // 2], *ids[length // 2 : -1].split(1)):
        with torch.no_grad():
            given = {cache_argument(model.forward): cache}
            out = model(input_ids=part[None].to(model.device), use_cache=True, **given)
        rows.append(out.logits[0].float().log_softmax(-1))
    off = float((torch.cat(rows).exp() - whole.exp()).abs().sum(-1).max())  # rounding counts where tokens are likely
    if not off < (1e-3 if model.dtype in (torch.float32, torch.float64) else 0.3):
        raise ConversionError(
            f"the converted model gives other probabilities with its cache than without (by {off:.2g}): "
            f"{type(model).__name__} uses its cache in a way that is not supported"
        )
