"""Reading the queries and keys of a large checkpoint: bytes, time and memory, against what the disk allows.

    python benchmarks/reading.py [--layers 8] [--folder DIR]

Makes a checkpoint of Llama's layout with random bfloat16 weights (8 layers of width 4096, 32 query heads and 8 key
heads of 128: 4 GB in shards) in a temporary folder, reads it, and deletes it.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from querykey.checkpoint import open_checkpoint

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
        print(f"{size / 1e9:.2f} GB in {options.layers} layers")
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
        tensors = {
            n: torch.empty(s, dtype=torch.bfloat16).normal_(std=0.02, generator=generator) for n, s in shapes.items()
        }
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
    """Reads all queries and keys, layer by layer, and prints what it took."""
    start = time.perf_counter()
    checkpoint = open_checkpoint(folder)
    opened = time.perf_counter()
    before, needed = peak_memory(), 0
    for layer in range(len(checkpoint.layers)):
        weights = checkpoint.read(layer)
        needed += 2 * (weights.W_Q.numel() + weights.W_K.numel())
    done = time.perf_counter()
    peak = peak_memory()
    bound = plain(folder, needed)
    print(
        f"bytes     {checkpoint.bytes_read:,} read, {needed:,} of W_Q and W_K: {checkpoint.bytes_read / needed:.4f} x"
    )
    print(f"open      {opened - start:.2f} s (imports, configuration, which rows feed which head)")
    print(f"read      {done - opened:.2f} s, {needed / (done - opened) / 1e9:.2f} GB/s, to float32")
    print(f"bound     {bound:.2f} s: as many bytes of the same files, read into one buffer and left there")
    print(f"memory    {peak / 1e6:.0f} MB at most, {before / 1e6:.0f} MB before the first layer")


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
