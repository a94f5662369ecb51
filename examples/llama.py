"""A Llama-style decoder around `SelfAttention`, made from the configuration of a released model.

    python examples/llama.py FOLDER                        # a folder with config.json, with or without weights
    python examples/llama.py config.json --steps 50 --design q,k=v
    python examples/llama.py FOLDER --steps 50 --lora 8    # trains adapters only
    python examples/llama.py FOLDER --new 256 --compile    # decodes with a static cache: one graph for all steps
    torchrun --nproc_per_node 2 examples/llama.py config.json --steps 50      # FSDP2: parameters are sharded

The configuration is that of the transformers library for a model of type `llama`; rotary positions may be scaled in any
way that it knows. With `--design` the projections share, and the weights of the folder are not read. Text is the source
code of Python's standard library; its bytes are the tokens.
"""

import argparse
import json
import os
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from querykey import Design, KVCache, Rotary, SelfAttention


class MLP(nn.Module):
    """silu(x W_gate) · (x W_up) W_down, with W_gate and W_up as one product."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, -1)
        return self.down(F.silu(gate) * up)


class Block(nn.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: dict, design: Design, rotary: Rotary) -> None:
        super().__init__()
        dim, eps = config["hidden_size"], config["rms_norm_eps"]
        self.attention_norm = nn.RMSNorm(dim, eps)
        self.attention = SelfAttention(
            dim,
            config["num_attention_heads"],
            design,
            head_dim=config.get("head_dim"),
            causal=True,
            rotary=rotary,
            bias=config.get("attention_bias", False),
        )
        self.mlp_norm = nn.RMSNorm(dim, eps)
        self.mlp = MLP(dim, config["intermediate_size"])

    def forward(self, x: Tensor, cache: KVCache | None) -> Tensor:
        x = x + self.attention(self.attention_norm(x), cache=cache)
        return x + self.mlp(self.mlp_norm(x))


class Decoder(nn.Module):
    """Maps tokens (batch, length) to logits (batch, length, vocabulary).

    Args:
        config: what config.json says.
        sharing: which projections are shared; the configuration decides the number of key heads.
    """

    def __init__(self, config: dict, sharing: str = "q,k,v") -> None:
        super().__init__()
        heads, groups = config["num_attention_heads"], config.get("num_key_value_heads")
        design = Design.parse(sharing + (f"+kv_heads={groups}" if groups not in (None, heads) else ""))
        dim, vocabulary, rotary = config["hidden_size"], config["vocab_size"], Rotary.from_config(config)
        self.embedding = nn.Embedding(vocabulary, dim)
        self.blocks = nn.ModuleList(Block(config, design, rotary) for _ in range(config["num_hidden_layers"]))
        self.norm = nn.RMSNorm(dim, config["rms_norm_eps"])
        self.unembedding = nn.Linear(dim, vocabulary, bias=False)
        if config.get("tie_word_embeddings", False):
            self.unembedding.weight = self.embedding.weight

    def forward(self, tokens: Tensor, caches: list[KVCache] | None = None) -> Tensor:
        x = self.embedding(tokens)
        for number, block in enumerate(self.blocks):
            x = block(x, None if caches is None else caches[number])
        return self.unembedding(self.norm(x))

    def caches(self, batch: int, length: int) -> list[KVCache]:
        """A static cache for each layer, for at most `length` positions."""
        like = self.embedding.weight
        return [
            KVCache.static(batch, length, block.attention.layout, device=like.device, dtype=like.dtype)
            for block in self.blocks
        ]

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw all weights, also where they are sharded."""
        for module in self.modules():
            if isinstance(module, SelfAttention):
                module.reset_parameters()
        others = [module for name, module in self.named_modules() if "attention." not in name]
        for module in others:
            if isinstance(module, nn.Linear | nn.Embedding):
                own_rows(module.weight).normal_(std=0.02)
            elif isinstance(module, nn.RMSNorm):
                own_rows(module.weight).fill_(1.0)

    @torch.no_grad()
    def load_released(self, state: dict[str, Tensor]) -> None:
        """Take the weights of a `LlamaForCausalLM` by their names in its state dict."""
        state = {name.removeprefix("model."): tensor for name, tensor in state.items()}
        self.embedding.weight.copy_(state["embed_tokens.weight"])
        self.norm.weight.copy_(state["norm.weight"])
        if self.unembedding.weight is not self.embedding.weight:
            self.unembedding.weight.copy_(state["lm_head.weight"])
        for number, block in enumerate(self.blocks):
            at = f"layers.{number}."
            for name, weight in block.attention.named_weights().items():  # q_proj, k_proj.bias, …
                weight.copy_(state[f"{at}self_attn.{name}" + ("" if name.endswith("bias") else ".weight")])
            block.attention_norm.weight.copy_(state[f"{at}input_layernorm.weight"])
            block.mlp_norm.weight.copy_(state[f"{at}post_attention_layernorm.weight"])
            gate_up = [state[f"{at}mlp.{name}_proj.weight"] for name in ("gate", "up")]
            block.mlp.gate_up.weight.copy_(torch.cat(gate_up))
            block.mlp.down.weight.copy_(state[f"{at}mlp.down_proj.weight"])


def open_model(path: Path, sharing: str) -> Decoder:
    """The model of a configuration; with the weights that lie beside it, if there are any and nothing is shared.

    Under torchrun the model is made without content, sharded, and drawn by all processes together.
    """
    path = path / "config.json" if path.is_dir() else path
    config = json.loads(path.read_text())
    if dist.is_initialized():
        from torch.distributed.fsdp import fully_shard

        with torch.device("meta"):
            model = Decoder(config, sharing)
        for block in model.blocks:
            fully_shard(block)
        fully_shard(model)
        model.to_empty(device=device())
        model.reset_parameters()
        return model
    model = Decoder(config, sharing)
    weights = sorted(path.parent.glob("*.safetensors"))
    if weights and sharing == "q,k,v":
        from safetensors.torch import load_file

        model.load_released({name: tensor for file in weights for name, tensor in load_file(file).items()})
    else:
        model.reset_parameters()
    return model.to(device())


def own_rows(weight: Tensor) -> Tensor:
    """What this process stores of a weight."""
    return weight.to_local() if hasattr(weight, "to_local") else weight


def device() -> torch.device:
    """The accelerator of this process, or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def batches(batch: int, length: int, rank: int, world: int) -> Iterator[Tensor]:
    """(batch, length + 1) bytes of source code; each process reads its own."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    text = b"".join(file.read_bytes() for file in files[rank::world])
    order = torch.Generator().manual_seed(rank)
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    while True:
        starts = torch.randint(len(data) - length - 1, (batch,), generator=order)
        yield torch.stack([data[start : start + length + 1] for start in starts.tolist()]).long().to(device())


def train(model: nn.Module, steps: int, batch: int, length: int, rate: float) -> list[float]:
    """The loss of each step, in nats per byte, as the mean over all processes."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=rate)
    losses = []
    for _, tokens in zip(range(steps), batches(batch, length, rank, world), strict=False):
        loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach()
        if world > 1:
            dist.all_reduce(mean, dist.ReduceOp.AVG if mean.is_cuda else dist.ReduceOp.SUM)
            mean = mean if mean.is_cuda else mean / world
        losses.append(mean.item())
    return losses


def with_adapters(model: Decoder, rank: int) -> nn.Module:
    """The model with low-rank adapters (LoRA) beside its attention, which alone are trained."""
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["in_proj", "o_proj"]))


@torch.no_grad()
def decode(model: Decoder, prompt: Tensor, new: int, compiled: bool = False) -> Tensor:
    """The most likely continuation of (batch, length) tokens, (batch, new).

    The step is compiled once: after the first one a recompilation is an error.
    """
    caches = model.caches(len(prompt), prompt.shape[1] + new)
    step = torch.compile(model, fullgraph=True) if compiled else model
    logits, found = model(prompt, caches), []
    for number in range(new):
        found.append(logits[:, -1].argmax(-1, keepdim=True))
        if number + 1 < new:  # the last token is not read
            torch.compiler.set_stance("fail_on_recompile" if compiled and number else "default")
            logits = step(found[-1], caches)
    torch.compiler.set_stance("default")
    return torch.cat(found, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("config", type=Path, help="config.json, or the folder that holds it")
    parser.add_argument("--design", default="q,k,v", help="which projections are shared, such as q,k=v")
    parser.add_argument("--steps", type=int, default=0, help="training steps")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="train adapters of this rank only")
    parser.add_argument("--new", type=int, default=0, help="tokens to decode")
    parser.add_argument("--compile", action="store_true", help="compile training and decoding")
    chosen = parser.parse_args()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    rank = dist.get_rank() if dist.is_initialized() else 0
    torch.manual_seed(rank)  # processes draw different rows
    first = rank == 0
    model = open_model(chosen.config, chosen.design)
    if first:
        count = sum(parameter.numel() for parameter in model.parameters())
        print(f"{count:,} parameters, design {model.blocks[0].attention.design}")
    if chosen.steps:
        trained = with_adapters(model, chosen.lora) if chosen.lora else model
        running = torch.compile(trained) if chosen.compile else trained
        losses = train(running, chosen.steps, chosen.batch, chosen.length, chosen.rate)
        model = trained.merge_and_unload() if chosen.lora else model
        if first:
            print(f"loss {losses[0]:.3f} before, {losses[-1]:.3f} after {chosen.steps} steps, in nats per byte")
    if chosen.new:
        start = time.perf_counter()
        tokens = decode(model.eval(), torch.tensor([list(b"def ")], device=device()), chosen.new, chosen.compile)
        if first:
            print(f"decoded {tokens.shape[1]} tokens in {time.perf_counter() - start:.1f} s, compilation included")
            print("tokens", *tokens[0].tolist())
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
