"""Low precision: autocast, bfloat16 and float16, against float64 and against the stock kernel on the same inputs."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from querykey import DesignError, SelfAttention, attend, attention_weights

DESIGNS = ("q,k,v", "q,k,v+cosine", "q,k,v+l2", "q,k,v+qknorm", "q=k,v+core=signed", "q=k,v+core=full", "q,k=v")
DESIGNS += ("q=k=x,v", "q,k,v=x", "q,k=v+latent=16", "q=k,v+l2+selfmask", "q,k,v+kv_heads=2")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("number", range(len(DESIGNS)))
def test_autocast_trains_at_every_length(number):
    design, length = DESIGNS[number], (63, 256)[number % 3 > 0]  # by the fused kernel, and where float32 goes by blocks
    layer = SelfAttention(32, 4, design, causal=True, rotary=True)
    x = normal(2, length, 32).float().requires_grad_()
    expected = torch.autograd.grad((y := layer(x)).square().sum(), (x, *layer.parameters()))
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(x)
        assert layer.backend(x) == "flash"
        torch.testing.assert_close(layer(x, return_weights=True)[0], out, rtol=0.05, atol=0.05)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), y, rtol=0.1, atol=0.1)
    for got, wanted in zip(
        torch.autograd.grad(out.float().square().sum(), (x, *layer.parameters())), expected, strict=True
    ):
        assert ((got - wanted).norm() / wanted.norm()) < 0.05


SHARINGS = ("q,k,v", "q=k,v", "q,k=v", "q=v,k", "q=k=v", "q=k=x,v", "q,k,v=x", "q=k=v=x")
OPTIONS = ("", "+core=signed", "+core=symmetric", "+core=full+selfmask", "+cosine", "+l2", "+qknorm", "+qk_dim=8",
           "+kv_heads=2", "+qkscale=0.25", "+latent=16", "+latent=16+kv_heads=2+qknorm", "+l2+selfmask",
           "+xsa")  # fmt: skip
MODIFIERS = ({}, {"softcap": 5.0, "sinks": True}, {"alibi": True}, {"window": 20})


def relative_error(design, dtype, x, **options):
    """Of the layer in low precision against float64 on the same numbers; None where the design cannot be."""
    try:
        layer = SelfAttention(64, 4, design, causal=True, rotary="symmetric" not in design, **options).double()
    except DesignError:
        return None
    got = layer.to(dtype)(x.to(dtype))
    truth = layer.double()(x.to(dtype).double())
    size = truth
    if layer.design.xsa:  # which subtracts two numbers that may be nearly equal: the error is that of these
        plain = SelfAttention(64, 4, design.replace("+xsa", ""), causal=True, rotary=True, **options).double()
        plain.load_state_dict(layer.state_dict())
        size = plain(x.to(dtype).double())
    return float((got - truth).norm() / size.norm())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_the_error_of_every_design_is_at_most_twice_that_of_the_stock_kernel(dtype):
    torch.manual_seed(0)
    x, tried = normal(2, 64, 64), 0
    usual = relative_error("q,k,v", dtype, x)
    for number, (sharing, option) in enumerate(itertools.product(SHARINGS, OPTIONS)):
        modifiers = MODIFIERS[number % 4]
        error = relative_error(sharing + option, dtype, x, **modifiers)
        assert error is None or error < 2 * usual, (sharing + option, modifiers, error / usual)
        tried += error is not None
    assert tried > 60
    errors = []
    for options in ({}, {"softcap": 50.0, "sinks": True}):
        torch.manual_seed(0)
        errors.append(relative_error("q,k,v", dtype, 3 * x, **options))
    assert errors[1] < 1.3 * errors[0]  # the scores are not rounded either


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("queries", [1, 32])
def test_l2_keeps_the_digits_of_its_norms(queries, offset, dtype):
    q, k, v = (3 * normal(2, 4, 32, 64, seed=seed) + offset for seed in range(3))
    q, k, v = q[:, :, :queries].to(dtype), k.to(dtype), (v / 10).to(dtype)
    truth = attend(q.double(), k.double(), v.double(), similarity="l2")
    error = (attend(q, k, v, similarity="l2").double() - truth).norm() / truth.norm()
    assert error < 0.01
    weights = attention_weights(q, k, "l2")
    assert weights.dtype == dtype
    torch.testing.assert_close(weights.double(), attention_weights(q.double(), k.double(), "l2"), rtol=0.02, atol=1e-3)


def test_l2_in_low_precision_has_the_gradient_of_the_norm():
    q, k = (normal(1, 2, 9, 8, seed=seed).to(torch.bfloat16).requires_grad_() for seed in range(2))
    v = normal(1, 2, 9, 8, seed=2).to(torch.bfloat16)
    got = torch.autograd.grad(attend(q, k, v, similarity="l2").float().square().sum(), (q, k))
    exact = [tensor.detach().double().requires_grad_() for tensor in (q, k)]
    wanted = torch.autograd.grad(attend(*exact, v.double(), similarity="l2").square().sum(), exact)
    for one, other in zip(got, wanted, strict=True):
        assert (one.double() - other).norm() / other.norm() < 0.03


@pytest.mark.parametrize("weights", [False, True])
def test_a_mask_of_another_dtype_is_taken_on_both_paths(weights):
    layer = SelfAttention(32, 4).bfloat16()
    x, mask = normal(2, 7, 32).bfloat16(), torch.randn(7, 7)
    mask[mask < -0.5] = -torch.inf
    out = layer(x, mask, return_weights=weights)
    out = out[0] if weights else out
    torch.testing.assert_close(out, layer(x, mask.bfloat16()), rtol=0.02, atol=0.02)
    assert out.dtype == torch.bfloat16


def test_scores_of_low_precision_are_those_of_its_numbers():
    q, k = (normal(9, 64, seed=seed).to(torch.bfloat16) for seed in range(2))
    expected = F.scaled_dot_product_attention(q.float()[None], k.float()[None], torch.eye(9)[None])[0]
    torch.testing.assert_close(attention_weights(q, k).float(), expected, rtol=2**-8, atol=0)
