"""A small pre-norm Transformer around the attention layer: encoder or decoder, with or without MLP and positions.

x = embedding of each position's tokens (their sum) + learned positions, if any
x = x + attention(norm(x));  x = x + mlp(norm(x))        per layer
logits = norm(x) W_U                                     one per class
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from querykey.attention.buffers import Cache
from querykey.attention.cache import KVCache
from querykey.attention.initial import initialise
from querykey.attention.layer import SelfAttention
from querykey.attention.sequence import Span
from querykey.design import Design
from querykey.generation import Generation
from querykey.layout import Init, Weight
from querykey.positions import Rotary

Positions = Literal["none", "learned", "rotary"]


class Block(nn.Module):
    """Attention and, unless its width is 0, an MLP, each behind a norm and beside a residual."""

    def __init__(self, attention: SelfAttention, dim: int, hidden: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim, bias=False)
        self.attention = attention
        self.mlp_norm = nn.LayerNorm(dim, bias=False) if hidden else None
        self.up = nn.Linear(dim, hidden, bias=False) if hidden else None
        self.down = nn.Linear(hidden, dim, bias=False) if hidden else None

    def forward(self, x: Tensor, mask: Tensor | None, cache: Cache | None) -> Tensor:
        """(batch, length, dim) to the same."""
        x = x + self.attention(self.attention_norm(x), mask, cache=cache)
        if self.mlp_norm is not None and self.up is not None and self.down is not None:
            x = x + self.down(nn.functional.gelu(self.up(self.mlp_norm(x))))
        return x


class Transformer(Generation):
    """A Transformer that maps a sequence of tokens to logits at each position.

    Args:
        vocabulary: number of input tokens.
        classes: number of logits per position.
        length: the longest sequence; only learned positions need it.
        dim, heads, design, head_dim, dropout: of the attention layers; see `SelfAttention`.
        layers: depth.
        mlp: hidden width of the MLP in units of `dim`; 0 for none.
        causal: a decoder rather than an encoder.
        window: how many positions each one sees, itself included, in a decoder; None for all before it.
        positions: ``"none"``, ``"learned"`` (added to the embedding), or ``"rotary"`` or a `Rotary` (in the attention).
        seed: of the initial values; see `initialise_from`.

    Raises:
        DesignError: if the design cannot be at these sizes.
        ValueError: if a size is out of range.
    """

    def __init__(
        self,
        vocabulary: int,
        classes: int,
        length: int,
        *,
        dim: int,
        heads: int,
        layers: int,
        design: Design | str = "q,k,v",
        head_dim: int | None = None,
        mlp: float = 4.0,
        causal: bool = False,
        window: int | None = None,
        positions: Positions | Rotary = "learned",
        dropout: float = 0.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        sizes = {"vocabulary": vocabulary, "classes": classes, "length": length, "layers": layers}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be positive, not {size}")
        if mlp < 0:
            raise ValueError(f"mlp is a width in units of dim, 0 for none, not {mlp}")
        if not isinstance(positions, Rotary) and positions not in ("none", "learned", "rotary"):
            raise ValueError(f"positions must be one of none, learned, rotary, or a Rotary, not {positions!r}")
        attention = functools.partial(
            SelfAttention,
            dim,
            heads,
            design,
            head_dim=head_dim,
            causal=causal,
            rotary=positions if isinstance(positions, Rotary) else positions == "rotary",
            window=window,
            dropout=dropout,
        )
        self.length = length
        self.embedding = nn.Embedding(vocabulary, dim)
        self.positions = nn.Parameter(torch.empty(length, dim)) if positions == "learned" else None
        self.blocks = nn.ModuleList(Block(attention(), dim, round(mlp * dim)) for _ in range(layers))
        self.norm = nn.LayerNorm(dim, bias=False)
        self.unembedding = nn.Linear(dim, classes, bias=False)
        initialise_from(self, seed)

    def forward(
        self,
        inputs: Int[Tensor, "batch length features"],
        mask: Tensor | None = None,
        caches: Sequence[Cache] | None = None,
    ) -> Float[Tensor, "batch length classes"]:
        """Logits of tokens; with `caches`, one per layer, `inputs` are the next positions.

        Args:
            inputs: (batch, length, features); the embeddings of a position's tokens are added up.
            mask: as `SelfAttention` takes it.
            caches: see `KVCache`.

        Raises:
            ValueError: if there are more positions than learned ones, or not one cache per layer.
        """
        if caches is not None:
            self._check_caches(caches)
        x = self._embed(inputs, caches[0] if caches else None)
        for block, cache in zip(self.blocks, caches or itertools.repeat(None), strict=False):
            x = block(x, mask, cache)
        logits: Tensor = self.unembedding(self.norm(x))
        return logits

    def caches(self, padding: Int[Tensor, " batch"] | None = None) -> list[KVCache]:
        """An empty cache for each layer, for a batch whose rows begin with these numbers of padding positions."""
        return [KVCache(padding=padding) for _ in self.blocks]

    def check_length(self, longest: int, steps: int) -> None:
        """Raise unless this is a decoder that can continue prompts, the longest of this length, by so many tokens.

        Raises:
            ValueError: with what prevents it.
        """
        vocabulary, classes = self.embedding.num_embeddings, self.unembedding.out_features
        if not self.attentions[0].causal:
            raise ValueError(
                "an encoder attends to later positions and cannot generate; make the model with causal=True"
            )
        if classes != vocabulary:
            raise ValueError(
                f"generated tokens are inputs, so the {classes} classes must be the {vocabulary} of the vocabulary"
            )
        if self.positions is not None and longest + steps - 1 > self.length:  # the last token is not read
            raise ValueError(
                f"the model has {self.length} learned positions; a prompt of {longest} and {steps} steps are too many"
            )

    def _embed(self, inputs: Tensor, cache: Cache | None = None) -> Tensor:
        """The sum of each position's tokens, and its learned position, counted after the padding, if there are any."""
        x: Tensor = self.embedding(inputs).sum(-2)
        if self.positions is None:
            return x
        own: Span | Tensor = Span(0, inputs.shape[1])
        padding, least = None, 0
        if cache is not None:
            own, padding, least = cache.next_positions(inputs.shape[1]), cache.padding, cache.least_padding
        if isinstance(own, Span):
            if own.stop - least > self.length:
                raise ValueError(f"the model has {self.length} learned positions; {own.stop - least} would be too many")
            if padding is None:
                return x + self.positions[own.start : own.stop]
            own = torch.arange(own.start, own.stop, device=x.device)
        counted = own if padding is None else own - padding.to(x.device)[:, None]
        return x + self.positions[counted.clamp(min=0)]

    def _check_caches(self, caches: Sequence[Cache]) -> None:
        if len(caches) != len(self.blocks):
            raise ValueError(f"expected one cache for each of the {len(self.blocks)} layers, got {len(caches)}")
        lengths = [len(cache) for cache in caches if isinstance(cache, KVCache)]  # others would have to ask the device
        if len(set(lengths)) > 1:
            *most, last = map(str, lengths)
            raise ValueError(
                f"the caches hold {', '.join(most)} and {last} positions, so an earlier step failed midway; "
                f"take it back with crop({min(lengths)}) for each cache"
            )

    @property
    def attentions(self) -> list[SelfAttention]:
        """The attention layer of each block."""
        return [module for module in self.modules() if isinstance(module, SelfAttention)]


class Initial(NamedTuple):
    """Rows of a parameter that are drawn together: by which name, and from which distribution."""

    name: str
    parameter: Tensor
    rows: slice
    weight: Weight


def initialisations(model: Transformer) -> Iterator[Initial]:
    """Every parameter of the model with a name and its initial distribution: the one table for all designs.

    A shared projection goes by the name of its first role, so that `qk_proj` starts as the `q_proj` of separate
    weights does.
    """
    dim = model.norm.weight.shape[0]

    def whole(name: str, tensor: Tensor, init: Init, scale: float) -> Initial:
        return Initial(name, tensor, slice(None), Weight(name, tuple(tensor.shape), init, scale))

    yield whole("embedding", model.embedding.weight, "normal", 1.0)
    if model.positions is not None:
        yield whole("positions", model.positions, "normal", 1.0)
    for number, block in enumerate(model.blocks):
        assert isinstance(block, Block)
        stored = block.attention.stored_weights()
        for weight in block.attention.layout.weights:
            role, underscore, rest = (weight.like or weight.name).partition("_proj")
            common = role[0] + underscore + rest if underscore else role
            yield Initial(f"blocks.{number}.{common}", *stored[weight.name], weight)
        if block.up is not None and block.down is not None:
            hidden = block.up.weight.shape[0]
            yield whole(f"blocks.{number}.up", block.up.weight, "normal", dim**-0.5)
            yield whole(f"blocks.{number}.down", block.down.weight, "normal", hidden**-0.5)
    yield whole("unembedding", model.unembedding.weight, "normal", dim**-0.5)
    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            yield whole(name, module.weight, "constant", 1.0)


def initialise_from(model: Transformer, seed: int) -> None:
    """Draw every parameter from a generator of its own, seeded by (seed, name); norms start at 1.

    So two designs start equal in all that they have in common, in whatever order their parameters are made.
    """
    for name, parameter, rows, weight in initialisations(model):
        digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        initialise(parameter, weight, generator, rows)
