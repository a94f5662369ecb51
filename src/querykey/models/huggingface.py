"""Traces of a trained transformers model on text or on images, and interventions in it.

model = open_model("a/folder or repository")
ids, tokens = model.encode("The cat sat on the mat.")
trace = model.trace(ids)                    # trace.layers[2].weights[0, 5]: head 5 of layer 2
tied = model.trace(ids, {(2, 5): Intervention(key=lambda given: given.query)})
seeing = open_model("a/vision transformer", reads="images")
trace = seeing.trace(pixels)                # (batch, channels, height, width)

The model computes everything itself except the attention function of each layer, which is `trace.attend`. Opening runs
a few tokens with it and with the model's own attention, and refuses a model where the two differ.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int, Num
from torch import Tensor, nn

from querykey.attention import reference
from querykey.checkpoint import Checkpoint, CheckpointError, HeadMap, open_checkpoint
from querykey.checkpoint.building import quietly
from querykey.checkpoint.inputs import Reads, inputs_of
from querykey.models import intervention
from querykey.models.interface import attention_function
from querykey.models.intervention import Intervention, Interventions
from querykey.models.resume import Counter, Pass, Start, find_blocks
from querykey.models.trace import Formula, LayerTrace, Trace, attend, forwards

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NAME = "querykey_trace"
Inputs = Num[Tensor, "batch *shape"]
"""Ids of tokens (batch, length), or pixels (batch, channels, height, width)."""
LOCK = threading.RLock()  # transformers has one table of attention functions
BY_ITSELF = "it computes its attention by itself, and not by transformers' attention functions"


def open_model(
    checkpoint: Checkpoint | str | Path,
    revision: str | None = None,
    trust_remote_code: bool = False,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    reads: Reads = "text",
) -> HuggingFaceModel:
    """Load the whole model of an open checkpoint, of a folder or of a repository on the Hub, to run it.

    On text or on images, the part of the model runs that reads these alone: of CLIP one tower, and of a model with
    encoder and decoder the encoder. Raises CheckpointError, a ValueError, as `open_checkpoint` does, and where the
    model reads something else or computes its attention in a way that cannot be traced.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = open_checkpoint(checkpoint, revision, trust_remote_code)
    checkpoint.reader(reads)
    assert checkpoint.files is not None  # open_checkpoint gives some
    with LOCK, quietly(), attention_function(NAME, lambda *_, **__: None):
        try:
            model = checkpoint.files.load(
                checkpoint.config,
                trust_remote_code=trust_remote_code,
                dtype=dtype,
                attn_implementation=NAME,
                experts_implementation="eager",
            )
            model = model.to(device).eval().requires_grad_(False)
            return HuggingFaceModel(checkpoint, model, trust_remote_code, reads)
        except CheckpointError:
            raise
        except Exception as error:  # the library raises what it likes
            why = f"loading or running it fails ({type(error).__name__}: {' '.join(str(error).split())})"
            unknown = isinstance(error, KeyError) and error.args == (NAME,)  # models with a table of their own
            raise CheckpointError(_untraceable(checkpoint, BY_ITSELF if unknown else why)) from error


class HuggingFaceModel:
    """A transformers model as a `TracedModel`; layers that share weights stand in `layers` as often as they run."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        model: PreTrainedModel,
        trust_remote_code: bool = False,
        reads: Reads = "text",
    ) -> None:
        self.checkpoint, self.model, self.reads = checkpoint, model, reads
        self._trust = trust_remote_code
        self._base = getattr(model, model.base_model_prefix, model)
        part: Any = self._base.get_submodule(checkpoint.reader(reads))
        two_halves = reads == "text" and bool(part.config.is_encoder_decoder)
        self._stack = part.get_encoder() if two_halves else part
        self._whole = model if self._stack is self._base else self._stack
        self._options = {"use_cache": False} if reads == "text" and not two_halves else {}
        self._numbers = {layer.name: number for number, layer in enumerate(checkpoint.layers)}
        self._names = {module: name for name, module in self._base.named_modules() if name in self._numbers}
        self._blocks = find_blocks(self._base, self._names.values())
        self._now = Pass()
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
        inputs: Inputs,
        interventions: Interventions | None = None,
        attention_mask: Int[Tensor, "batch length"] | None = None,
        *,
        see: Callable[[LayerTrace], None] | None = None,
    ) -> Trace:
        """The forward pass on these tokens or pixels, with interventions; see `TracedModel`.

        `attention_mask` is 0 where a text has been padded, at its end.
        """
        now = Pass(interventions or {})
        now.see = see or now.layers.append
        return self._run(now, inputs, attention_mask).trace

    def start(self, inputs: Inputs, see: Callable[[LayerTrace], None] | None = None) -> tuple[Trace, Start]:
        """As `trace` without interventions, and what other passes on these inputs can start from."""
        blocks = Counter(Start(), self._blocks)
        now = Pass(blocks=blocks)
        now.see = see or now.layers.append
        return self._run(now, inputs).trace, blocks.start

    def output(self, inputs: Inputs, interventions: Interventions, start: Start, logits: bool = True) -> Trace:
        """As `trace`, without its `layers`, and without logits unless they are asked for.

        `start` is from the same inputs: the pass begins in the first block that has an intervention.
        """
        blocks = Counter(start, self._blocks, min((layer for layer, _ in interventions), default=len(self.layers)))
        now = Pass(interventions, blocks, layer=blocks.layers_skipped)
        return self._run(now, inputs, logits=logits).trace

    def tokens(self, inputs: Inputs) -> tuple[int, int]:
        """The numbers of tokens of one example in the layers that have the fewest and the most."""
        if self.reads == "text":
            return inputs.shape[1], inputs.shape[1]
        counts = [layer.x.shape[:-1].numel() for layer in self.trace(inputs[:1]).layers]
        return min(counts), max(counts)

    # While the model runs

    def _run(self, now: Pass, inputs: Tensor, mask: Tensor | None = None, logits: bool = True) -> Pass:
        intervention.check(now.interventions, self.layers)
        model, inputs = self._whole if logits else self._stack, inputs.to(self.model.device)
        if self.reads == "text":
            mask = torch.ones_like(inputs) if mask is None else mask.to(inputs.device)
            given = {"input_ids": inputs, "attention_mask": mask}
        else:
            given = {"pixel_values": inputs.to(self.model.dtype)}
        with (
            LOCK,
            attention_function(NAME, self._attend),
            forwards(now.blocks.forwards() if now.blocks else {}),
            torch.no_grad(),
        ):
            self._now = now
            out = model(**given, return_dict=True, **self._options)
            self._now = Pass()  # so that nothing keeps the trace but its user
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
        inputs = self._sample()
        other = inputs.clone()
        other[..., -1:] = inputs[..., :1]  # the last token, or the pixels on the right
        first, later = self._run(Pass(), inputs), self._run(Pass(), other)
        self.model.set_attn_implementation("eager")
        own = self._run(Pass(), inputs)
        self.model.set_attn_implementation(NAME)
        hidden, expected, changed = (one.trace.hidden for one in (first, own, later))
        if not first.names or not torch.allclose(hidden, expected, rtol=1e-3, atol=1e-3 * float(expected.std())):
            raise CheckpointError(_untraceable(self.checkpoint, BY_ITSELF))
        causal = torch.allclose(changed[:, :-1], hidden[:, :-1], rtol=0, atol=1e-5 * float(hidden.std()))
        return tuple(self.checkpoint.layers[self._numbers[name]] for name in first.names), causal

    def _sample(self) -> Tensor:
        if self.reads == "text":
            return torch.arange(5, 12)[None] % int(self.model.config.get_text_config().vocab_size)
        pixels: Tensor = inputs_of(self._stack, optional=False)["pixel_values"][:1]
        return pixels

    def _resumes(self) -> bool:
        """Whether a pass that starts in the last block gives what the whole pass gives."""
        inputs = self._sample()
        trace, start = self.start(inputs)
        try:
            found = self.output(inputs, {(len(self.layers) - 1, None): Intervention()}, start, logits=False).hidden
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
