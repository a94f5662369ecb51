"""Attention that a model computes by itself, and products in any spelling: what is taken for one, and what is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from querykey.checkpoint.probe import Recorder


class Plain(nn.Module):
    """An attention that calls no library: 3 heads of 5 on a width of 15, with one weight for q, k and v."""

    def __init__(self, attention: Callable[[Tensor, Tensor, Tensor], Tensor], fused: Callable[..., Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(45, 15, device="meta"))
        self.bias = nn.Parameter(torch.empty(45, device="meta"))
        self.attention, self.fused = attention, fused

    def forward(self, x: Tensor) -> Tensor:
        thirds = self.fused(x, self.weight, self.bias).split(15, -1)
        q, k, v = (y.view(*x.shape[:2], 3, 5).transpose(1, 2) for y in thirds)
        return self.attention(q, k, v).transpose(1, 2).flatten(2)


class Whole(nn.Module):
    """A model of one such layer."""

    def __init__(self, layer: Plain) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 15, device="meta")
        self.layer = layer
        self.other = nn.Linear(15, 30, device="meta")

    def forward(self, input_ids: Tensor, use_cache: bool) -> Tensor:
        return self.layer(self.embedding(input_ids))


def linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return nn.functional.linear(x, weight, bias)


def product(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * 0.7).softmax(-1) @ v


def summed(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    weights = (torch.einsum("bhid,bhjd->bhij", q, k) * 0.7).softmax(dim=-1)
    return torch.einsum("bhij,bhjd->bhid", [weights, v])


def batched(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.flatten(0, 1) for x in (q, k, v))
    scores = torch.baddbmm(torch.ones(1, 2, 2, dtype=q.dtype), q, k.mT, beta=3, alpha=0.7)
    return torch.bmm(torch.softmax(scores, dim=2), v).unflatten(0, (4, 3))


def kernel(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return nn.functional.scaled_dot_product_attention(q, k, value=v, is_causal=True, scale=0.7)


def of_plain(attention: Callable[..., Tensor], fused: Callable[..., Tensor] = linear) -> Recorder:
    recorder = Recorder()
    recorder.run(Whole(Plain(attention, fused)).double())  # type: ignore[arg-type]
    return recorder


@pytest.mark.parametrize("attention", [product, summed, batched, kernel])
@pytest.mark.parametrize(
    "fused",
    [
        linear,
        lambda x, weight, bias: x @ weight.t() + bias,
        lambda x, weight, bias: torch.addmm(bias, x.flatten(0, 1), weight.t()).view(*x.shape[:2], 45),
        lambda x, weight, bias: torch.cat([linear(x, weight[i : i + 15], bias[i : i + 15]) for i in (0, 15, 30)], -1),
        lambda x, weight, bias: (bias.view(9, 5) + (x @ weight.t()).unflatten(-1, (9, 5))).flatten(-2),  # by heads
    ],
)
def test_attention_and_projections_in_any_spelling(
    attention: Callable[..., Tensor], fused: Callable[..., Tensor]
) -> None:
    (layer,) = of_plain(attention, fused).layers.values()
    assert layer.value
    for number, projection in enumerate((layer.query, layer.key, layer.value)):
        (part,) = projection.parts
        own = torch.arange(15 * number, 15 * number + 15)
        assert part.weight == "layer.weight"
        assert [name for name, _ in part.biases] == ["layer.bias"]
        assert part.rows.equal(own)
        assert part.biases[0].places.equal(own)
    assert layer.scaling == pytest.approx(0.7)


@pytest.mark.parametrize(
    "attention",
    [
        lambda q, k, v: (q @ k.mT).softmax(-2).mT @ v,  # over queries
        lambda q, k, v: (q @ k.mT) @ v,  # linear attention
        lambda q, k, v: (q.softmax(-1) @ k.mT) @ v,
    ],
)
def test_products_that_are_no_attention_are_not_taken_for_it(attention: Callable[..., Tensor]) -> None:
    assert not of_plain(attention).layers


@pytest.mark.parametrize(
    ("fused", "reason"),
    [
        (lambda x, weight, bias: linear(x, weight * 2, bias), "comes out of linear with a parameter, layer.bias"),
        (
            lambda x, weight, bias: linear(x[..., :9], weight[:, :9], bias),
            "comes out of linear with layer.weight, layer.bias",
        ),
        (lambda x, weight, bias: linear(x, weight, bias) * bias, "comes out of mul with layer.bias"),
        (lambda x, weight, bias: 2 * linear(x, weight, bias) + bias, "comes out of add with layer.bias"),
        (lambda x, weight, bias: linear(x, weight.flip(0), bias), "comes out of linear with a parameter, layer.bias"),
        (
            lambda x, weight, bias: torch.cat(
                [linear(x, weight[:9], bias[:9]), linear(2 * x, weight[9:], bias[9:])], -1
            ),
            "the parts of its query act on different inputs",
        ),
        (
            lambda x, weight, bias: torch.cat(
                [linear(x, weight[i : i + 9], bias[36 - i : 45 - i]) for i in range(0, 45, 9)], -1
            ),
            "comes out of linear with layer.weight, layer.bias",
        ),
    ],
)
def test_weights_used_in_another_way_are_refused_by_name(fused: Callable[..., Tensor], reason: str) -> None:
    recorder = of_plain(product, fused)
    assert not recorder.layers
    assert reason in recorder.skipped["layer"]


def test_what_is_added_later_is_a_bias_of_its_own() -> None:
    """Also with its numbers in another order, as in DeBERTa."""

    def fused(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return (linear(x, weight, bias).unflatten(-1, (9, 5)) + bias.view(5, 9).t()).flatten(-2)

    (layer,) = of_plain(product, fused).layers.values()
    first, second = layer.key.parts[0].biases
    assert first.places.equal(torch.arange(15, 30))
    assert second.places.equal(torch.arange(45).view(5, 9).T.flatten()[15:30])


def test_weights_of_another_module_are_not_taken_for_its_own() -> None:
    recorder = Recorder()
    whole = Whole(Plain(product, lambda x, w, b: torch.cat([linear(x, w[:15], b[:15]), whole.other(x)], -1)))
    recorder.run(whole.double())  # type: ignore[arg-type]
    assert recorder.skipped == {"layer": "its key comes from other.weight, which is not its own"}
