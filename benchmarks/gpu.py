"""Everything that only a GPU can show, in about five minutes: the tests marked `gpu`, then the benchmarks.

    python benchmarks/gpu.py [--device cuda] [--minutes 9] [--out benchmarks/results]
    python benchmarks/gpu.py --device cpu --tiny          # tries the script where no GPU is

Prefill, training and decoding of designs with latents, with windows, and against other libraries; decoding steps that
are recorded as one graph; packed documents against a mask of all pairs; a Llama-style decoder with a static cache in
one compiled graph. Each step is a command of its own, which is printed. What does not fit into the time is named at the
end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
DESIGNS = ("q,k,v", "q,k=v", "q=k=v", "q,k,v+kv_heads=2", "q,k=v+latent=256", "q=k,v+core=full")
LLAMA = {
    "model_type": "llama", "vocab_size": 32000, "hidden_size": 1024, "intermediate_size": 2816,
    "num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4, "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0, "max_position_embeddings": 8192,
}  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    parser.add_argument("--tiny", action="store_true")
    chosen = parser.parse_args()
    end = time.monotonic() + 60 * chosen.minutes
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "config.json")
        small = {"vocab_size": 256, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
        config.write_text(json.dumps(LLAMA | (small if chosen.tiny else {})))
        steps = commands(chosen.device, chosen.tiny, chosen.out, config)
        left_out = [words for words in steps if not ran(words, chosen.device, end - time.monotonic())]
    print(*[f"failed or without time: {' '.join(words)}" for words in left_out], sep="\n")
    return len(left_out)


def commands(device: str, tiny: bool, out: Path, config: Path) -> list[list[str]]:
    """The steps, the most important ones first."""
    scripts, dtype = str(ROOT / "benchmarks"), "float32" if tiny else "bfloat16"
    where = ["--device", device, "--dtype", dtype, "--rounds", "4" if tiny else "15"]
    shapes = ["2,16,32,2"] if tiny else ["16,2048,2048,16", "2,16384,2048,16"]  # small ones time the launches
    bench = ["-m", "querykey.cli", "bench", *where, "--cached", "16" if tiny else "8192", "--causal", "--shapes"]
    designs = ["--designs", *(DESIGNS[:2] if tiny else DESIGNS)]
    window = ["--passes", "prefill", "training", "--window", "8" if tiny else "1024"]
    packing = [f"{scripts}/packing.py", *where, "--shapes", "3,8,32,2" if tiny else "16,1024,2048,16"]
    steps = ["2,16,32,2"] if tiny else ["8,8192,2048,16", "64,8192,2048,16"]
    recorded = [f"{scripts}/recorded.py", *where, "--shapes", *steps, *(designs if tiny else [])]
    example = [str(ROOT / "examples" / "llama.py"), str(config), "--new", "8" if tiny else "256", "--compile"]
    libraries = ["--designs", "q,k,v", "--rotary", "--against", "mha", "hf"]
    return [
        ["-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests" / "test_gpu.py")],
        [*bench, *shapes, *designs, "--out", str(out)],
        recorded,
        [*bench, *shapes, *designs, *window, "--out", str(out)],
        packing,
        [*packing, "--ragged"],
        [*bench, shapes[0], *libraries, "--out", str(out)],
        example,
    ]


def ran(words: list[str], device: str, seconds: float) -> bool:
    """Run one command of Python with so much time; whether it came to its end."""
    print("\n$ python", *words, flush=True)
    if seconds < 5:
        return False
    start = time.monotonic()
    try:
        done = subprocess.run(
            [sys.executable, *words], cwd=ROOT, timeout=seconds, env=os.environ | {"QUERYKEY_DEVICE": device}
        )
    except subprocess.TimeoutExpired:
        return False
    print(f"({time.monotonic() - start:.0f} s)", flush=True)
    return done.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
