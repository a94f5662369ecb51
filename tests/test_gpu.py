"""The layer on an accelerator against the formula on the CPU: `pytest -m gpu`; QUERYKEY_DEVICE=cpu tries the tests."""

import os

import pytest
import torch

from querykey import KVCache, SelfAttention
from querykey.bench.memory import peak_bytes
from querykey.transformer import Transformer
from test_layer import QUICK, make, oracle, stepwise

DEVICE = torch.device(os.environ.get("QUERYKEY_DEVICE", "cuda"))
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE.type == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def moved(inputs):
    """The tensors of a dictionary on the device."""
    if isinstance(inputs, tuple):
        return tuple(map(moved, inputs))
    return {name: moved(one) for name, one in inputs.items()} if isinstance(inputs, dict) else inputs.to(DEVICE)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_every_design_equals_the_formula(dtype):
    atol = 1e-10 if dtype == torch.float64 else 1e-3
    for design, head_dim, setting in QUICK[::3]:
        if "static" in setting:
            continue
        layer, x, inputs, _ = make(design, head_dim, setting)
        expected = oracle(layer, x, **inputs)
        (wanted,) = torch.autograd.grad(expected.sin().sum(), x)
        layer = layer.to(DEVICE, dtype)
        x = x.detach().to(DEVICE, dtype).requires_grad_()
        given = {
            name: one.to(dtype) if isinstance(one, torch.Tensor) and one.is_floating_point() else one
            for name, one in moved(inputs).items()
        }
        got = stepwise(layer, x) if "cached" in setting else layer(x, **given)
        (gradient,) = torch.autograd.grad(got.double().sin().sum(), x)
        for one, other in ((got, expected), (gradient, wanted)):
            torch.testing.assert_close(
                one.cpu().double(), other, rtol=0, atol=10 * atol, msg=lambda m, d=design, s=setting: f"{d} {s}: {m}"
            )


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "design", ["q,k,v", "q=k,v+core=full", "q,k=v+latent=48", "q,k,v+qk_dim=24", "q=k,v+l2+selfmask"]
)
@pytest.mark.parametrize("options", [{}, {"window": 50}, {"sinks": True, "softcap": 5.0}, {"alibi": True}])
@torch.no_grad()
def test_low_precision_errs_as_the_stock_kernel_does(design, options, dtype):
    """Also where a row has nothing left, which only some kernels take."""
    x = torch.randn(3, 300, 128, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)
    mask = torch.ones(3, 1, 300, 300, dtype=torch.bool, device=DEVICE)
    mask[0, 0, :9] = False
    errors = []
    for name, more in (("q,k,v", {}), (design, options)):
        torch.manual_seed(0)
        layer = SelfAttention(128, 4, name, causal=True, rotary=True, **more, device=DEVICE, dtype=dtype)
        got = layer(x, mask)
        assert not got[0, :9].any()
        truth = layer.double()(x.double(), mask)
        errors.append(float((got - truth).norm() / truth.norm()))
    assert errors[1] <= 2 * errors[0]


@pytest.mark.parametrize("design", ["q,k,v", "q=k,v+core=full", "q,k,v+qk_dim=24", "q,k=v+kv_heads=2"])
def test_a_fused_kernel_runs(design):
    layer = SelfAttention(128, 4, design, causal=True, device=DEVICE, dtype=torch.bfloat16)
    x = torch.randn(2, 300, 128, device=DEVICE, dtype=torch.bfloat16)
    for inputs in ({}, {"mask": torch.ones(2, 1, 1, 300, dtype=torch.bool, device=DEVICE)}):
        assert layer.backend(x, **inputs) in ("flash", "efficient", "cudnn")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("design", ["q,k,v", "q,k=v", "q,k=v+latent=48"])
def test_caches_decode_what_the_whole_at_once_gives(design):
    layer = SelfAttention(128, 4, design, causal=True, rotary=True, device=DEVICE).double()
    x = torch.randn(2, 70, 128, device=DEVICE, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x)
        for cache in (
            KVCache(),
            KVCache(keep_rotated=True),
            KVCache.static(2, 75, layer.layout, device=DEVICE, dtype=torch.float64),
        ):
            steps = [layer(part, cache=cache) for part in x.split((60, *[1] * 10), 1)]
            torch.testing.assert_close(torch.cat(steps, 1), expected, rtol=0, atol=1e-10)


def test_packing_takes_a_fraction_of_the_memory_of_a_mask():
    layer = SelfAttention(128, 4, causal=True, device=DEVICE)
    x = torch.randn(1, 8 * 512, 128, device=DEVICE, requires_grad=True)
    document = torch.arange(8, device=DEVICE).repeat_interleave(512)[None]
    mask = (document[:, :, None] == document[:, None])[:, None]

    def train(**inputs):
        return torch.autograd.grad(layer(x, **inputs).sum(), (x, *layer.parameters()))

    torch.testing.assert_close(train(document=document), train(mask=mask), rtol=1e-3, atol=1e-3)
    packing, masking = (
        peak_bytes(lambda i=inputs: train(**i), x.device) for inputs in ({"document": document}, {"mask": mask})
    )
    assert packing < masking


def test_generation_is_repeatable_and_that_of_the_cpu():
    sizes = {"dim": 64, "heads": 4, "layers": 2, "causal": True, "positions": "rotary"}
    model = Transformer(50, 50, 64, **sizes).double().eval()
    prompts = [[3, 1, 4], [1, 5]]
    expected = [model.generate(prompts, 9, **how) for how in ({"temperature": 0}, {"beams": 3})]
    model = model.to(DEVICE)
    for how, wanted in zip(({"temperature": 0}, {"beams": 3}), expected, strict=True):
        assert torch.equal(model.generate(prompts, 9, **how).cpu(), wanted)
    one, other = (model.generate(prompts, 9, seed=5, top_p=0.9) for _ in range(2))
    assert torch.equal(one, other)
