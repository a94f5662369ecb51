"""Decoding with a cache of latents: the time of a step of a converted model beside the original, and the bytes kept.

    python benchmarks/latents.py [--rounds 15] [--threads N]

A step is one new token through attention layers of the size of SmolLM2 (dim 576, 9 query and 3 key heads of 64), with
`cached` tokens before it and half of the cache. Ratios of times within a round, with the interval that holds the
middle half of the rounds. Weights are random: they do not change the time.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median

import torch
from options import rounds_of
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from querykey.bench.timing import interleave, ratio
from querykey.conversion.fit import section
from querykey.conversion.layers import shared_layers
from querykey.extras import cache_argument
from querykey.modeling import install

CACHED = (1024, 4096, 8192, 16384, 32768)
DIM, HEADS, KV_HEADS, LAYERS = 576, 9, 3, 4


def main() -> None:
    rounds = rounds_of(__doc__)
    print("| cached | original, ms | latent / original | bytes |\n| --: | --: | --: | --: |")
    for cached in CACHED:
        steps, sizes = {}, {}
        for name, converted in (("original", False), ("latent", True)):
            steps[name], sizes[name] = step(cached, converted)
        times = interleave(steps, rounds)
        share = sizes["latent"] / sizes["original"]
        milliseconds = 1e3 * median(times["original"])
        print(f"| {cached} | {milliseconds:.1f} | {ratio(times, 'latent', 'original')} | {share:.3f} |", flush=True)


def model(converted: bool) -> LlamaForCausalLM:
    """With next to no MLP and vocabulary, so that attention is what is timed."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=DIM, intermediate_size=8, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS, max_position_embeddings=2 * max(CACHED),
    )  # fmt: skip
    found = LlamaForCausalLM(config).eval().requires_grad_(False)
    if converted:
        layers = shared_layers(found, "kv")
        install(found, section(layers, [layer.outputs // 2 for layer in layers]))
    return found


def step(cached: int, converted: bool) -> tuple[Callable[[], object], int]:
    """A step, and the bytes of its cache; the cache is filled with random numbers."""
    found, cache = model(converted), DynamicCache()
    for layer in range(LAYERS):
        heads, size = (1, KV_HEADS * DIM // HEADS) if converted else (KV_HEADS, DIM // HEADS)
        keys = torch.randn(1, heads, cached, size)
        cache.update(keys, keys[..., : 0 if converted else size].clone(), layer)
    token = torch.zeros(1, 1, dtype=torch.int64)

    def one() -> None:
        found(token, use_cache=True, **{cache_argument(found.forward): cache})
        cache.crop(-1)

    return one, sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)


if __name__ == "__main__":
    main()
