"""What the benchmarks of kernels ask of the command line, and say first."""

from __future__ import annotations

import argparse

import torch


def rounds_of(about: str | None) -> int:
    """The rounds that were asked for, with threads and seed set, and a line that says what runs."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {chosen.threads} threads, {chosen.rounds} rounds\n")
    return chosen.rounds
