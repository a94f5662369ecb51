"""What else a cache can be halved by: plain forms of published methods beside `querykey convert`, on the same text.

    python benchmarks/conversion.py MODEL --calibrate news.txt book.txt code/ --evaluate manual.txt other.txt

Each method replaces W_K and W_V of all layers by matrices of lower rank that a cache of the given size can hold.
Nothing is trained. MODEL has one projection for keys and one for values (Llama, Mistral, Qwen, Gemma and their like).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from torch import Tensor

from querykey.bilinear.latent import allocate, fit_latent, token_weighted
from querykey.conversion.calibrate import Moments, calibrate
from querykey.conversion.convert import mixed
from querykey.conversion.evaluate import log_probabilities, paired_ratio
from querykey.conversion.layers import SharedLayer, shared_layers
from querykey.conversion.source import open_model
from querykey.conversion.texts import Text, check_apart, read_texts


def put(layers: list[SharedLayer], products: list[Tensor]) -> None:
    """Writes W = [W_K W_V] of each layer into its projections."""
    for layer, product in zip(layers, products, strict=True):
        for (module, _), half in zip(layer.projections(), product.T.chunk(2), strict=True):
            module.weight.data.copy_(half)


def losses(model, texts: list[Text]) -> list[list[float]]:
    """Of each window of each text."""
    return [[loss(model, window) for window in text.windows] for text in texts]


def loss(model, window: Tensor) -> float:
    return -float(log_probabilities(model, window).gather(-1, window[1:, None]).mean())


def blocks(layer: SharedLayer, found: Moments, parts: list[Tensor], *, weighted: bool, metric: bool):
    """A fit for each part of the columns of W, in the Fisher metric or in none, with token weights or without."""
    S = token_weighted(found.inputs, found.weighted) if weighted else found.inputs
    W, G = layer.weights().detach(), found.metric if metric else torch.eye(layer.outputs)
    return [fit_latent(W[:, part], S, G[part][:, part]) for part in parts]


def low_rank(layers, moments, total: int, divide, *, weighted=True, metric=True, even=False) -> list[Tensor]:
    """The products B A of each layer, one latent for each part that `divide` gives, `total` dimensions in all."""
    parts = [divide(layer) for layer in layers]
    fits = [
        blocks(layer, found, part, weighted=weighted, metric=metric)
        for layer, found, part in zip(layers, moments, parts, strict=True)
    ]
    values = [fit.values for layer in fits for fit in layer]
    ranks = [total // len(values)] * len(values) if even else allocate(values, total)
    products, at = [], 0
    for layer, fit, part in zip(layers, fits, parts, strict=True):
        product = torch.empty(layer.dim, layer.outputs, dtype=torch.float64)
        for one, columns in zip(fit, part, strict=True):
            latent, at = one.latent(ranks[at]), at + 1
            product[:, columns] = latent.from_input @ latent.to_outputs
        products.append(product)
    return products


def pooled(layers, heads: int) -> list[Tensor]:
    """The mean of all key heads in place of each, and of all value heads (as GQA starts from)."""
    weights = [layer.weights().detach() for layer in layers]
    means = [W.unflatten(1, (2, heads, -1)).mean(2, keepdim=True) for W in weights]
    return [mean.expand(-1, 2, heads, -1).flatten(1) for mean in means]


def methods(layers, moments, cache: float, heads: int):
    """Each method by name, with the part of the cache that it leaves and the products."""
    total = round(cache * sum(layer.outputs for layer in layers))

    def together(layer):
        return [torch.arange(layer.outputs)]

    def separate(layer):
        return list(torch.arange(layer.outputs).chunk(2))

    def by_head(layer):
        return [part.flatten() for part in torch.arange(layer.outputs).unflatten(0, (2, heads, -1)).unbind(1)]

    yield (
        "one latent, Fisher metric, ranks over all layers (querykey)",
        cache,
        low_rank(layers, moments, total, together),
    )
    yield "the same rank in every layer", cache, low_rank(layers, moments, total, together, even=True)
    yield "without token weights", cache, low_rank(layers, moments, total, together, weighted=False)
    yield "one latent for each key head", cache, low_rank(layers, moments, total, by_head)
    yield "keys and values apart, Fisher metric", cache, low_rank(layers, moments, total, separate)
    plain = low_rank(layers, moments, total, separate, weighted=False, metric=False, even=True)
    yield "keys and values apart, whitened inputs (as Palu)", cache, plain
    if heads > 1:
        yield "mean of the key heads (as GQA starts)", 1 / heads, pooled(layers, heads)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--calibrate", nargs="+", required=True)
    parser.add_argument("--evaluate", nargs="+", required=True)
    parser.add_argument("--cache", type=float, default=0.5)
    parser.add_argument("--windows", type=int, default=48)
    parser.add_argument("--each", type=int, default=8, help="windows of each evaluation text")
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--state", type=Path, help="a file that keeps the calibration")
    chosen = parser.parse_args()
    check_apart(chosen.calibrate, chosen.evaluate)
    model, tokenizer = open_model(chosen.model, dtype="float32")
    layers, count = shared_layers(model, "kv"), -(-chosen.windows // len(chosen.calibrate))
    texts = read_texts(chosen.calibrate, tokenizer, windows=count, length=chosen.length)
    evaluation = read_texts(chosen.evaluate, tokenizer, windows=chosen.each, length=chosen.length, seed=7)
    moments = calibrate(model, layers, mixed(texts), state=chosen.state)
    own, before = [layer.weights().detach().clone() for layer in layers], losses(model, evaluation)
    print(f"| method | cache | perplexity ratio | {' | '.join(text.name for text in evaluation)} |")
    print(f"|---|--:|--:|{'--:|' * len(evaluation)}")
    for name, cache, products in methods(layers, moments, chosen.cache, model.config.num_key_value_heads):
        put(layers, products)
        after = losses(model, evaluation)
        put(layers, own)
        more = [[b - a for a, b in zip(*both, strict=True)] for both in zip(before, after, strict=True)]
        ratio, cells = (
            paired_ratio([d for one in more for d in one]),
            [f"{paired_ratio(one).value:.3f}" for one in more],
        )
        interval = f"{ratio.value:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]"
        print(f"| {name} | {cache:.0%} | {interval} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
