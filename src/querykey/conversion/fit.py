"""From moments to ranks and factors: the closed form for all layers, and putting it into a model and out again."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from querykey.bilinear.latent import Latent, LatentFit, allocate, fit_latent, token_weighted
from querykey.conversion.calibrate import Moments
from querykey.conversion.layers import ConversionError, SharedLayer, out_by_in
from querykey.modeling import FromLatent, Mixed, connect, install

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def fit_layers(layers: Sequence[SharedLayer], moments: Sequence[Moments]) -> list[LatentFit]:
    """The closest latents of each layer: in its Fisher metric, on its inputs, half of them weighted by gradient.

    Fitted where the moments are, which is on the CPU: in float64, for which few accelerators are made.
    """
    return [
        fit_latent(
            layer.weights().to(found.inputs.device),
            token_weighted(found.inputs, found.weighted),
            found.metric,
            scale_moment=found.inputs / found.tokens,
        )
        for layer, found in zip(layers, moments, strict=True)
    ]


def ranks(layers: Sequence[SharedLayer], fits: Sequence[LatentFit], total: int) -> list[int]:
    """The width of each layer's latent, `total` in all: the largest eigenvalues of all layers together are kept.

    Raises ConversionError where that is below one a layer or above what the layers hold.
    """
    least, most = len(layers), sum(layer.outputs for layer in layers)
    if not least <= total <= most:
        raise ConversionError(
            f"latents of {total} dimensions in all were asked for; expected {least} (one a layer) to {most} (all exact)"
        )
    return allocate([fit.values for fit in fits], total)


class Switch:
    """A model whose attention shares latents, and that can be its original self within `original()`."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[SharedLayer], latents: Sequence[Latent]) -> None:
        self.model, self.layers = model, layers
        self._original = [_modules(layer) for layer in layers]
        self.section = section(layers, [latent.from_input.shape[1] for latent in latents])
        install(model, self.section)
        self._converted = [_modules(layer) for layer in layers]
        for layer, latent, before in zip(layers, latents, self._original, strict=True):
            _fill(layer, latent, before.modules)

    @contextmanager
    def original(self) -> Iterator[None]:
        """The model as it was."""
        self._put(self._original)
        try:
            yield
        finally:
            self._put(self._converted)

    def restore(self) -> None:
        """Back to the original, until `apply`."""
        self._put(self._original)

    def apply(self) -> None:
        """The converted model again, where the model is the original or another conversion's."""
        self._put(self._converted)

    def separate_outputs(self) -> None:
        """Gives the converted model output projections of its own, so that they can be trained."""
        for layer, before, after in zip(self.layers, self._original, self._converted, strict=True):
            if layer.output and layer.output not in after.modules:
                before.modules[layer.output] = layer.attention.get_submodule(layer.output)
                after.modules[layer.output] = copy.deepcopy(before.modules[layer.output])
        self._put(self._converted)

    def made(self) -> Iterator[nn.Module]:
        """What the conversion made: the latents' projections, those that read them, and separate output projections."""
        for layer, state in zip(self.layers, self._converted, strict=True):
            yield state.modules[layer.name]
            yield from (_from_latent(state.modules[name]) for name in layer.rows)
            if layer.output in state.modules:
                yield state.modules[layer.output]

    def products(self) -> Iterator[tuple[nn.Module, list[tuple[int, int]], Tensor]]:
        """Each original projection that shares now, its runs of rows, and B A in their place, (rows, dim)."""
        for layer, before, after in zip(self.layers, self._original, self._converted, strict=True):
            B = after.modules[layer.name].get_parameter("weight")
            for name, runs in layer.rows.items():
                yield before.modules[name], runs, _from_latent(after.modules[name]).get_parameter("weight") @ B
            if layer.output in after.modules:
                output = out_by_in(after.modules[layer.output])
                yield before.modules[layer.output], [(0, len(output))], output

    def _put(self, states: Sequence[_Modules]) -> None:
        for layer, state in zip(self.layers, states, strict=True):
            like = next(layer.attention.get_submodule(next(iter(layer.rows))).parameters())
            layer.attention.__class__ = state.kind
            for name, module in state.modules.items():  # which `model.to` did not see while they were out of the model
                layer.attention.set_submodule(name, module.to(like.device, like.dtype))
            if layer.name not in state.modules:
                layer.attention._modules.pop(layer.name, None)
            else:
                connect(layer.attention, state.shared)


def section(layers: Sequence[SharedLayer], widths: Sequence[int]) -> dict[str, Any]:
    """What `modeling.install` needs, for the `querykey` section of a configuration."""
    plans: list[dict[str, Any]] = []
    found = []
    for layer, width in zip(layers, widths, strict=True):
        plan = layer.plan()
        if plan not in plans:
            plans.append(plan)
        found.append({"module": layer.module, "rank": width, "plan": plans.index(plan)})
    return {"version": 1, "plans": plans, "layers": found}


class _Modules:
    """The class of an attention module, those of its projections that are exchanged, and what these share."""

    def __init__(self, kind: type[nn.Module], modules: dict[str, nn.Module], shared: Any) -> None:
        self.kind, self.modules, self.shared = kind, modules, shared


def _modules(layer: SharedLayer) -> _Modules:
    names = [name for name in (*layer.rows, layer.name) if name in dict(layer.attention.named_modules())]
    modules = {name: layer.attention.get_submodule(name) for name in names}
    return _Modules(type(layer.attention), modules, getattr(layer.attention, "shared", None))


def _from_latent(module: nn.Module) -> nn.Module:
    return module.from_latent if isinstance(module, Mixed) else module


@torch.no_grad()
def _fill(layer: SharedLayer, latent: Latent, before: dict[str, nn.Module]) -> None:
    """Writes B, A, and what is kept of the original projections into the new modules."""
    _copy(layer.attention.get_submodule(layer.name).weight, latent.from_input.T)
    at = 0
    for name, runs in layer.rows.items():
        new, old = layer.attention.get_submodule(name), before[name]
        taken = torch.cat([torch.arange(start, stop) for start, stop in runs])
        rows, at = latent.to_outputs[:, at : at + len(taken)].T, at + len(taken)
        inner = _from_latent(new)
        assert isinstance(inner, FromLatent)
        _copy(inner.weight, rows)
        rest = torch.ones(layer.sizes[name], dtype=torch.bool)
        rest[taken] = False
        if isinstance(new, Mixed):
            _copy(new.kept.weight, out_by_in(old)[rest])
        if isinstance(bias := getattr(old, "bias", None), Tensor):
            _copy(inner.bias, bias[taken])
            if isinstance(new, Mixed):
                _copy(new.kept.bias, bias[rest])


def _copy(into: Any, values: Tensor) -> None:
    into.copy_(values.to(into))
