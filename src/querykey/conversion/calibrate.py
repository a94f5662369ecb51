"""The moments of a model that a conversion is fitted to, gathered over windows of text.

For each layer, with x the input of the projections that share and g the gradient of the loss by their outputs (before
any normalisation and rotation), the loss being the model's own surprise at labels that are drawn from it:

    S = E[xᵀx],   S_w = E[|g|² xᵀx] / E[|g|²],   G = E[gᵀg]   (the Fisher information of the outputs).

One window is one forward and one backward pass, by the activations alone: no weight gets a gradient. Where memory is
too small for the sums of all layers, they are kept in files that are mapped into memory, and the system writes them to
disk as it needs.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from querykey.conversion.layers import ConversionError, SharedLayer
from querykey.report.files import write_atomically

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from querykey.report.progress import Watch

SAVED_EVERY = 16  # windows between two states on disk


class Moments:
    """Sums over tokens for one layer; `inputs` is Σ xᵀx, `weighted` Σ |g|² xᵀx and `metric` Σ gᵀg, in float32.

    With a `folder`, they are in a file there that has no name, and that is gone with them.
    """

    def __init__(self, layer: SharedLayer, folder: Path | None = None) -> None:
        numbers = _numbers(layer)
        sums = torch.zeros(numbers) if folder is None else _mapped(numbers, folder)
        inputs, weighted, metric = sums.split([layer.dim**2, layer.dim**2, layer.outputs**2])
        self.inputs, self.weighted = inputs.view(layer.dim, -1), weighted.view(layer.dim, -1)
        self.metric = metric.view(layer.outputs, -1)
        self.tokens = 0

    def add(self, x: Float[Tensor, "tokens dim"], g: Float[Tensor, "tokens outputs"]) -> None:
        """Takes in the tokens of one window."""
        x, g = x.float(), g.float()
        self.inputs += (x.T @ x).cpu()
        self.weighted += ((x * g.square().sum(1, keepdim=True)).T @ x).cpu()
        self.metric += (g.T @ g).cpu()
        self.tokens += len(x)

    def tensors(self) -> dict[str, Tensor]:
        """The three sums by name."""
        return {"inputs": self.inputs, "weighted": self.weighted, "metric": self.metric}


def memory_needed(layers: Sequence[SharedLayer]) -> int:
    """Bytes of the moments of all layers."""
    return sum(4 * _numbers(layer) for layer in layers)


def calibrate(
    model: PreTrainedModel,
    layers: Sequence[SharedLayer],
    windows: Int[Tensor, "windows length"],
    *,
    seed: int = 0,
    state: Path | None = None,
    folder: Path | None = None,
    watch: Watch = lambda what, done, total: None,
) -> list[Moments]:
    """The moments of these layers over all windows; labels are drawn with `seed`.

    With a file `state` (torch's format, so not named .safetensors), what has been gathered is saved there now and then,
    and a call with the same model, layers, windows and seed goes on from it. With a `folder`, the sums are kept on disk
    there, not in memory. Raises ConversionError where an activation or a gradient is not finite.
    """
    moments = [Moments(layer, folder) for layer in layers]
    key = _key(layers, windows, seed)
    done = _resumed(state, key, moments)
    with _frozen(model), _recorded(layers) as records:
        for number, window in enumerate(windows[done:], start=done):
            _backward(model, window, torch.Generator().manual_seed(seed * 1_000_003 + number))
            for layer, record, moment in zip(layers, records, moments, strict=True):
                moment.add(*record.taken(layer))
            if state and (number + 1) % SAVED_EVERY == 0:
                _save(state, key, moments, number + 1)
            watch("windows of calibration text", number + 1, len(windows))
    if state:
        _save(state, key, moments, len(windows))
    return moments


class _Record:
    """Input and gradients of one layer's projections in the pass that runs."""

    def __init__(self, layer: SharedLayer) -> None:
        self.x: Tensor | None = None
        self.gradients: list[Tensor | None] = [None] * len(layer.rows)

    def taken(self, layer: SharedLayer) -> tuple[Tensor, Tensor]:
        """x and g, a row for each token; checked."""
        assert self.x is not None
        parts = []
        for gradient, runs in zip(self.gradients, layer.rows.values(), strict=True):
            if gradient is None:
                raise ConversionError(f"no gradient reached the projections of {layer.module}: they are not used")
            parts += [gradient.flatten(0, -2)[:, start:stop] for start, stop in runs]
        g = torch.cat(parts, 1)
        check_finite(g, "gradient", layer)
        return self.x.flatten(0, -2), g


def check_finite(values: Tensor, what: str, layer: SharedLayer) -> None:
    """Raises ConversionError, with the layer's name, where a value is NaN or infinite."""
    if not values.isfinite().all():
        raise ConversionError(
            f"the {what} of {layer.module} holds NaN or infinite values; a wider dtype may help (float32)"
        )


@contextmanager
def _recorded(layers: Sequence[SharedLayer]) -> Iterator[list[_Record]]:
    records, handles = [_Record(layer) for layer in layers], []

    def watcher(layer: SharedLayer, record: _Record, place: int) -> Callable[..., None]:
        def seen(_: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            x = args[0].detach()
            check_finite(x, "input", layer)
            if place and record.x is not None and x.data_ptr() != record.x.data_ptr() and not torch.equal(x, record.x):
                raise ConversionError(f"the projections of {layer.module} do not all read the same input")
            record.x = x
            output.register_hook(lambda gradient: record.gradients.__setitem__(place, gradient.detach()))

        return seen

    for layer, record in zip(layers, records, strict=True):
        for place, (module, _) in enumerate(layer.projections()):
            handles.append(module.register_forward_hook(watcher(layer, record, place)))
    try:
        yield records
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """No weight gets a gradient; the embedded tokens do, so that all activations behind them have one."""
    wanted = [parameter for parameter in model.parameters() if parameter.requires_grad]
    training = model.training
    handle = model.get_input_embeddings().register_forward_hook(lambda _, __, output: output.requires_grad_(True))
    model.eval().requires_grad_(False)
    try:
        yield
    finally:
        handle.remove()
        for parameter in wanted:
            parameter.requires_grad_(True)
        model.train(training)


def _backward(model: PreTrainedModel, window: Int[Tensor, " length"], generator: torch.Generator) -> None:
    """One pass forward and back, from the loss on labels drawn from the model."""
    with torch.enable_grad():
        logits = model(input_ids=window[None].to(model.device), use_cache=False).logits[0].float()
        labels = torch.multinomial(logits.detach().softmax(-1).cpu(), 1, generator=generator)[:, 0]
        torch.nn.functional.cross_entropy(logits, labels.to(logits.device), reduction="sum").backward()


def _key(layers: Sequence[SharedLayer], windows: Tensor, seed: int) -> str:
    """What a state on disk belongs to."""
    digest = hashlib.sha256(windows.numpy(force=True).tobytes())
    for layer in layers:
        W = layer.weights().detach()
        digest.update(
            json.dumps([layer.module, W.shape, float(W.double().sum()), float(W.double().square().sum())]).encode()
        )
    return f"{digest.hexdigest()}-{seed}"


def _numbers(layer: SharedLayer) -> int:
    """In the sums of one layer."""
    return 2 * layer.dim**2 + layer.outputs**2


def _mapped(numbers: int, folder: Path) -> Float[Tensor, " numbers"]:
    """Zeros in float32 on disk."""
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.truncate(4 * numbers)
        return torch.from_file(file.name, shared=True, size=numbers, dtype=torch.float32)


def _save(state: Path, key: str, moments: Sequence[Moments], done: int) -> None:
    sums = [moment.tensors() for moment in moments]
    with write_atomically(state) as partial:
        torch.save({"key": key, "windows": done, "tokens": moments[0].tokens, "moments": sums}, partial)


def _resumed(state: Path | None, key: str, moments: Sequence[Moments]) -> int:
    """How many windows the state on disk has, now in `moments`; 0 where there is none, or one of something else."""
    if state is None or not state.exists():
        return 0
    try:
        found = torch.load(state, mmap=True, weights_only=True)
    except Exception:  # what is no state of this version is written anew
        return 0
    if found["key"] != key:
        return 0
    for moment, sums in zip(moments, found["moments"], strict=True):
        for name, tensor in moment.tensors().items():
            tensor.copy_(sums[name])
        moment.tokens = found["tokens"]
    return int(found["windows"])
