"""Cells per minute of `querykey compare` against the loop that one would write: one model after the other.

    python benchmarks/loop.py [--rounds 5] [--seeds 2] [--tasks cycle shift]

The loop trains `nn.TransformerEncoder` models of the sizes of the plan `why`, with PyTorch's defaults: all threads,
AdamW, examples drawn at each step; the same number of steps, examples and evaluations. Its layer cannot have no MLP
(here it is one unit wide then), a head size of its own, or rotary positions (here they are learned), so sizes are equal
up to that. Both take turns; `compare` does five designs for each seed, the loop separate weights, with the start of
the workers in the measured time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import querykey
from querykey.study.compare import adjust
from querykey.study.plan import Plan, TaskChoice, load_plan
from querykey.study.training import TEST, VALIDATION
from querykey.tasks import Examples, Task, make_task


class Plain(nn.Module):
    """Embedding, learned positions, PyTorch's encoder, scores."""

    def __init__(self, task: Task, choice: TaskChoice) -> None:
        super().__init__()
        size = choice.config
        self.embedding = nn.Embedding(task.vocabulary, size.dim)
        self.positions = nn.Parameter(torch.randn(task.length, size.dim) * (task.positions != "none"))
        layer = nn.TransformerEncoderLayer(
            size.dim,
            size.heads,
            max(1, size.hidden),
            dropout=0.0,
            activation="gelu",
            batch_first=True,
            norm_first=True,
            bias=False,
        )
        self.encoder = nn.TransformerEncoder(layer, size.layers, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(size.dim, bias=False)
        self.unembedding = nn.Linear(size.dim, task.classes, bias=False)
        self.mask = nn.Transformer.generate_square_subsequent_mask(task.length) if task.causal else None

    def forward(self, inputs: Tensor) -> Tensor:
        x = self.embedding(inputs).sum(-2) + self.positions
        x = self.encoder(x, mask=self.mask, is_causal=self.mask is not None)
        return self.unembedding(self.norm(x))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--tasks", nargs="+")
    chosen = parser.parse_args()
    plan = adjust(load_plan("why"), seeds=chosen.seeds, tasks=chosen.tasks)
    tasks = {choice.name: make_task(choice.kind, **dict(choice.options)) for choice in plan.tasks}
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {chosen.rounds} rounds")
    print("cells per minute: loop, compare, and their ratio")
    ratios = []
    for number in range(chosen.rounds):
        rates = [loop(plan, tasks, number * chosen.seeds, chosen.seeds), comparison(plan)]
        ratios.append(rates[1] / rates[0])
        print(f"{rates[0]:8.1f} {rates[1]:8.1f} {ratios[-1]:8.2f}", flush=True)
    print(f"median ratio {statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]")


def loop(plan: Plan, tasks: dict[str, Task], first: int, seeds: int) -> float:
    began = time.perf_counter()
    for seed in range(first, first + seeds):
        for choice in plan.tasks:
            train(tasks[choice.name], choice, seed)
    return 60 * seeds * len(plan.tasks) / (time.perf_counter() - began)


def comparison(plan: Plan) -> float:
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        querykey.compare(plan, out=folder)
    return 60 * plan.seeds * len(plan.designs) * len(plan.tasks) / (time.perf_counter() - began)


def train(task: Task, choice: TaskChoice, seed: int) -> float:
    """The score on test."""
    size, generator = choice.config, torch.Generator().manual_seed(seed)
    model = Plain(task, choice)
    optimiser = torch.optim.AdamW(model.parameters(), lr=size.lr)
    validation = task.sample(VALIDATION, generator, "validation")
    for step in range(1, size.steps + 1):
        examples = task.sample(size.batch, generator)
        optimiser.zero_grad()
        loss(model, examples).backward()
        optimiser.step()
        if step % (size.steps // size.evaluations) == 0:
            score(model, validation)
    return score(model, task.sample(TEST, generator, "test"))


def loss(model: Plain, examples: Examples) -> Tensor:
    targets = examples.targets.masked_fill(~examples.counted, -100)
    return F.cross_entropy(model(examples.inputs).flatten(0, 1), targets.flatten(), ignore_index=-100)


@torch.no_grad()
def score(model: Plain, examples: Examples) -> float:
    found = model(examples.inputs).argmax(-1) == examples.targets
    return found[examples.counted].double().mean().item()


if __name__ == "__main__":
    main()
