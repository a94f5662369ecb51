"""Train a small Llama with two designs under accelerate, and report what sharing costs in bits per byte.

    accelerate launch --cpu --num_processes 2 examples/train_shared.py --designs q,k,v q,k=v --steps 200

Each design is turned on by one line, `querykey.share(model, design)`; the rest is an ordinary training script. Both
designs start from the same seed and see the same batches. The text is the source code of Python's standard library,
read as bytes; whole files are kept apart for validation.
"""

import argparse
import math
import sysconfig
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaConfig, LlamaForCausalLM

import querykey

LENGTH = 256


def windows(files: list[Path], limit: int) -> TensorDataset:
    """At most `limit` windows of LENGTH bytes."""
    text = b"".join(path.read_bytes() for path in files)[: limit * LENGTH]
    tokens = torch.tensor(list(text[: len(text) // LENGTH * LENGTH])).view(-1, LENGTH)
    return TensorDataset(tokens)


def train(design: str, steps: int, batch: int, accelerator: Accelerator) -> tuple[int, float]:
    """(parameters, bits per byte on validation) of one design."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=LENGTH,
    )
    model = querykey.share(LlamaForCausalLM(config), design)
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    training = windows(files[8:], steps * batch * accelerator.num_processes)
    order = torch.Generator().manual_seed(0)
    loader = DataLoader(training, batch_size=batch, shuffle=True, generator=order, drop_last=True)
    validation = DataLoader(windows(files[:8], 128), batch_size=batch)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps * accelerator.num_processes + 1)
    model, optimizer, loader, validation, schedule = accelerator.prepare(model, optimizer, loader, validation, schedule)
    model.train()
    for step, (tokens,) in enumerate(loader):
        loss = model(tokens, labels=tokens).loss
        accelerator.backward(loss)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if accelerator.is_main_process and (step + 1) % 50 == 0:
            print(f"{design}: step {step + 1} of {steps}, training loss {loss.item() / math.log(2):.3f} bits per byte")
        if step + 1 == steps:
            break
    model.eval()
    with torch.no_grad():
        losses = [model(tokens, labels=tokens).loss.repeat(len(tokens)) for (tokens,) in validation]
    found = accelerator.gather_for_metrics(torch.cat(losses)).mean().item() / math.log(2)
    return sum(parameter.numel() for parameter in accelerator.unwrap_model(model).parameters()), found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--designs", nargs="+", default=["q,k,v", "q,k=v"])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--batch", type=int, default=8, help="windows for each process and step")
    chosen = parser.parse_args()
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    results = {design: train(design, chosen.steps, chosen.batch, accelerator) for design in chosen.designs}
    accelerator.print(f"\n{'design':12} {'parameters':>12} {'validation, bits per byte':>28}")
    for design, (parameters, bits) in results.items():
        accelerator.print(f"{design:12} {parameters:12,} {bits:28.3f}")
    accelerator.end_training()


if __name__ == "__main__":
    main()
