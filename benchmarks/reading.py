"""Inspecting a large checkpoint: bytes, time and memory, against what the disk and the arithmetic allow.

    python benchmarks/reading.py [--layers 8] [--folder DIR]

Makes a checkpoint of Llama's layout with random bfloat16 queries and keys (8 layers of width 4096, 32 query heads and 8
key heads of 128: 4 GB in shards) in a temporary folder, inspects it with all measures, and deletes it. The bound is the
time to read as many bytes into a buffer, and the floating-point operations of the Gram matrices at the rate of the
machine's own matrix product; what a model of 405 billion parameters would take follows from the parts.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save_file

from querykey.bilinear import BilinearForm
from querykey.checkpoint import open_checkpoint
from querykey.inspection.inspect import examine
from querykey.inspection.measures import Nulls, measure_layer, precision, summed_symmetry

DIM, HEADS, KV_HEADS, HEAD_DIM, HIDDEN, VOCABULARY = 4096, 32, 8, 128, 14336, 32000
SHAPES: dict[str, tuple[int, ...]] = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, DIM),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, DIM),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, DIM),
    "self_attn.o_proj": (DIM, HEADS * HEAD_DIM),
    "mlp.gate_proj": (HIDDEN, DIM),
    "mlp.up_proj": (HIDDEN, DIM),
    "mlp.down_proj": (DIM, HIDDEN),
    "input_layernorm": (DIM,),
    "post_attention_layernorm": (DIM,),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--folder", type=Path, help="where to make the temporary folder")
    parser.add_argument("--read", type=Path, metavar="CHECKPOINT", help="only read one that is there, and print")
    options = parser.parse_args()
    if options.read:
        return read(options.read)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        size = make(Path(folder), options.layers)
        print(f"{size / 1e9:.2f} GB in {options.layers} layers, torch {torch.__version__}")
        print(f"{torch.get_num_threads()} threads, load of the machine before: {os.getloadavg()[0]:.1f}")
        for run in ("first", "again"):  # in a process of its own, so that its memory is its own
            print(f"--- {run} reading")
            subprocess.run([sys.executable, __file__, "--read", folder], check=True)


def make(folder: Path, layers: int) -> int:
    """Writes the checkpoint, one shard per layer; its size in bytes."""
    generator = torch.Generator().manual_seed(0)
    where: dict[str, str] = {}
    for layer in range(-1, layers):
        if layer < 0:
            shapes: dict[str, tuple[int, ...]] = {
                "model.embed_tokens.weight": (VOCABULARY, DIM),
                "lm_head.weight": (VOCABULARY, DIM),
            }
        else:
            shapes = {f"model.layers.{layer}.{name}.weight": shape for name, shape in SHAPES.items()}
        shard = f"model-{layer + 2:05d}-of-{layers + 1:05d}.safetensors"
        tensors = {n: torch.zeros(s, dtype=torch.bfloat16) for n, s in shapes.items()}
        for name in tensors:
            if name.endswith(("q_proj.weight", "k_proj.weight")):  # what is not read need not be random
                tensors[name].normal_(std=0.02, generator=generator)
        save_file(tensors, folder / shard)
        where |= dict.fromkeys(tensors, shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": DIM, "num_hidden_layers": layers,
        "num_attention_heads": HEADS, "num_key_value_heads": KV_HEADS, "intermediate_size": HIDDEN,
        "vocab_size": VOCABULARY, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return sum(path.stat().st_size for path in folder.iterdir())


def read(folder: Path) -> None:
    """Inspects all heads, and prints what it took, of what, and what it could have taken."""
    start = time.perf_counter()
    found = examine(folder)
    total = time.perf_counter() - start
    peak = peak_memory()
    layers = found.heads["layer"].nunique()
    needed = 2 * layers * DIM * HEAD_DIM * (HEADS + KV_HEADS)
    took = parts(folder)
    reading, rate = plain(folder, needed), gemm_rate()
    bound = reading + layers * flops(LLAMA) / rate
    work = layers * flops(LLAMA) / 1e9
    print(f"bytes     {found.bytes_read:,} read, {needed:,} of W_Q and W_K: {found.bytes_read / needed:.4f} x")
    print(f"inspect   {total:.2f} s with all measures, {peak / 1e6:.0f} MB at most")
    print(
        f"of which  {took.opening:.2f} s to find out which rows feed which head, and for the nulls, and a layer at best"
    )
    print(f"          {took.reading:.3f} s to read, {took.gram:.3f} s of products, {took.rest:.3f} s of spectra")
    print(f"bound     {bound:.2f} s: {reading:.2f} s to read as many bytes and leave them in a buffer, and")
    print(f"          {work:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s, the rate of a product of 2048 x 2048 in float32")
    print(f"distance  {total / bound:.1f} x the bound")
    print(f"405B      {extrapolated(took):.0f} s: {LARGEST.layers} layers; bytes, products and heads in proportion")


class Model(NamedTuple):
    """The sizes of a model's attention."""

    layers: int
    dim: int
    heads: int
    kv_heads: int
    head_dim: int


class Parts(NamedTuple):
    """Seconds: to open, without imports, and of one layer to read, of Gram matrices, and of all the rest."""

    opening: float
    reading: float
    gram: float
    rest: float


LLAMA = Model(8, DIM, HEADS, KV_HEADS, HEAD_DIM)
LARGEST = Model(126, 16384, 128, 8, 128)  # Llama 3.1 405B


def flops(model: Model) -> int:
    """Of one layer: Gram matrices of every head, norms of rows and columns, and three more for the sum over heads."""
    block = 2 * model.dim * model.head_dim**2
    heads = model.heads * (2 + 1 + 1) * block + model.kv_heads * block
    together = 2 * model.dim * (model.kv_heads * model.head_dim) ** 2
    return heads + round(together * (1 + (model.kv_heads + 1) / model.kv_heads))


def parts(folder: Path) -> Parts:
    """What one layer takes, by its parts: the fastest of all layers, least disturbed by what else the machine does."""
    start = time.perf_counter()
    checkpoint, nulls = open_checkpoint(folder), Nulls()
    measure_layer(checkpoint.read(0, dtype=None), nulls, None)  # finds the nulls
    opening, rows = time.perf_counter() - start, []
    for layer in range(len(checkpoint.layers)):
        times = [time.perf_counter()]
        weights = checkpoint.read(layer, dtype=None)
        times.append(time.perf_counter())
        BilinearForm.from_weights(weights.W_Q, weights.W_K, dtype=precision(weights))
        summed_symmetry(weights)
        times.append(time.perf_counter())
        measure_layer(weights, nulls, None)
        times.append(time.perf_counter())
        reading, gram, whole = (b - a for a, b in pairwise(times))
        rows.append((reading, gram, whole - gram))
    best = Parts(opening, *map(min, zip(*rows, strict=True)))
    return best._replace(opening=max(0.0, opening - best.reading - best.gram - best.rest))


def extrapolated(took: Parts) -> float:
    """Seconds for the largest model: reading grows with the bytes, Gram matrices with FLOPs, the rest with heads."""
    size = LARGEST.dim * (LARGEST.heads + LARGEST.kv_heads) / (LLAMA.dim * (LLAMA.heads + LLAMA.kv_heads))
    layer = took.reading * size + took.gram * flops(LARGEST) / flops(LLAMA) + took.rest * LARGEST.heads / LLAMA.heads
    return took.opening + LARGEST.layers * layer


def gemm_rate() -> float:
    """FLOP per second of a product of float32 matrices, which is what 16-bit weights are multiplied in."""
    a, times = torch.randn(2048, 2048), []
    for _ in range(7):
        start = time.perf_counter()
        a @ a
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def peak_memory() -> int:
    """The most bytes that this process has held at one time."""
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone; the figure below counts its parent's too
        return 1024 * int(next(line for line in status.read_text().splitlines() if line.startswith("VmHWM")).split()[1])
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def plain(folder: Path, needed: int) -> float:
    """Seconds to read `needed` bytes from the shards, evenly, with nothing done to them."""
    shards = sorted(folder.glob("*.safetensors"))[1:]
    buffer = bytearray(needed // len(shards))
    start = time.perf_counter()
    for shard in shards:
        with shard.open("rb", buffering=0) as file:
            file.readinto(buffer)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
