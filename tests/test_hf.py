"""querykey as an attention implementation of transformers, against `sdpa` and against the formula."""

import pytest
import torch
import transformers

import querykey.hf
from querykey.attention.reference import masked_softmax
from querykey.extras import cache_argument

FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 2}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {"num_key_value_heads": 1, "head_dim": 6, "sliding_window": 4}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"num_key_value_heads": 2, "head_dim": 6}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {}),
    "bert": ("BertForMaskedLM", "BertConfig", {}),
}
SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 29,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 53,
}


@pytest.fixture(autouse=True, scope="module")
def registered():
    assert querykey.hf.register() == tuple(querykey.hf.NAMES)


def tiny(family, implementation, **options):
    model, config, more = FAMILIES[family]
    config = getattr(transformers, config)(**SIZES, **more, **options)
    return made(getattr(transformers, model), config, implementation)


def made(model, config, implementation):
    torch.manual_seed(5)
    found = model(config).eval()
    with torch.no_grad():
        for name, parameter in found.named_parameters():
            if parameter.ndim == 2 or name.endswith("sinks"):
                parameter.normal_(0.0, 0.3)
    found.set_attn_implementation(implementation)
    return found


def tokens():
    return torch.randint(1, 61, (2, 11), generator=torch.Generator().manual_seed(3))


LEFT_PADDING = torch.tensor([[0, 0, 0, *[1] * 8], [1] * 11])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("padding", [None, LEFT_PADDING], ids=["whole", "left-padded"])
def test_logits_equal_those_of_sdpa(family, padding):
    with torch.no_grad():
        found, expected = (tiny(family, name)(tokens(), attention_mask=padding).logits for name in ("querykey", "sdpa"))
    rows = torch.ones_like(tokens()) if padding is None else padding
    torch.testing.assert_close(found[rows == 1], expected[rows == 1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "bert"])
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_generation_equals_that_of_sdpa(family, cache):
    options = {"max_new_tokens": 12, "do_sample": False, "attention_mask": LEFT_PADDING, "pad_token_id": 0}
    options |= {} if cache == "dynamic" else {"cache_implementation": "static", "disable_compile": True}
    found, expected = (
        tiny(family, name, eos_token_id=None).generate(tokens(), **options) for name in ("querykey", "sdpa")
    )
    assert found.shape == (2, 23)
    assert found.tolist() == expected.tolist()


def by_formula(name):
    """The four names written out: scores, mask, softmax, weighted sum."""

    def attention(module, query, key, value, attention_mask, scaling=None, **_):
        groups = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
        scores = scaling * query @ key.mT
        if name == "querykey-cosine":
            norms = query.norm(dim=-1)[..., None] * key.norm(dim=-1)[..., None, :]
            scores = query.shape[-1] ** 0.5 * (query @ key.mT) / norms
        if name == "querykey-l2":
            scores = -scaling / 2 * (query[..., :, None, :] - key[..., None, :, :]).square().sum(-1)
        queries, keys = scores.shape[-2:]
        allowed = torch.ones(queries, keys, dtype=torch.bool)
        if module.is_causal:
            allowed = allowed.tril(keys - queries)
        if name == "querykey-selfmask":
            closed = allowed & ~torch.eye(keys, dtype=torch.bool)[-queries:]
            allowed = torch.where(closed.any(-1, keepdim=True), closed, allowed)
        return (masked_softmax(scores, allowed) @ value).transpose(1, 2).contiguous(), None

    return attention


@pytest.mark.parametrize("family", ["llama", "bert"])
@pytest.mark.parametrize("name", querykey.hf.NAMES)
def test_each_name_is_its_formula(name, family):
    transformers.AttentionInterface.register("by-formula", by_formula(name))
    transformers.masking_utils.AttentionMaskInterface.register("by-formula", transformers.masking_utils.sdpa_mask)
    with torch.no_grad():
        found, expected, plain = (
            tiny(family, implementation)(tokens()).logits for implementation in (name, "by-formula", "sdpa")
        )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert (found - plain).abs().max() > 0.01 or name == "querykey"


def test_the_self_mask_decodes_as_it_reads_at_once():
    model = tiny("llama", "querykey-selfmask")
    with torch.no_grad():
        whole = model(tokens()).logits
        given = {cache_argument(model.forward): transformers.DynamicCache()}
        steps = [model(part, **given).logits for part in tokens().split((6, 1, 1, 1, 1, 1), 1)]
    torch.testing.assert_close(torch.cat(steps, 1), whole, rtol=1e-4, atol=1e-4)


def capped(implementation):
    config = transformers.Gemma2Config(
        **SIZES, num_key_value_heads=2, head_dim=6, attn_logit_softcapping=0.5, sliding_window=4
    )
    return made(transformers.Gemma2ForCausalLM, config, implementation)


def with_sinks(implementation):
    more = {"num_key_value_heads": 2, "head_dim": 6, "num_local_experts": 2, "num_experts_per_tok": 1}
    sizes = SIZES | {"hidden_size": 32, "intermediate_size": 32}  # its experts take multiples of 16 bytes
    config = transformers.GptOssConfig(**sizes, **more, sliding_window=4)
    return made(transformers.GptOssForCausalLM, config, implementation)


@pytest.mark.parametrize("model", [capped, with_sinks])
@pytest.mark.parametrize("padding", [None, LEFT_PADDING], ids=["whole", "left-padded"])
def test_soft_cap_and_sinks_equal_the_model_s_own(model, padding):
    rows = torch.ones_like(tokens()) if padding is None else padding
    options = {"max_new_tokens": 6, "do_sample": False, "attention_mask": rows, "pad_token_id": 0, "eos_token_id": None}
    found, expected = (model(name) for name in ("querykey", "eager"))
    with torch.no_grad():
        pair = [one(tokens(), attention_mask=padding).logits[rows == 1] for one in (found, expected)]
    torch.testing.assert_close(*pair, rtol=1e-5, atol=1e-5)
    assert found.generate(tokens(), **options).tolist() == expected.generate(tokens(), **options).tolist()
