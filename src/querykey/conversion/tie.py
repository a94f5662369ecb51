"""Sharing from the start: a new transformers model whose projections are shared before anyone trains it.

    model = LlamaForCausalLM(config)
    querykey.share(model, "q=k,v")      # in place: k_proj is q_proj from now on, one parameter
    ...                                 # any training script: Trainer, accelerate, DDP, FSDP
    model.save_pretrained(DIR)          # an ordinary checkpoint of its architecture
    plain = querykey.unshare(model)     # an ordinary model with the same outputs

Where each role has a module of its own, roles that share become one module. Where one weight holds all roles (GPT-2,
NeoX, Phi-3), it is parametrised by its distinct rows. A core is one parameter more. Roles that share start from the
values of the first of them. State dicts are those of the plain architecture, with the cores beside them, so that
checkpoints of any training library load into the shared model and into a plain one.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.utils import parametrize

from querykey.attention.expansion import core_matrix
from querykey.attention.initial import initialise
from querykey.checkpoint import HeadMap, Rows
from querykey.checkpoint.probe import probe
from querykey.design import ROLES, Design, DesignError
from querykey.layout import Layout
from querykey.models import interface

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD = ("sharing", "core", "selfmask", "similarity", "qkscale")  # the options that `share` builds into a model
FULL_NAMES = {"q": "query", "k": "key", "v": "value"}


class Cored(nn.Module):
    """q = (x W) C: the queries of a shared projection, each head with its core C."""

    def __init__(self, shared: nn.Module, layout: Layout) -> None:
        super().__init__()
        self.shared, self.layout = shared, layout
        weight = next(weight for weight in layout.weights if weight.name == "core")
        like = next(shared.parameters())
        self.core = nn.Parameter(like.new_empty(weight.shape))
        initialise(self.core, weight)

    def forward(self, x: Tensor) -> Tensor:
        """(…, dim) to (…, heads × head size)."""
        shared: Tensor = self.shared(x)
        groups = shared.unflatten(-1, (self.layout.kv_heads, self.layout.qk_dim))
        cores = core_matrix(self.layout, self.core).unflatten(0, (self.layout.kv_heads, -1))
        return torch.einsum("...gc,grcd->...grd", groups, cores).flatten(-3)


class DistinctRows(nn.Module):
    """Parametrisation of a fused weight by its distinct rows: row i of the weight is distinct row `source[i]`."""

    source: Tensor

    def __init__(self, source: Int[Tensor, " rows"], transposed: bool) -> None:
        super().__init__()
        self.register_buffer("source", source, persistent=False)
        self.axis = 1 if transposed else 0

    def forward(self, distinct: Tensor) -> Tensor:
        """The whole weight or bias."""
        return distinct.index_select(self.axis if distinct.ndim > 1 else 0, self.source)

    def right_inverse(self, whole: Tensor) -> Tensor:
        """Of rows that share, the first one's values."""
        count = int(self.source.max()) + 1
        first = torch.tensor([int((self.source == row).nonzero()[0]) for row in range(count)], device=whole.device)
        return whole.index_select(self.axis if whole.ndim > 1 else 0, first)


class Site(NamedTuple):
    """One role of one layer: the module path of its projection in the base model, and its rows of that weight."""

    module: str
    rows: Rows


def share(model: PreTrainedModel, design: str | Design) -> PreTrainedModel:
    """Turn the projections of a model into those of `design`, in place, before training; returns the model.

    The architecture decides head counts, head sizes, norms and positions; the design decides what is shared, and may
    have a core, an unprojected part (where the projections are modules of their own), `qkscale`, and one of `selfmask`,
    `cosine` and `l2`, which become the model's `attn_implementation`. The new cores are drawn by torch's generator.

    Args:
        model: a transformers model whose attention can be traced; trained or not, roles that share take the values of
            the first one.
        design: such as ``"q=k,v"`` or ``"q=k,v+core=full+selfmask"``.

    Raises:
        DesignError: if the architecture cannot hold the design, with the reason.
        CheckpointError: if the attention of the model cannot be traced.
    """
    design = Design.parse(design)
    _refuse(model, design)
    layers = list(_layers(model, design))
    base = _base(model)
    for sites, layout in layers:
        _share_layer(base, sites, layout)
        states = PlainState(sites, layout)
        base.register_state_dict_post_hook(partial(PlainState.save, states))  # torch marks the hook: no bound method
        base.register_load_state_dict_pre_hook(partial(PlainState.load, states))
    if name := _implementation(design):
        interface.register()
        model.set_attn_implementation(name)
    model.config.querykey = {"design": str(design)}
    return model


def unshare(model: PreTrainedModel) -> PreTrainedModel:
    """An ordinary model of the same architecture with the same outputs; the shared model stays as it is.

    A self-mask or another similarity stays the `attn_implementation`: plain weights cannot express it.

    Raises:
        ValueError: if `share` has not been called on this model.
    """
    if not _design_of(model):
        raise ValueError("this model has no shared projections; call querykey.share on it first")
    config = copy.deepcopy(model.config)
    del config.querykey
    kind: Any = type(model)
    plain: PreTrainedModel = kind(config).to(device=model.device, dtype=model.dtype)
    plain.load_state_dict({name: x for name, x in model.state_dict().items() if not name.endswith(".core")})
    plain.set_attn_implementation(model.config._attn_implementation)
    plain.train(model.training)
    return plain


def _design_of(model: PreTrainedModel) -> str | None:
    return (getattr(model.config, "querykey", None) or {}).get("design")


def _base(model: PreTrainedModel) -> nn.Module:
    base: nn.Module = getattr(model, model.base_model_prefix, model)
    return base


def _refuse(model: PreTrainedModel, design: Design) -> None:
    if shared := _design_of(model):
        raise DesignError(f"this model shares its projections already, as {shared}; start from an ordinary model")
    for name in ("kv_heads", "qk_dim", "qknorm"):
        if getattr(design, name):
            raise DesignError(
                f"{name} belongs to the architecture; choose it in the model's config, and leave it out here"
            )
    if design.tiedstart:
        raise DesignError("tiedstart chooses initial values, but this model has its own; leave it out")
    for option in dataclasses.fields(design):
        if option.name not in HELD and getattr(design, option.name) != option.default:
            raise DesignError(f"a model of transformers cannot hold {option.name}; leave it out, or use SelfAttention")
    if design.selfmask and design.similarity != "dot":
        raise DesignError(
            f"transformers takes one attention function, so selfmask and {design.similarity} do not go together"
        )


def _implementation(design: Design) -> str | None:
    option = "selfmask" if design.selfmask else design.similarity
    return None if option == "dot" else f"querykey-{option}"


def _layers(model: PreTrainedModel, design: Design) -> Iterator[tuple[dict[str, Site], Layout]]:
    """Of each attention layer the place of each role, and the design at the layer's sizes."""
    for layer in probe(model.config).layers:
        sites = {role: _site(layer, role) for role in ROLES}
        heads, kv_heads, size = layer.query.heads, layer.key.heads, layer.query.size
        grouped = dataclasses.replace(design, kv_heads=None if kv_heads == heads else kv_heads)
        weight = _base(model).get_submodule(sites["q"].module).get_parameter("weight")
        dim = int(weight.shape[0 if sites["q"].rows.transposed else 1])
        yield sites, Layout.of(grouped, dim, heads, head_dim=size, rotary=layer.rotary is not None)


def _site(layer: HeadMap, role: str) -> Site:
    projection = getattr(layer, FULL_NAMES[role])
    if projection is None or len(projection.parts) != 1 or projection.parts[0].inner is not None:
        raise DesignError(f"the {FULL_NAMES[role]} of {layer.name} is not one linear projection, so it cannot share")
    rows = projection.parts[0]
    return Site(rows.weight.rpartition(".")[0], rows)


def _share_layer(base: nn.Module, sites: dict[str, Site], layout: Layout) -> None:
    names = [sites[role].module for role in ROLES]
    if len(set(names)) < len(names):
        _share_rows(base, sites, layout)
    else:
        _share_modules(base, sites, layout)


def _share_modules(base: nn.Module, sites: dict[str, Site], layout: Layout) -> None:
    design = layout.design
    _scale(base, sites, design)
    for part in design.parts:
        roles = [role for role in part if role != "x"]
        if "x" in part:
            shared: nn.Module = nn.Identity()
        else:
            shared = base.get_submodule(sites["k" if design.core and "k" in part else roles[0]].module)
        for role in roles:
            new = Cored(shared, layout) if design.core and role == "q" else shared
            base.set_submodule(sites[role].module, new)


def _share_rows(base: nn.Module, sites: dict[str, Site], layout: Layout) -> None:
    """The roles are rows of one weight, which is parametrised by those that are distinct."""
    design = layout.design
    if design.core or "x" in design.sharing:
        raise DesignError(
            f"{sites['q'].module} makes queries, keys and values by one weight, which can share rows but hold neither "
            "a core nor an unprojected role"
        )
    _scale(base, sites, design)
    module = base.get_submodule(sites["q"].module)
    rows = sites["q"].rows
    stored = torch.arange(module.get_parameter("weight").shape[1 if rows.transposed else 0])
    for part in design.parts:
        first = _stored_rows(sites[part[0]].rows)
        for role in part[1:]:
            stored[_stored_rows(sites[role].rows)] = first
    _, source = stored.unique(return_inverse=True)
    for name in ("weight", "bias"):
        if getattr(module, name, None) is not None:
            parametrize.register_parametrization(module, name, DistinctRows(source, rows.transposed))


def _stored_rows(rows: Rows) -> Int[Tensor, " channels"]:
    """The stored row of each channel."""
    return rows.rows[rows.at.argsort()]


@torch.no_grad()
def _scale(base: nn.Module, sites: dict[str, Site], design: Design) -> None:
    for role in ("q", "k") if design.qkscale != 1.0 else ():
        weight = base.get_submodule(sites[role].module).get_parameter("weight")
        rows = sites[role].rows
        (weight.T if rows.transposed else weight)[rows.rows] *= design.qkscale


class PlainState:
    """State dicts of a shared layer as those of the plain architecture: the hooks of the base model."""

    def __init__(self, sites: dict[str, Site], layout: Layout) -> None:
        self.sites, self.layout = sites, layout

    @torch.no_grad()
    def save(self, base: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        """Write each role's plain weight, with storage of its own; a core stays beside it."""
        for name in self._names():
            module, place = base.get_submodule(name), f"{prefix}{name}."
            if parametrize.is_parametrized(module):
                for weight in _parametrised(module):
                    state.pop(f"{place}parametrizations.{weight}.original")
                    state[place + weight] = getattr(module, weight).detach()
            elif isinstance(module, Cored):
                for key in [key for key in state if key.startswith(f"{place}shared.")]:
                    state[f"{place}{key.rpartition('.')[2]}"] = self._queries(module.core, state.pop(key))
            elif isinstance(module, nn.Identity):
                like = next(base.parameters())
                state[f"{place}weight"] = torch.eye(self.layout.dim, dtype=like.dtype, device=like.device)
                if any(site.rows.biases for site in self.sites.values() if site.module == name):
                    state[f"{place}bias"] = like.new_zeros(self.layout.dim)
            else:
                state |= {key: x.clone() for key, x in state.items() if key.startswith(place)}

    def load(self, base: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
        """Read what `save` wrote, or a plain checkpoint's values of the roles that are kept."""
        for name in self._names():
            module, place = base.get_submodule(name), f"{prefix}{name}."
            plain = {key: state.pop(key) for key in (f"{place}weight", f"{place}bias") if key in state}
            if parametrize.is_parametrized(module):
                for key, x in plain.items():
                    weight = key.rpartition(".")[2]
                    state[f"{place}parametrizations.{weight}.original"] = _rows_of(module, weight).right_inverse(x)
            elif isinstance(module, Cored):
                keys = f"{prefix}{self.sites['k'].module}."
                state |= {key.replace(keys, f"{place}shared."): x for key, x in state.items() if key.startswith(keys)}
            elif not isinstance(module, nn.Identity):
                state |= plain

    def _names(self) -> list[str]:
        """Each module once; queries first, whose cores read the keys' entries while these are there."""
        return list(dict.fromkeys(self.sites[role].module for role in ROLES))

    def _queries(self, core: Tensor, rows: Tensor) -> Tensor:
        """W_Q = W C and b_Q = b C, a row for each output."""
        heads = rows.unflatten(0, (self.layout.kv_heads, -1)).repeat_interleave(
            self.layout.heads // self.layout.kv_heads, 0
        )
        return torch.einsum("hcd,hc...->hd...", core_matrix(self.layout, core), heads).flatten(0, 1)


def _rows_of(module: Any, weight: str) -> DistinctRows:
    found: DistinctRows = module.parametrizations[weight][0]
    return found


def _parametrised(module: Any) -> list[str]:
    return list(module.parametrizations)
