"""The layer on an accelerator against the formula on the CPU: `pytest -m gpu`; QUERYKEY_DEVICE=cpu tries the tests."""

import os
from dataclasses import replace

import pytest
import torch
from pandas.testing import assert_frame_equal
from transformers import AutoModelForCausalLM

import conversions
import querykey.hf
import test_compile
import test_hf
from checkpoints import tiny_config
from conversions import SMALL, byte_tokenizer, logits, tiny
from querykey import KVCache, SelfAttention
from querykey.bench.memory import peak_bytes
from querykey.conversion.convert import convert
from querykey.conversion.heal import heal
from querykey.conversion.save import load
from querykey.conversion.texts import Text
from querykey.inspection.inspect import examine
from querykey.study.training import train
from querykey.transformer import Transformer
from test_forecast import with_words
from test_layer import QUICK, make, oracle, stepwise
from test_training import cell

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


def recorded(step, device):
    """The step as a function that replays its kernels; on a CPU, the step."""
    if device.type == "cpu":
        return step
    aside = torch.cuda.Stream()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        step()
    torch.cuda.current_stream().wait_stream(aside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = step()
    return lambda: (graph.replay(), out)[1]


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


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("design", ["q,k,v", "q=k,v+core=full", "q,k=v+kv_heads=2", "q,k=v+latent=48"])
@pytest.mark.parametrize("inputs", ["window", "documents", "window documents", "padding", "both sides", "chunks"])
def test_what_the_fused_kernel_would_mask_takes_flash_attention(inputs, design, dtype):
    """Output and gradient, against float64; documents and padding of many lengths."""
    torch.manual_seed(0)
    options = {"causal": inputs != "both sides", "window": 50 if "window" in inputs else None}
    layer = SelfAttention(128, 4, design, rotary=True, **options, device=DEVICE, dtype=dtype)
    x = torch.randn(2, 300, 128, device=DEVICE, dtype=dtype, requires_grad=inputs != "chunks")
    given = {}
    if "documents" in inputs or inputs == "both sides":
        lengths = torch.tensor([7, 130, 1, 62, 100], device=DEVICE)
        given["document"] = torch.arange(5, device=DEVICE).repeat_interleave(lengths)[None]
    elif inputs == "padding":
        given["key_padding"] = torch.arange(300, device=DEVICE) < torch.tensor([[300], [171]], device=DEVICE)

    def results(layer, x):
        if inputs == "chunks":
            cache = KVCache()
            with torch.no_grad():
                return (torch.cat([layer(part, cache=cache) for part in x.split((100, 90, 110), 1)], 1),)
        out = layer(x, **given)
        return out, *torch.autograd.grad(out.float().sin().sum(), x)

    if DEVICE.type == "cuda" and inputs == "window":
        assert layer.backend(x) == "flash"
    found = results(layer, x)
    expected = results(layer.double(), x.detach().double().requires_grad_(x.requires_grad))
    for one, other in zip(found, expected, strict=True):
        assert float((one - other).norm().detach() / other.norm().detach()) < (
            0.02 if dtype == torch.bfloat16 else 0.003
        )


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


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "bert"])
def test_models_of_transformers_attend_as_under_sdpa(family):
    querykey.hf.register()
    ids = test_hf.tokens().to(DEVICE)
    models = [test_hf.tiny(family, name).to(DEVICE, torch.float64) for name in ("querykey", "sdpa")]
    rows = {"attention_mask": test_hf.LEFT_PADDING.to(DEVICE)}
    with torch.no_grad():
        found, expected = (model(ids, **rows).logits[rows["attention_mask"] == 1] for model in models)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)
    if family != "bert":
        how = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": 1, **rows}
        one, other = (model.generate(ids, **how) for model in models)
        assert torch.equal(one, other)


@pytest.mark.parametrize("design", ["q,k,v", "q=k,v+core=full", "q,k=v+latent=16"])
def test_training_gives_the_losses_of_the_cpu(design):
    found, expected = (
        train(replace(cell(design, "induction", positions="rotary"), device=str(device))) for device in (DEVICE, "cpu")
    )
    assert found.curve["validation"] == pytest.approx(expected.curve["validation"], rel=1e-3)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_an_inspection_gives_the_numbers_of_the_cpu(family, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"w{number * number % 55}" for number in range(700)))
    model = AutoModelForCausalLM.from_config(tiny_config(family), dtype=torch.float64)
    folder = with_words(model, tmp_path / family)
    found, expected = (
        examine(folder, text=text, pieces=6, forecast="head", device=str(device)) for device in (DEVICE, "cpu")
    )
    assert_frame_equal(found.heads, expected.heads, rtol=1e-4)
    assert_frame_equal(found.data.forecast, expected.data.forecast, rtol=1e-4)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("share", ["kv", "qk"])
def test_a_conversion_is_that_of_the_cpu(share, tmp_path):
    ids = conversions.tokens()
    found, expected = (
        convert(tiny("llama").to(device), byte_tokenizer(), **SMALL, share=share) for device in (DEVICE, "cpu")
    )
    on_device, texts = ids.to(DEVICE), [Text("one", conversions.tokens(batch=6, length=24))]
    given = logits(found.model, on_device)
    torch.testing.assert_close(given.cpu(), logits(expected.model, ids), rtol=0, atol=1e-4)  # moments are float32
    assert found.evaluate(texts)[0].after == pytest.approx(expected.evaluate(texts)[0].after, rel=1e-4)
    with found.original():
        # transformers computes the angles of the rotation in float32
        torch.testing.assert_close(logits(found.model, on_device).cpu(), logits(tiny("llama"), ids), rtol=0, atol=1e-5)
    for plain in (True, False):
        folder = found.save(tmp_path / str(plain), plain=plain)
        torch.testing.assert_close(logits(load(folder).to(DEVICE, torch.float64), on_device), given)
    how = {"max_new_tokens": 9, "do_sample": False}
    assert torch.equal(found.model.generate(on_device, **how).cpu(), expected.model.generate(ids, **how))


@pytest.mark.usefixtures("unchecked")
def test_a_conversion_heals(tmp_path):
    found = convert(tiny("llama").to(DEVICE, torch.float32), byte_tokenizer(), **SMALL)
    texts = [Text("one", conversions.tokens(batch=6, length=24))]
    heal(found, texts, texts, steps=4, rate=1e-3, folder=tmp_path, save_strategy="no")
    assert found.healed["after"] <= found.healed["before"] or not found.healed["kept"]
    assert next(found.model.parameters()).device.type == DEVICE.type


@pytest.mark.parametrize("design", ["q,k,v", "q,k=v", "q,k=v+latent=48", "q,k,v+kv_heads=2"])
@pytest.mark.parametrize("options", [{}, {"window": 20}, {"alibi": True, "softcap": 5.0, "sinks": True}])
@torch.no_grad()
def test_a_step_can_be_recorded_as_a_cuda_graph(design, options):
    layer = SelfAttention(128, 4, design, causal=True, rotary=True, **options, device=DEVICE)
    x, given = torch.randn(2, 70, 128, device=DEVICE), torch.empty(2, 1, 128, device=DEVICE)
    cache = KVCache.static(2, 75, layer.layout, device=DEVICE, dtype=torch.float32)
    parts = [layer(x[:, :60], cache=cache)]
    step = recorded(lambda: layer(given, cache=cache), DEVICE)
    cache.crop(60)  # what recording has added
    for one in x[:, 60:].split(1, 1):
        given.copy_(one)
        parts.append(step().clone())
    torch.testing.assert_close(torch.cat(parts, 1), layer(x), rtol=0, atol=1e-3)


RECORDED = """
import sys, torch
from querykey import KVCache, SelfAttention

device = torch.device(sys.argv[1])
for design in sys.argv[2:]:
    layer = SelfAttention(128, 4, design, causal=True, rotary=True, device=device)
    x = torch.randn(2, 70, 128, device=device)
    cache = KVCache.static(2, 75, layer.layout, device=device, dtype=torch.float32)
    step = torch.compile(layer, fullgraph=True, mode="reduce-overhead" if device.type == "cuda" else None)
    with torch.no_grad():
        parts = [layer(x[:, :60], cache=cache), *(step(one, cache=cache).clone() for one in x[:, 60:].split(1, 1))]
        torch.testing.assert_close(torch.cat(parts, 1), layer(x), rtol=0, atol=1e-3)
print("compiled", len(sys.argv) - 2)
"""


def test_steps_recorded_as_one_graph_decode_with_a_static_cache():
    test_compile.ran(RECORDED, str(DEVICE), "q,k,v", "q=k,v+core=full", "q,k=v+latent=48", "q,k,v+kv_heads=2")
