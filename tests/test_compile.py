"""`torch.compile` without graph breaks and `torch.export`, in a fresh interpreter: the shape checks of the tests would
themselves break the graph.
"""

import subprocess
import sys

import pytest

SCRIPT = """
import sys, torch
from querykey import SelfAttention

backend, *designs = sys.argv[1:]
torch.manual_seed(0)
torch.set_default_dtype(torch.float64)
for number, design in enumerate(designs):
    causal, rotary = number % 2 == 0, "symmetric" not in design and number % 3 == 0
    more = {"softcap": 4.0, "sinks": True} if number == 4 else {"alibi": True} if number == 5 else {}
    layer = SelfAttention(40, 4, design, causal=causal, rotary=rotary, **more)
    x = torch.randn(2, 7, 40)
    mask = (torch.arange(7) < torch.tensor([7, 5])[:, None])[:, None, None, :]
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    packed = {"document": torch.tensor([[0, 0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 1, 1, 2]])}
    for inputs in ({}, {"mask": mask}, {"key_padding": mask[:, 0, 0]}, packed):
        torch.testing.assert_close(compiled(x, **inputs), layer(x, **inputs), rtol=0, atol=1e-10)
    layer.zero_grad()
    layer(x).square().sum().backward()
    plain = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    compiled(x).square().sum().backward()
    for parameter, gradient in zip(layer.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=1e-8)
    length = torch.export.Dim("length", min=2, max=64)
    exported = torch.export.export(layer, (x,), dynamic_shapes={"x": {1: length}})
    longer = torch.randn(2, 11, 40)
    torch.testing.assert_close(exported.module()(longer), layer(longer))
print("compiled and exported", number + 1)
"""


CACHES = """
import sys, torch
from querykey import KVCache, SelfAttention
from querykey.transformer import Transformer

backend, steps, designs = sys.argv[1], int(sys.argv[2]), sys.argv[3:]
torch.manual_seed(0)
for number, design in enumerate(designs):
    layer = SelfAttention(40, 4, design, causal=True, rotary=True, window=None if number % 2 else 5).eval()
    x = torch.randn(2, steps, 40)
    for static in (False, True):
        torch.compiler.reset()
        compiled = torch.compile(layer, fullgraph=True, backend=backend)
        cache = KVCache.static(2, steps + 3, layer.layout) if static else KVCache()
        with torch.no_grad():
            out = [layer(x[:, :3], cache=cache)]
            for end in range(4, steps + 1):
                # lengths become symbols at the second graph; a cache that grows has a new graph when its buffers double
                if end == (5 if static else 7) and (static or steps <= 64):
                    torch.compiler.set_stance("fail_on_recompile")
                out.append(compiled(x[:, end - 1 : end], cache=cache))
            torch.compiler.set_stance("default")
            torch.testing.assert_close(torch.cat(out, 1), layer(x), rtol=1e-4, atol=1e-5)

    class Step(torch.nn.Module):
        def __init__(self, layer):
            super().__init__()
            self.layer = layer

        def forward(self, x, cache):
            return self.layer(x, cache=cache)

    cache = KVCache.static(2, 6, layer.layout)
    with torch.no_grad():
        program = torch.export.export(Step(layer), (x[:, :1], cache)).module()
        for buffer in (*cache._buffers.values(), cache._end):
            buffer.zero_()  # the example was run on it
        out = [program(part, cache) for part in x[:, :6].split(1, 1)]
        torch.testing.assert_close(torch.cat(out, 1), layer(x[:, :6]), rtol=1e-4, atol=1e-5)
        assert len(cache) == 6
print("compiled", len(designs))
"""


def ran(script, *arguments):
    done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=290)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "compiled" in done.stdout


DESIGNS = ("q,k,v", "q=k,v+core=full+selfmask", "q,k=v+cosine+qknorm", "q=k,v+core=signed+l2", "q=v,k+xsa",
           "q=k=v+core=symmetric", "q,k,v+kv_heads=2+qk_dim=6", "q=k=x,v", "q,k=v+latent=9")  # fmt: skip


@pytest.mark.parametrize(
    ("backend", "designs"),
    [
        ("aot_eager", DESIGNS[1:2]),
        pytest.param("aot_eager", DESIGNS, marks=pytest.mark.slow),
        *(pytest.param("inductor", DESIGNS[first::3], marks=pytest.mark.slow) for first in range(3)),
    ],
)
def test_training_compiles_to_one_graph_and_exports(backend, designs):
    ran(SCRIPT, backend, *designs)


def test_decoding_compiles_to_one_graph_and_exports():
    ran(CACHES, "aot_eager", "9", "q,k=v+l2+kv_heads=2")


@pytest.mark.slow
def test_decoding_of_every_kind_of_design_compiles_to_one_graph():
    designs = ("q,k,v", "q=k=v+core=full+selfmask", "q,k,v+cosine", "q,k=v+latent=9+qknorm", "q,k=v")
    ran(CACHES, "aot_eager", "20", *designs)
    ran(CACHES, "inductor", "256", "q,k,v", "q,k=v+latent=9")
