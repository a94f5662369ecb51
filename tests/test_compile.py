"""`torch.compile` without graph breaks and `torch.export`, in a fresh interpreter: the shape checks of the tests would
themselves break the graph.
"""

import subprocess
import sys

SCRIPT = """
import torch
from querykey import SelfAttention

DESIGNS = ["q,k,v", "q=k,v+core=full+selfmask", "q,k=v+cosine+qknorm", "q=k,v+core=signed+l2",
           "q=v,k", "q=k=v+core=symmetric", "q,k,v+kv_heads=2+qk_dim=6", "q=k=x,v"]
torch.manual_seed(0)
for number, design in enumerate(DESIGNS):
    causal, rotary = number % 2 == 0, "symmetric" not in design and number % 3 == 0
    layer = SelfAttention(40, 4, design, causal=causal, rotary=rotary)
    x = torch.randn(2, 7, 40)
    mask = (torch.arange(7) < torch.tensor([7, 5])[:, None])[:, None, None, :]
    torch.compiler.reset()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for inputs in ((x,), (x, mask)):
        torch.testing.assert_close(compiled(*inputs), layer(*inputs))
    layer.zero_grad()
    layer(x).square().sum().backward()
    plain = [parameter.grad.clone() for parameter in layer.parameters()]
    layer.zero_grad()
    compiled(x).square().sum().backward()
    for parameter, gradient in zip(layer.parameters(), plain, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)
    length = torch.export.Dim("length", min=2, max=64)
    exported = torch.export.export(layer, (x,), dynamic_shapes={"x": {1: length}})
    longer = torch.randn(2, 11, 40)
    torch.testing.assert_close(exported.module()(longer), layer(longer))
print("compiled and exported", len(DESIGNS))
"""


def test_every_kind_of_design_compiles_in_one_graph_and_exports():
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "compiled and exported 8" in done.stdout
