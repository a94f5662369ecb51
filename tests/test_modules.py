"""Attention modules of torch and transformers as layers, and layers written back to them.

tests/test_rotary.py compares layers made from Llama's with every scaling of rotary positions.
"""

from importlib import import_module

import pytest
import torch
import transformers
from torch import nn

import querykey.hf
from querykey import SelfAttention

DIM, HEADS, LENGTH = 24, 4, 12


def drawn(module):
    """All parameters drawn, biases and gains too."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.25 + (parameter == 1))
    return module.double().eval()


def normal(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


CAUSAL = torch.ones(LENGTH, LENGTH, dtype=torch.bool).tril()


# nn.MultiheadAttention


@pytest.mark.parametrize("options", [{}, {"bias": False}, {"kdim": 10, "vdim": 10}, {"dropout": 0.1}])
def test_multihead_attention_and_layer_are_the_same_both_ways(options):
    module = drawn(nn.MultiheadAttention(DIM, HEADS, batch_first=True, **options))
    x = normal(2, LENGTH, DIM)
    other = normal(2, 7, options.get("kdim", DIM))
    layer = SelfAttention.from_module(module)
    assert (layer.dropout, layer.training) == (module.dropout, False)

    def pairs(module, layer):
        yield module(x, other, other)[0], layer(x, context=other)
        if "kdim" not in options:
            yield module(x, x, x, attn_mask=~CAUSAL)[0], layer(x, CAUSAL)

    for theirs, ours in pairs(module, layer):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    target = nn.MultiheadAttention(DIM, HEADS, batch_first=True, **options).double().eval()
    layer.write_to(target)
    for name, parameter in module.named_parameters():
        assert torch.equal(target.get_parameter(name), parameter)
    assert SelfAttention.from_module(module.train(), causal=True, window=3).window == 3


@pytest.mark.parametrize(
    "design",
    ["q=k,v+core=full", "q,k=v+latent=7", "q=k=v", "q,k,v+kv_heads=2", "q=k,v+core=full+kv_heads=1", "q=x,k,v"],
)
def test_designs_are_written_out_as_multihead_attention(design):
    layer = drawn(SelfAttention(DIM, HEADS, design, causal=True))
    module = nn.MultiheadAttention(DIM, HEADS, batch_first=True).double().eval()
    layer.write_to(module)
    x = normal(2, LENGTH, DIM)
    torch.testing.assert_close(module(x, x, x, attn_mask=~CAUSAL)[0], layer(x), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (nn.Linear(2, 2), r"expected an nn.MultiheadAttention, not Linear; querykey.hf.from_module"),
        (nn.MultiheadAttention(8, 2, add_bias_kv=True), r"belongs to no token \(bias_k and bias_v\)"),
        (nn.MultiheadAttention(8, 2, add_zero_attn=True), r"belongs to no token \(add_zero_attn\)"),
        (nn.MultiheadAttention(8, 2, kdim=5, vdim=6), "keys are made of width 5 and values of width 6"),
    ],
)
def test_modules_that_are_no_layer_are_refused(module, sentence):
    with pytest.raises(ValueError, match=sentence):
        SelfAttention.from_module(module)


@pytest.mark.parametrize(
    ("layer", "module", "sentence"),
    [
        ({"design": "q,k,v+cosine"}, {}, "the layer has similarity cosine, and the MultiheadAttention dot"),
        ({"rotary": True}, {}, r"the layer has rotary positions Rotary\(.*\), and the MultiheadAttention None"),
        ({"design": "q,k,v+selfmask"}, {}, "selfmask True"),
        ({"sinks": True}, {}, "sinks True"),
        ({"bias": True}, {"bias": False}, "the layer has biases, and the MultiheadAttention has none"),
        ({"head_dim": 5}, {}, "the layer has head_dim 5, and the MultiheadAttention 6"),
    ],
)
def test_layers_that_a_module_cannot_hold_are_refused(layer, module, sentence):
    with pytest.raises(ValueError, match=sentence):
        SelfAttention(DIM, HEADS, **layer).write_to(nn.MultiheadAttention(DIM, HEADS, **module))


# transformers

SIZES = {
    "vocab_size": 61,
    "hidden_size": DIM,
    "intermediate_size": 29,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "max_position_embeddings": 9,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 6}
YARN = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "original_max_position_embeddings": 8}
HALF = {"rope_type": "default", "rope_theta": 5e5, "partial_rotary_factor": 0.5}
CASES = {
    "llama yarn": ("Llama", GROUPED | {"rope_parameters": YARN}),
    "qwen2": ("Qwen2", GROUPED),  # whose output projection has no bias
    "qwen3": ("Qwen3", GROUPED),
    "cohere": ("Cohere", GROUPED),
    "gemma2": ("Gemma2", GROUPED | {"sliding_window": 4, "query_pre_attn_scalar": 17}),
    "gemma3": ("Gemma3Text", GROUPED | {"sliding_window": 4}),
    "neox": ("GPTNeoX", {"rope_parameters": HALF, "hidden_size": 32}),
    "gpt oss": ("GptOss", GROUPED | {"num_local_experts": 4, "sliding_window": 4}),
    "gpt2": ("GPT2", {"n_positions": LENGTH, "scale_attn_by_inverse_layer_idx": True}),
    "bert": ("Bert", {}),
}


def attention_of(name, layer=1):
    """An attention module, and its result on x, by its model's parts."""
    family, options = CASES[name]
    config = getattr(transformers, f"{family}Config")(**{**SIZES, **options}, attn_implementation="eager")
    prefix = family.removesuffix("Text")
    kind = config.model_type.removesuffix("_text")
    module = import_module(f"transformers.models.{kind}.modeling_{kind}")
    attention = drawn(getattr(module, f"{prefix}Attention")(config, layer_idx=layer))
    allowed = torch.ones(LENGTH, LENGTH).tril().bool()
    if (window := getattr(attention, "sliding_window", None)) is not None:
        allowed &= ~torch.ones(LENGTH, LENGTH).tril(-window).bool()

    def run(x, attention=attention):
        mask = (allowed if family != "Bert" else torch.ones_like(allowed)).log().double()[None, None]
        given = {"attention_mask": mask}
        if rotary := getattr(module, f"{prefix}RotaryEmbedding", None):
            kinds = (config.layer_types[layer],) if family == "Gemma3Text" else ()
            given["position_embeddings"] = rotary(config).double()(x, torch.arange(LENGTH)[None], *kinds)
        if family == "Bert":  # which adds and normalises behind the projection
            return attention.output.dense(attention.self(x, mask)[0])
        return attention(x, **given)[0]

    return attention, run


@pytest.mark.parametrize("name", CASES)
def test_attention_of_transformers_and_layer_are_the_same_both_ways(name):
    attention, run = attention_of(name)
    x = normal(2, LENGTH, 32 if name == "neox" else DIM)
    layer = querykey.hf.from_module(attention)
    torch.testing.assert_close(layer(x), run(x), rtol=0, atol=1e-6)
    target, again = attention_of(name)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(1.0)
    querykey.hf.write_to(layer, target)
    torch.testing.assert_close(again(x), run(x), rtol=0, atol=1e-12)


def test_designs_are_written_out_as_llama():
    """Keys and values of one latent, with rotary positions."""
    attention, run = attention_of("llama yarn")
    rotary = querykey.hf.from_module(attention).layout.rotary
    layer = drawn(SelfAttention(DIM, HEADS, "q,k=v+kv_heads=1+latent=5", causal=True, rotary=rotary))
    querykey.hf.write_to(layer, attention)
    x = normal(2, LENGTH, DIM)
    torch.testing.assert_close(run(x), layer(x), rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"rotary positions Rotary\(.*yarn"):
        querykey.hf.write_to(SelfAttention(DIM, HEADS, causal=True, rotary=True), attention)


def tiny(family, **options):
    config = getattr(transformers, f"{family}Config")(**SIZES | options)
    return getattr(transformers, f"{family}Model")(config)


@pytest.mark.parametrize(
    ("family", "options", "path", "sentence"),
    [
        ("Bert", {}, "encoder.layer.0.attention.self", r"it has no parameter .*output\.dense\.weight; give"),
        ("Bert", {}, "encoder.layer.0.output", "BertOutput cannot be a SelfAttention: it has no config"),
        ("Qwen3", GROUPED | {"rms_norm_eps": 1e-5}, "layers.0.self_attn", "epsilon of 1e-05, and a layer with 1e-06"),
        ("Olmo2", {"num_key_value_heads": 4}, "layers.0.self_attn", "one norm of 24 numbers, and the heads"),
        ("Falcon", {"alibi": True}, "h.0.self_attention", "it adds alibi to the scores"),
        ("DeepseekV3", {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
            "v_head_dim": 6, "n_routed_experts": 8}, "layers.0.self_attn", "is made in two steps, as in MLA"),
    ],
)  # fmt: skip
def test_modules_of_transformers_that_are_no_layer_are_refused(family, options, path, sentence):
    with pytest.raises(ValueError, match=sentence):
        querykey.hf.from_module(tiny(family, **options).get_submodule(path))


def test_adapters_and_quantised_weights_are_refused():
    model = tiny("Llama", **GROUPED)
    attention = model.layers[0].self_attn
    attention.q_proj = nn.Sequential(attention.q_proj)
    with pytest.raises(ValueError, match=r"it has no parameter q_proj.weight; .* without adapters"):
        querykey.hf.from_module(attention)
    attention.q_proj = nn.Linear(DIM, DIM, bias=False)
    attention.q_proj.weight = nn.Parameter(torch.zeros(DIM, DIM, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ValueError, match=r"its q_proj.weight is quantised"):
        querykey.hf.from_module(attention)
