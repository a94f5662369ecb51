"""Models of transformers that share projections from the start, against plain models with the expanded weights."""

import pytest
import torch
import transformers

from querykey.conversion.tie import share, unshare
from querykey.design import DesignError

SIZES = {
    "vocab_size": 61,
    "hidden_size": 24,
    "intermediate_size": 29,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 53,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 4, "attention_bias": True}),
    "llama-grouped": ("LlamaForCausalLM", "LlamaConfig", {"num_key_value_heads": 2, "attention_bias": True}),
    "qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"num_key_value_heads": 4, "head_dim": 6}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {}),
    "neox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", {}),
    "bert": ("BertForMaskedLM", "BertConfig", {}),
}
FUSED = ("gpt2", "neox")


def tiny(family):
    model, config, more = FAMILIES[family]
    torch.manual_seed(7)
    made = getattr(transformers, model)(getattr(transformers, config)(**SIZES, **more))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(0.0, 0.3)
    return made.eval()


TOKENS = torch.randint(3, 61, (2, 11), generator=torch.Generator().manual_seed(3))


def numbers(model):
    return sum(parameter.numel() for parameter in model.parameters())


CASES = [
    *[(family, design) for family in FAMILIES for design in ("q,k=v",)],
    *[(family, "q=k,v") for family in FAMILIES if family != "llama-grouped"],
    *[(family, "q=k=v") for family in ("llama", "gpt2")],
    *[(family, "q=v,k") for family in ("qwen3", "neox")],
    ("llama", "q=x,k,v"),
    ("llama", "q=k,v+core=full"),
    ("llama", "q=k,v+core=signed"),
    ("llama-grouped", "q=k,v+core=full"),
    ("bert", "q=k,v+core=symmetric"),
    ("llama", "q=k,v+qkscale=0.25+selfmask"),
    ("llama", "q=k,v+cosine"),
]


@pytest.mark.parametrize(("family", "design"), CASES)
def test_a_shared_model_is_the_plain_one_with_its_expanded_weights(family, design):
    model = tiny(family)
    before = numbers(model)
    share(model, design)
    assert numbers(model) < before
    plain = unshare(model)
    assert {type(module).__module__.partition(".")[0] for module in plain.modules()} <= {"torch", "transformers"}
    assert numbers(plain) == before
    with torch.no_grad():
        torch.testing.assert_close(plain(TOKENS).logits, model(TOKENS).logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_what_shares_is_one_parameter_for_gradients(family):
    """The gradient of a shared weight is the sum over the roles that read it, in the plain model."""
    model = share(tiny(family), "q,k=v")
    plain = unshare(model)
    for one in (model, plain):
        one(TOKENS, labels=TOKENS).loss.backward()
    if family == "llama":
        shared = model.model.layers[1].self_attn
        assert shared.k_proj.weight is shared.v_proj.weight
        found = shared.k_proj.weight.grad
        expected = (
            plain.model.layers[1].self_attn.k_proj.weight.grad + plain.model.layers[1].self_attn.v_proj.weight.grad
        )
    else:
        found = model.transformer.h[1].attn.c_attn.parametrizations.weight.original.grad[:, 24:]
        whole = plain.transformer.h[1].attn.c_attn.weight.grad
        expected = whole[:, 24:48] + whole[:, 48:]
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(("family", "design"), [("llama", "q=k,v+core=full"), ("gpt2", "q=k,v"), ("bert", "q=k=v")])
def test_saved_folders_are_ordinary_checkpoints_and_training_goes_on_from_them(family, design, tmp_path):
    model = share(tiny(family), design)
    with torch.no_grad():
        expected = model(TOKENS).logits
    model.save_pretrained(tmp_path)
    loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert all(key.endswith(".core") for key in report["unexpected_keys"])
    again = share(tiny(family), design)
    with torch.no_grad():
        for parameter in again.parameters():
            parameter.zero_()
    again.load_state_dict(model.state_dict())
    for one in (loaded.eval(), again):
        with torch.no_grad():
            torch.testing.assert_close(one(TOKENS).logits, expected, rtol=1e-4, atol=1e-4)


def test_roles_start_from_the_first_of_them():
    model = tiny("llama")
    expected = model.model.layers[0].self_attn.q_proj.weight.clone()
    share(model, "q=k,v")
    assert torch.equal(model.model.layers[0].self_attn.k_proj.weight, expected)


@pytest.mark.parametrize(
    ("family", "design", "part"),
    [
        ("llama-grouped", "q=k,v", "core=full"),
        ("gpt2", "q=k,v+core=full", "neither a core"),
        ("llama", "q,k,v+kv_heads=2", "belongs to the architecture"),
        ("llama", "q=k,v+cosine+selfmask", "do not go together"),
        ("llama", "q=k,v+core=symmetric", "symmetric core"),
        ("llama", "q=k,v+xsa", "cannot hold xsa"),
        ("llama", "q,k=v+latent=9", "cannot hold latent"),
    ],
)
def test_what_the_architecture_cannot_hold_is_refused(family, design, part):
    with pytest.raises(DesignError, match=part):
        share(tiny(family), design)


def test_sharing_twice_and_unsharing_the_unshared_are_refused():
    model = tiny("llama")
    with pytest.raises(ValueError, match="no shared projections"):
        unshare(model)
    share(model, "q=k,v")
    with pytest.raises(DesignError, match="already, as q=k,v"):
        share(model, "q,k=v")
