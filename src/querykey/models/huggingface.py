"""Traces of a trained transformers model on text, and interventions in it.

model = open_model("a/folder or repository")
ids, tokens = model.encode("The cat sat on the mat.")
trace = model.trace(ids)                    # trace.layers[2].weights[0, 5]: head 5 of layer 2
tied = model.trace(ids, {(2, 5): Intervention(key=lambda given: given.query)})

The model computes everything itself except the attention function of each layer, which is `trace.attend`. Opening runs
a few tokens with it and with the model's own attention, and refuses a model where the two differ.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from querykey.attention import reference
from querykey.checkpoint import Checkpoint, CheckpointError, HeadMap, open_checkpoint
from querykey.extras import load
from querykey.models import intervention
from querykey.models.interface import attention_function
from querykey.models.intervention import Intervention, Interventions
from querykey.models.resume import Counter, Start, find_blocks
from querykey.models.trace import Formula, LayerTrace, Trace, attend, forwards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "querykey_trace"
LOCK = threading.RLock()  # transformers has one table of attention functions
BY_ITSELF = "it computes its attention by itself, and not by transformers' attention functions"


def open_model(
    checkpoint: Checkpoint | str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
) -> HuggingFaceModel:
    """Load the whole model of an open checkpoint, of a folder or of a repository on the Hub, to run it on text.

    Of a model with encoder and decoder, the encoder. Raises CheckpointError, a ValueError, as `open_checkpoint` does,
    and where the model computes its attention in a way that cannot be traced.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint, revision, trust_remote_code)
    assert checkpoint.files is not None  # open_checkpoint gives some
    with LOCK, _quietly(), attention_function(NAME, lambda *_, **__: None):
        try:
            model = checkpoint.files.load(
                checkpoint.config,
                trust_remote_code=trust_remote_code,
                dtype=dtype,
                attn_implementation=NAME,
                experts_implementation="eager",
            )
            model = model.to(device).eval().requires_grad_(False)
            return HuggingFaceModel(checkpoint, model, trust_remote_code)
        except CheckpointError:
            raise
        except Exception as error:  # the library raises what it likes
            why = f"loading or running it fails ({type(error).__name__}: {' '.join(str(error).split())})"
            unknown = isinstance(error, KeyError) and error.args == (NAME,)  # models with a table of their own
            raise CheckpointError(_untraceable(checkpoint, BY_ITSELF if unknown else why)) from error


@dataclass(eq=False)
class _Pass:
    """One forward pass: its interventions, which blocks it runs, and what has been recorded."""

    interventions: Interventions = field(default_factory=dict)
    blocks: Counter | None = None
    see: Callable[[LayerTrace], None] = lambda layer: None
    layer: int = 0  # that runs next
    x: Tensor | None = None  # the input of the attention module that runs
    hidden: Tensor | None = None
    logits: Tensor | None = None
    names: list[str] = field(default_factory=list)
    layers: list[LayerTrace] = field(default_factory=list)

    @property
    def trace(self) -> Trace:
        assert self.hidden is not None
        return Trace(self.hidden, self.logits, tuple(self.layers))


class HuggingFaceModel:
    """A transformers model as a `TracedModel`; layers that share weights stand in `layers` as often as they run."""

    def __init__(self, checkpoint: Checkpoint, model: PreTrainedModel, trust_remote_code: bool = False) -> None:
        self.checkpoint, self.model = checkpoint, model
        self._trust = trust_remote_code
        self._base = getattr(model, model.base_model_prefix, model)
        two_halves = bool(model.config.is_encoder_decoder)
        self._stack = self._base.get_encoder() if two_halves else self._base
        self._whole = self._stack if two_halves else model
        self._options = {} if two_halves else {"use_cache": False}
        self._numbers = {layer.name: number for number, layer in enumerate(checkpoint.layers)}
        self._names = {module: name for name, module in self._base.named_modules() if name in self._numbers}
        self._blocks = find_blocks(self._base, self._names.values())
        self._now = _Pass()
        self.layers: tuple[HeadMap, ...] = ()
        for module in self._names:
            module.register_forward_pre_hook(self._keep_input, with_kwargs=True)
        self._stack.register_forward_hook(self._keep_hidden)
        self.layers, self.causal = self._compared()
        if not self._resumes():
            self._blocks = []

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        """For each of `layers` its number in the checkpoint."""
        return tuple(self._numbers[layer.name] for layer in self.layers)

    def output_weights(self, number: int) -> Float[Tensor, "heads v_dim dim"] | None:
        """W_O of every head of the layer with this number in the checkpoint; None where it cannot be followed."""
        return self.checkpoint.read(number, values=True).W_O

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
        place, files = self.checkpoint.place, self.checkpoint.files
        assert files is not None
        try:
            tokenizer = files.tokenizer(trust_remote_code=self._trust)
        except Exception as error:  # the library raises what it likes
            raise CheckpointError(f"'{place}' has no tokenizer that can be used: {error}") from error
        if len(tokenizer) <= len(tokenizer.all_special_tokens):
            raise CheckpointError(f"'{place}' has no tokenizer that can be used: it brings no vocabulary")
        return tokenizer

    def trace(
        self,
        ids: Int[Tensor, "batch length"],
        interventions: Interventions | None = None,
        attention_mask: Int[Tensor, "batch length"] | None = None,
        *,
        see: Callable[[LayerTrace], None] | None = None,
    ) -> Trace:
        """The forward pass on these tokens, with interventions; see `TracedModel`.

        `attention_mask` is 0 where a text has been padded, at its end.
        """
        now = _Pass(interventions or {})
        now.see = see or now.layers.append
        return self._run(now, ids, attention_mask).trace

    def start(
        self, ids: Int[Tensor, "batch length"], see: Callable[[LayerTrace], None] | None = None
    ) -> tuple[Trace, Start]:
        """As `trace` without interventions, and what other passes on these tokens can start from."""
        blocks = Counter(Start(), self._blocks)
        now = _Pass(blocks=blocks)
        now.see = see or now.layers.append
        return self._run(now, ids).trace, blocks.start

    def output(
        self, ids: Int[Tensor, "batch length"], interventions: Interventions, start: Start, logits: bool = True
    ) -> Trace:
        """As `trace`, without its `layers`, and without logits unless they are asked for.

        `start` is from the same tokens: the pass begins in the first block that has an intervention.
        """
        blocks = Counter(start, self._blocks, min((layer for layer, _ in interventions), default=len(self.layers)))
        now = _Pass(interventions, blocks, layer=blocks.layers_skipped)
        return self._run(now, ids, logits=logits).trace

    # While the model runs

    def _run(self, now: _Pass, ids: Tensor, mask: Tensor | None = None, logits: bool = True) -> _Pass:
        intervention.check(now.interventions, self.layers)
        model, ids = self._whole if logits else self._stack, ids.to(self.model.device)
        mask = torch.ones_like(ids) if mask is None else mask.to(ids.device)
        with (
            LOCK,
            attention_function(NAME, self._attend),
            forwards(now.blocks.forwards() if now.blocks else {}),
            torch.no_grad(),
        ):
            self._now = now
            out = model(input_ids=ids, attention_mask=mask, return_dict=True, **self._options)
            self._now = _Pass()  # so that nothing keeps the trace but its user
        now.logits = out.get("logits")
        return now

    def _keep_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = (*args, kwargs.get("hidden_states"), *kwargs.values())
        self._now.x = next(x for x in given if isinstance(x, Tensor))

    def _keep_hidden(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._now.hidden = output[0]

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
        """The attention function that the model calls."""
        now, name = self._now, self._names.get(module)
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        mask = attention_mask  # transformers closes a pair by the least number there is
        if mask is not None:
            mask = mask.masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -torch.inf)
        formula = Formula(lambda q, k: scale * (q @ k.mT), mask, softcap, position_bias, s_aux)
        qkv = query, reference.repeat_heads(key, query), reference.repeat_heads(value, query)
        if name is None or now.x is None:  # not one of the layers that are traced, such as cross-attention
            found = attend(None, query[:, 0], qkv, formula, {})
        else:
            chosen = intervention.of_layer(now.interventions, now.layer)
            found = attend(self.checkpoint.layers[self._numbers[name]], now.x, qkv, formula, chosen)
            self._record(name, found)
        return found.output.transpose(1, 2).contiguous(), found.weights

    def _record(self, name: str, found: LayerTrace) -> None:
        now = self._now
        now.layer += 1
        now.names.append(name)
        now.see(found)
        if now.blocks:
            now.blocks.ran_layer()

    # When the model is opened

    def _compared(self) -> tuple[tuple[HeadMap, ...], bool]:
        """The layers in the order of running, and whether the model is causal.

        Raises CheckpointError if the output differs from that with the model's own attention.
        """
        size = int(self.model.config.get_text_config().vocab_size)
        ids = torch.arange(5, 12)[None] % size
        first, later = self._run(_Pass(), ids), self._run(_Pass(), torch.cat([ids[:, :-1], ids[:, :1]], 1))
        self.model.set_attn_implementation("eager")
        own = self._run(_Pass(), ids)
        self.model.set_attn_implementation(NAME)
        hidden, expected, changed = (one.trace.hidden for one in (first, own, later))
        if not first.names or not torch.allclose(hidden, expected, rtol=1e-3, atol=1e-3 * float(expected.std())):
            raise CheckpointError(_untraceable(self.checkpoint, BY_ITSELF))
        causal = torch.allclose(changed[:, :-1], hidden[:, :-1], rtol=0, atol=1e-5 * float(hidden.std()))
        return tuple(self.checkpoint.layers[self._numbers[name]] for name in first.names), causal

    def _resumes(self) -> bool:
        """Whether a pass that starts in the last block gives what the whole pass gives."""
        ids = torch.arange(5, 12)[None] % int(self.model.config.get_text_config().vocab_size)
        trace, start = self.start(ids)
        try:
            found = self.output(ids, {(len(self.layers) - 1, None): Intervention()}, start, logits=False).hidden
        except Exception:  # a block may need what an earlier one leaves behind
            return False
        return torch.equal(found, trace.hidden)

    def _spelled(self, token: str) -> str:
        if token in self.tokenizer.all_special_tokens or token.startswith("##"):
            return token
        text: str = self.tokenizer.convert_tokens_to_string([token])
        return text if text and "\ufffd" not in text else token


def _untraceable(checkpoint: Checkpoint, why: str) -> str:
    kind = checkpoint.config.model_type
    return f"'{checkpoint.place}', a model of type '{kind}', cannot be traced: {why}"


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
