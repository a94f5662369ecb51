"""A trained model that runs on text with its attention open: everything can be seen, and any head changed.

live = open_live("a/folder or repository")
ids, tokens = live.encode("The cat sat on the mat.")
run = live.run(ids)                       # run.layers[2].pattern[0, 5]: head 5 of layer 2
tied = live.run(ids, {(2, 5): Change(key=lambda head: head.query)})

The model computes everything itself, but for the attention function in the middle of each layer:

    x → q, k, v (weights, norms, rotation: the model's) → scaling · q kᵀ → mask (the model's) → softmax → times v

A `Change` acts on queries, keys and values before the rotation by positions, which is undone for it and done again.
Opening runs a few tokens both ways, and refuses a model that does not come out as with its own attention.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from querykey.checkpoint import Checkpoint, CheckpointError, HeadMap, LayerWeights, open_checkpoint
from querykey.extras import load
from querykey.models import intervention as changing
from querykey.models.intervention import Change, Map

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "querykey_live"
LOCK = threading.RLock()  # transformers has one table of attention functions
BY_ITSELF = "it computes its attention by itself, and not by transformers' attention functions"

Role = Literal["query", "key", "value"]


@dataclass(frozen=True, eq=False)
class LayerRun:
    """One attention layer of one run, with keys and values as each query head gets them.

    `scores` are before the mask, `allowed` is None where every position may attend to every other, and `pattern` is
    what multiplies the values; its rows sum to 1, or to less where a model has attention sinks beside the tokens.
    """

    x: Float[Tensor, "batch length dim"]
    query: Float[Tensor, "batch heads length qk_dim"]
    key: Float[Tensor, "batch heads length qk_dim"]
    value: Float[Tensor, "batch heads length v_dim"]
    scores: Float[Tensor, "batch heads length length"]
    allowed: Bool[Tensor, "#batch #heads length length"] | None
    pattern: Float[Tensor, "batch heads length length"]


@dataclass(frozen=True, eq=False)
class Run:
    """What a model made of some tokens: `hidden` after its last layer, `logits` of a language model, every layer."""

    hidden: Float[Tensor, "batch length dim"]
    logits: Float[Tensor, "batch length vocabulary"] | None
    layers: tuple[LayerRun, ...]


def open_live(
    path_or_id: str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
) -> LiveModel:
    """Loads a folder or a repository on the Hub, all of it, to run on text.

    Of a model with encoder and decoder, the encoder. Raises CheckpointError, a ValueError, as `open_checkpoint` does,
    and where the model computes its attention in a way that cannot be opened.
    """
    checkpoint = open_checkpoint(path_or_id, revision, trust_remote_code)
    with LOCK, _quietly(), _attention(lambda *_, **__: None):
        try:
            model = _auto_class(checkpoint).from_pretrained(
                checkpoint.place,
                revision=checkpoint.revision,
                trust_remote_code=trust_remote_code,
                dtype=dtype,
                attn_implementation=NAME,
                experts_implementation="eager",
            )
            return LiveModel(checkpoint, model.eval().requires_grad_(False), trust_remote_code)
        except CheckpointError:
            raise
        except Exception as error:  # the library raises what it likes
            why = f"loading or running it fails ({type(error).__name__}: {' '.join(str(error).split())})"
            unknown = isinstance(error, KeyError) and error.args == (NAME,)  # models with a table of their own
            raise CheckpointError(_closed(checkpoint, BY_ITSELF if unknown else why)) from error


@dataclass(eq=False)
class _Pass:
    """One pass through the model: what is to be changed, and what has been seen."""

    changes: Mapping[tuple[int, int], Change]
    x: Tensor | None = None  # the input of the attention module that runs
    names: list[str] = field(default_factory=list)
    layers: list[LayerRun] = field(default_factory=list)


class LiveModel:
    """A model with its attention open; `layers` in the order in which they run, shared ones as often as they do.

    `causal` says that a token changes nothing for those before it.
    """

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel, trust_remote_code: bool = False) -> None:
        self.checkpoint, self.model = checkpoint, model
        self._trust = trust_remote_code
        self._base = getattr(model, model.base_model_prefix, model)
        two_halves = bool(model.config.is_encoder_decoder)
        self._body = self._base.get_encoder() if two_halves else model
        self._options = {} if two_halves else {"use_cache": False}
        self._numbers = {layer.name: number for number, layer in enumerate(checkpoint.layers)}
        self._names = {module: name for name, module in self._base.named_modules() if name in self._numbers}
        self._now = _Pass({})
        for module in self._names:
            module.register_forward_pre_hook(self._see, with_kwargs=True)
        self.layers, self.causal = self._compared()

    @property
    def longest(self) -> int | None:
        """The longest text that the model can take, in tokens; None where nothing says so."""
        config = self.model.config.get_text_config()
        for name in ("max_position_embeddings", "n_positions"):
            if isinstance(length := getattr(config, name, None), int):
                return length - (2 if "roberta" in config.model_type else 0)  # which counts positions from 2
        return None

    def encode(self, text: str, limit: int | None = None) -> tuple[Int[Tensor, "1 length"], tuple[str, ...]]:
        """Token ids of a text and what each is called, cut off at `limit` tokens and at what the model can take.

        Raises CheckpointError where the checkpoint has no tokenizer, and ValueError for a text without tokens.
        """
        bounds = [bound for bound in (limit, self.longest) if bound is not None]
        cut = {"truncation": True, "max_length": min(bounds)} if bounds else {}
        ids = self.tokenizer(text, verbose=False, **cut)["input_ids"]
        if set(ids) <= set(self.tokenizer.all_special_ids):
            raise ValueError("The text has no tokens; give it at least one word.")
        return torch.tensor([ids]), self.spelled(ids)

    def spelled(self, ids: list[int]) -> tuple[str, ...]:
        """What each token stands for, with ## where it continues a word; its name where it is a part of a character."""
        return tuple(map(self._spelled, self.tokenizer.convert_ids_to_tokens(ids)))

    @cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer. Raises CheckpointError where there is none."""
        place, revision = self.checkpoint.place, self.checkpoint.revision
        try:
            tokenizers = load("transformers", "inspect").AutoTokenizer
            tokenizer = tokenizers.from_pretrained(place, revision=revision, trust_remote_code=self._trust)
        except Exception as error:  # the library raises what it likes
            raise CheckpointError(f"'{place}' has no tokenizer that can be used: {error}") from error
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise CheckpointError(f"'{place}' has no tokenizer that can be used: it brings no vocabulary")
        return tokenizer

    def weights(self, layer: int) -> LayerWeights:
        """The weights of `layers[layer]`, with those of values and outputs."""
        return self.checkpoint.read(self._numbers[self.layers[layer].name], values=True)

    def by_weights(
        self,
        layer: int,
        head: int,
        role: Role,
        W: Float[Tensor, "dim size"],
        b: Float[Tensor, " size"] | None = None,
    ) -> Map:
        """x W + b as the queries, keys or values of that head, for a `Change`; see `change.by_weights`."""
        layer_map = self.layers[layer]
        projection = getattr(layer_map, role)
        if projection is None:
            raise CheckpointError(f"the {role} of {layer_map.name} could not be followed, so it has no weights")
        return changing.by_weights(projection, W, b, self._gain(layer_map, head, role))

    def run(
        self,
        ids: Int[Tensor, "batch length"],
        changes: Mapping[tuple[int, int], Change] | None = None,
        attention_mask: Int[Tensor, "batch length"] | None = None,
    ) -> Run:
        """The model on these tokens, with heads (layer, head) changed.

        `attention_mask` is 0 where a text has been padded, at its end. Raises ValueError for a head that there is not,
        and CheckpointError for a change of queries or keys whose positions cannot be undone.
        """
        for layer, head in changes or {}:
            if not (0 <= layer < len(self.layers) and 0 <= head < self.layers[layer].query.heads):
                heads = " or ".join(map(str, sorted({layer.query.heads for layer in self.layers})))
                raise ValueError(
                    f"there is no head {head} in layer {layer}: there are {len(self.layers)} layers of {heads} heads, "
                    "counted from 0"
                )
        with LOCK, _attention(self._attend):
            self._now = _Pass(changes or {})
            hidden, logits = self._forward(ids, attention_mask)
            return Run(hidden, logits, tuple(self._now.layers))

    # While the model runs

    def _forward(self, ids: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        mask = torch.ones_like(ids) if mask is None else mask
        with torch.no_grad():
            out = self._body(
                input_ids=ids, attention_mask=mask, output_hidden_states=True, return_dict=True, **self._options
            )
        hidden = out["last_hidden_state"] if "last_hidden_state" in out else out["hidden_states"][-1]
        return hidden, out.get("logits")

    def _see(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keeps the input of an attention module."""
        given = (*args, kwargs.get("hidden_states"), *kwargs.values())
        self._now.x = next(x for x in given if isinstance(x, Tensor))

    def _attend(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        scaling: float | None = None,
        softcap: float | None = None,
        s_aux: Tensor | None = None,
        position_bias: Tensor | None = None,
        **_: Any,
    ) -> tuple[Tensor, Tensor]:
        """The attention function: as the model's own, and with the changes."""
        now, name = self._now, self._names.get(module)
        changes = {head: change for (layer, head), change in now.changes.items() if layer == len(now.layers)}
        group = query.shape[1] // key.shape[1]
        key, value = (x.repeat_interleave(group, 1) if group > 1 else x for x in (key, value))
        if name is None or now.x is None:
            changes = {}
        else:
            layer = self.checkpoint.layers[self._numbers[name]]
            query, key, value = changing.apply(changes, layer, now.x, (query, key, value))
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scaling is None else scaling)
        for head, change in changes.items():
            if change.cosine is not None:
                scores[:, head] = changing.cosine(query[:, head], key[:, head], change.cosine)
        scores = scores if softcap is None else (scores / softcap).tanh() * softcap
        scores = scores if position_bias is None else scores + position_bias
        mask = changing.self_masked(attention_mask, scores, [h for h, change in changes.items() if change.self_mask])
        pattern = _softmax(scores, mask, s_aux)
        if name is not None and now.x is not None:
            allowed = None if mask is None else mask > torch.finfo(mask.dtype).min / 2
            now.layers.append(LayerRun(now.x, query, key, value, scores, allowed, pattern))
            now.names.append(name)
        return (pattern @ value).transpose(1, 2).contiguous(), pattern

    # Opening

    def _compared(self) -> tuple[tuple[HeadMap, ...], bool]:
        """The layers in the order in which they run, and whether the model is causal.

        Raises CheckpointError if the model does not come out as with its own attention.
        """
        size = int(self.model.config.get_text_config().vocab_size)
        ids = torch.arange(5, 12)[None] % size
        with _attention(self._attend):
            hidden, _ = self._forward(ids)
            names = tuple(self._now.names)
            later, _ = self._forward(torch.cat([ids[:, :-1], ids[:, :1]], 1))
            self.model.set_attn_implementation("eager")
            own, _ = self._forward(ids)
            self.model.set_attn_implementation(NAME)
        if not names or not torch.allclose(hidden, own, rtol=1e-3, atol=1e-3 * float(own.std())):
            raise CheckpointError(_closed(self.checkpoint, BY_ITSELF))
        causal = torch.allclose(later[:, :-1], hidden[:, :-1], rtol=0, atol=1e-5 * float(hidden.std()))
        return tuple(self.checkpoint.layers[self._numbers[name]] for name in names), causal

    def _gain(self, layer: HeadMap, head: int, role: Role) -> Tensor | None:
        """What the normalisation of a role multiplies the channels of a head with; None where there is none."""
        projection = getattr(layer, role)
        part = projection.parts[0]
        if part.norm is None or part.norm.size != projection.size:
            return None
        if part.norm.weight is None or part.gain is None:
            return torch.full((projection.size,), part.norm.offset)
        place = head if role == "query" else layer.key_head[head]
        mine = part.gain[part.at // projection.size == place]
        weight = self._base.get_parameter(part.norm.weight).flatten()[mine]
        gain: Tensor = part.norm.offset + part.norm.slope * weight
        return gain

    def _spelled(self, token: str) -> str:
        if token in self.tokenizer.all_special_tokens or token.startswith("##"):
            return token
        text: str = self.tokenizer.convert_tokens_to_string([token])
        return text if text and "\ufffd" not in text else token


def _softmax(scores: Tensor, mask: Tensor | None, sinks: Tensor | None) -> Tensor:
    """Over the keys, with an additive mask, and beside the scores of sinks, which are no tokens but take their part."""
    masked = scores if mask is None else scores + mask
    if sinks is None:
        return masked.softmax(-1)
    return torch.cat([masked, sinks.view(1, -1, 1, 1).expand(*scores.shape[:3], 1)], -1).softmax(-1)[..., :-1]


def _closed(checkpoint: Checkpoint, why: str) -> str:
    kind = checkpoint.config.model_type
    return f"'{checkpoint.place}', a model of type '{kind}', cannot be run with its attention open: {why}"


def _auto_class(checkpoint: Checkpoint) -> Any:
    """The class that loads the model with its head, where that is a language model."""
    transformers = load("transformers", "inspect")
    name = (getattr(checkpoint.config, "architectures", None) or [""])[0]
    if name.endswith(("ForCausalLM", "LMHeadModel")):
        return transformers.AutoModelForCausalLM
    return transformers.AutoModelForMaskedLM if name.endswith("ForMaskedLM") else transformers.AutoModel


@contextmanager
def _quietly() -> Iterator[None]:
    """Without transformers' advice and its bars: what matters is an error."""
    logging = load("transformers.utils.logging", "inspect")
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


@contextmanager
def _attention(function: Callable[..., Any]) -> Iterator[None]:
    """Makes `function` the attention implementation `NAME`, with masks as for an explicit softmax."""
    functions = load("transformers.modeling_utils", "inspect").ALL_ATTENTION_FUNCTIONS
    masks = load("transformers.masking_utils", "inspect").ALL_MASK_ATTENTION_FUNCTIONS
    masks.register(NAME, masks["eager"])
    before = functions.get(NAME)
    functions[NAME] = function
    try:
        yield
    finally:
        if before is None:
            del functions[NAME]
        else:
            functions[NAME] = before
