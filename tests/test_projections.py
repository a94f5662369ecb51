"""How the weights are stored: `nn.Linear` modules that other libraries may replace, old state dicts, sharding."""

import itertools
import subprocess
import sys

import pytest
import torch
from torch import nn

from querykey import KVCache, SelfAttention
from querykey.transformer import Transformer

DIM, HEADS = 24, 4
DESIGNS = ("q,k,v", "q=k,v+core=full", "q,k=v+kv_heads=2", "q=x,k,v+qknorm", "q,k=v+latent=6", "q=k=v+latent=7+cosine")


class Adapter(nn.Module):
    """Adds a low-rank product, as LoRA does."""

    def __init__(self, base):
        super().__init__()
        self.base = base
        self.down = nn.Parameter(torch.randn(3, base.in_features, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.randn(base.out_features, 3, dtype=base.weight.dtype))

    def forward(self, x):
        return self.base(x) + x @ self.down.T @ self.up.T


def merged(adapter):
    linear = nn.Linear(adapter.base.in_features, adapter.base.out_features, bias=False)
    linear.weight = nn.Parameter(adapter.base.weight + adapter.up @ adapter.down)
    return linear


@pytest.mark.parametrize("design", DESIGNS)
def test_adapters_act_at_once_and_in_steps(design):
    layer = SelfAttention(DIM, HEADS, design, causal=True, rotary=True, dtype=torch.float64)
    plain = SelfAttention(DIM, HEADS, design, causal=True, rotary=True, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    for name in ("in_proj", "up_proj", "o_proj"):
        if getattr(layer, name) is not None:
            adapter = Adapter(getattr(layer, name))
            setattr(layer, name, adapter)
            setattr(plain, name, merged(adapter))
    x = torch.randn(2, 7, DIM).double()
    ways = []
    for one in (layer, plain):
        cache = KVCache()
        steps = [one(part, cache=cache) for part in x.split((4, 1, 2), 1)]
        ways.append((one(x), torch.cat(steps, 1)))
    torch.testing.assert_close(*ways)
    torch.testing.assert_close(*ways[0])


@pytest.mark.parametrize("design", DESIGNS)
def test_hooks_and_replaced_forwards_act_on_cross_attention(design):
    layer = SelfAttention(DIM, HEADS, design)
    x, context = torch.randn(2, 7, DIM), torch.randn(2, 5, DIM)
    expected, called = layer(x, context=context), []
    layer.in_proj.register_forward_hook(lambda *_: called.append("hook"))
    torch.testing.assert_close(layer(x, context=context), expected)
    forward = layer.in_proj.forward
    layer.in_proj.forward = lambda x: called.append("forward") or forward(x)
    torch.testing.assert_close(layer(x, context=context), expected)
    assert {"hook", "forward"} == set(called)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.parametrize("design", DESIGNS)
def test_dynamic_quantisation_finds_the_projections(design):
    layer = SelfAttention(DIM, HEADS, design).eval()
    quantised = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
    names = {name for name, module in quantised.named_modules() if type(module) is torch.ao.nn.quantized.dynamic.Linear}
    assert names == {name for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
    x = torch.randn(2, 7, DIM)
    for inputs in ({"x": x}, {"x": x, "context": x[:, :5].clone()}):
        expected = layer(**inputs)
        assert (quantised(**inputs) - expected).norm() < 0.1 * expected.norm()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("design", ["q,k,v", "q=k,v+core=signed", "q=k=v=x", "q=x,k,v"])
def test_state_dicts_of_the_old_names_load(design, bias):
    model = nn.Sequential(SelfAttention(DIM, HEADS, design, bias=bias))
    old, names = {}, {"in_proj.weight": "in_proj", "in_proj.bias": "in_proj_bias"}
    names |= {"o_proj.weight": "o_proj", "o_proj.bias": "o_proj_bias"}
    for name, tensor in model.state_dict().items():
        old["0." + names.get(name[2:], name[2:])] = torch.randn_like(tensor)
    if design == "q=k=v=x":  # which stored a matrix without rows
        old |= {"0.in_proj": torch.empty(0, DIM)} | ({"0.in_proj_bias": torch.empty(0)} if bias else {})
    kept = dict(old)
    model.load_state_dict(old)
    assert old.keys() == kept.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, old["0." + names.get(name[2:], name[2:])])
    with pytest.raises(RuntimeError, match=r"Missing key.*o_proj\.weight"):
        model.load_state_dict({name: tensor for name, tensor in old.items() if "o_proj" not in name})


def test_device_and_dtype_are_those_asked_for():
    for design, bias in itertools.product(DESIGNS, (False, True)):
        layer = SelfAttention(DIM, HEADS, design, bias=bias, device="meta", dtype=torch.bfloat16)
        assert {(parameter.device.type, parameter.dtype) for parameter in layer.parameters()} == {
            ("meta", torch.bfloat16)
        }
        with torch.device("meta"):
            assert all(parameter.is_meta for parameter in SelfAttention(DIM, HEADS, design).parameters())
        layer.to_empty(device="cpu").reset_parameters()
        assert layer.weights().W_V.float().std() > 0.1


@pytest.mark.parametrize("design", ["q,k,v", "q,k=v+latent=6+cosine", "q=k,v+core=full"])
def test_offloaded_weights_attend_and_generate(design):
    from accelerate import cpu_offload

    options = {"dim": DIM, "heads": HEADS, "layers": 2, "causal": True, "design": design, "positions": "rotary"}
    model = Transformer(13, 13, 16, **options).eval()
    expected = model.generate([[1, 2], [3]], 6, temperature=0)
    x = torch.randn(2, 7, DIM)
    layer, backend = model.attentions[0], model.attentions[0].backend(x)
    out = layer(x)
    cpu_offload(model, execution_device="cpu")
    assert layer.in_proj.weight.is_meta
    assert torch.equal(model.generate([[1, 2], [3]], 6, temperature=0), expected)
    assert layer.backend(x) == backend
    torch.testing.assert_close(layer(x), out)


SHARDED = """
import sys, torch, torch.distributed as dist
from torch.distributed.fsdp import fully_shard
from querykey import SelfAttention
from querykey.transformer import Transformer, initialise_from

rank, store = int(sys.argv[1]), sys.argv[2]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
torch.manual_seed(rank)  # processes that draw different numbers must still agree
DESIGNS = ["q,k,v", "q,k,v+qkscale=0.25", "q=k,v+core=signed", "q,k=v+latent=6+cosine", "q=k,v+core=full+qknorm"]
for design in [*DESIGNS, "q,k,v+tiedstart"]:
    alone = SelfAttention(24, 4, design, bias=True)
    alone.reset_parameters(torch.Generator().manual_seed(1))
    layer = SelfAttention(24, 4, design, bias=True, device="meta")
    fully_shard(layer)
    layer.to_empty(device="cpu")
    layer.reset_parameters(torch.Generator().manual_seed(1))
    for (name, shard), whole in zip(layer.named_parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(shard.full_tensor(), whole.data, rtol=0, atol=0, msg=f"{design}: {name}")
    layer.reset_parameters()
    x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(rank))
    layer(x).square().sum().backward()
    assert layer.backend(x) == "flash"
sizes = dict(dim=24, heads=4, layers=2, causal=True)
with torch.device("meta"):
    model = Transformer(13, 13, 16, **sizes)
for block in model.blocks:
    fully_shard(block)
fully_shard(model)
model.to_empty(device="cpu")
initialise_from(model, 3)
alone = Transformer(13, 13, 16, seed=3, **sizes)
for (name, shard), whole in zip(model.named_parameters(), alone.parameters(), strict=True):
    torch.testing.assert_close(shard.full_tensor(), whole.data, rtol=0, atol=0, msg=name)
assert torch.equal(model.generate([[1, 2]], 5, temperature=0), alone.generate([[1, 2]], 5, temperature=0))
print("sharded", rank)
"""


@pytest.mark.slow
def test_sharded_weights_are_drawn_as_whole_ones_are(tmp_path):
    """FSDP2 on two processes: meta device, fully_shard, to_empty, reset_parameters."""
    command = [sys.executable, "-c", SHARDED]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(tmp_path / "store")], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    for rank, process in enumerate(processes):
        out, error = process.communicate(timeout=240)
        assert f"sharded {rank}" in out, error[-3000:]
