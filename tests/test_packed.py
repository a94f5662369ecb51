"""Packed sequences, padding without masks, nested tensors; contexts that are read once."""

import pytest
import torch

from querykey import KVCache, SelfAttention
from querykey.attention import kernels, packed
from querykey.attention.checks import Inputs
from querykey.bench.memory import peak_bytes

DIM, HEADS = 24, 4


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(*lengths):
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))


@pytest.mark.parametrize("lengths", [(3, 1, 7, 5), (4, 4, 4, 4), (16,)])
@pytest.mark.parametrize("options", [{"causal": True, "rotary": True}, {"design": "q=k,v+selfmask+core=full"}])
def test_each_document_gives_what_it_gives_alone(options, lengths):
    layer = SelfAttention(DIM, HEADS, **options).double()
    x = normal(2, 16, DIM).requires_grad_()
    document = torch.stack([ids(*lengths), ids(16 - 5, 5)])
    out, direction = layer(x, document=document), normal(2, 16, DIM, seed=1)
    alone = torch.cat(
        [
            torch.cat([layer(part) for part in x[row : row + 1].split(sizes, 1)], 1)
            for row, sizes in enumerate((lengths, (16 - 5, 5)))
        ]
    )
    torch.testing.assert_close(out, alone, rtol=0, atol=1e-12)
    gradients = [torch.autograd.grad((one * direction).sum(), (x, *layer.parameters())) for one in (out, alone)]
    torch.testing.assert_close(*gradients, rtol=0, atol=1e-10)
    weights = layer(x, document=document, return_weights=True)[1]
    assert not weights[(document[:, :, None] != document[:, None])[:, None].expand_as(weights)].any()
    both = layer(x, torch.ones(16, dtype=torch.bool), document=document)  # with a mask of the user's
    torch.testing.assert_close(both, out, rtol=0, atol=1e-12)


def test_one_row_of_documents_serves_all_rows():
    layer, x = SelfAttention(DIM, HEADS, causal=True).double(), normal(3, 9, DIM)
    torch.testing.assert_close(layer(x, document=ids(4, 5)[None]), layer(x, document=ids(4, 5).expand(3, -1)))


def test_packing_takes_a_fraction_of_the_memory_of_a_mask():
    layer = SelfAttention(32, 2, causal=True)
    x, document = normal(1, 8 * 512, 32).float().requires_grad_(), ids(*[512] * 8)[None]
    mask = (document[:, :, None] == document[:, None])[:, None]

    def train(**inputs):
        torch.autograd.grad(layer(x, **inputs).sum(), (x, *layer.parameters()))

    packing, masking = (
        peak_bytes(lambda i=inputs: train(**i), x.device) for inputs in ({"document": document}, {"mask": mask})
    )
    assert packing < 0.3 * masking


def test_padding_costs_no_mask(monkeypatch):
    layer, x = SelfAttention(DIM, HEADS, causal=True).double(), normal(3, 9, DIM)
    real = torch.arange(9) < torch.tensor([9, 4, 0])[:, None]
    seen = []
    prepare = kernels.prepare
    monkeypatch.setattr(kernels, "prepare", lambda *given, **how: seen.append(how["mask"]) or prepare(*given, **how))
    out = layer(x, key_padding=real)
    assert seen == [None, None]
    for row, count in enumerate((9, 4, 0)):
        torch.testing.assert_close(out[row, :count], layer(x[row : row + 1, :count])[0])
        assert not out[row, count:].any()
    real[1] = torch.tensor([1, 0, 1, 1, 0, 0, 0, 0, 0], dtype=torch.bool)  # on both sides of padding
    assert packed.pieces(Inputs(x, key_padding=real), False) is None
    torch.testing.assert_close(layer(x, key_padding=real)[1, real[1]], layer(x[1:2, real[1]])[0])


@pytest.mark.usefixtures("unchecked")
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_give_nested_results():
    layer = SelfAttention(DIM, HEADS, causal=True, rotary=True).double()
    parts = [normal(length, DIM, seed=length).requires_grad_() for length in (3, 7, 1)]
    out = layer(torch.nested.as_nested_tensor(parts, layout=torch.jagged))
    assert out.is_nested
    for got, part in zip(out.unbind(), parts, strict=True):
        torch.testing.assert_close(got, layer(part[None])[0])
    gradients = torch.autograd.grad(out.values().sin().sum(), parts)
    alone = torch.autograd.grad(sum(layer(part[None]).sin().sum() for part in parts), parts)
    torch.testing.assert_close(gradients, alone)
    with pytest.raises(ValueError, match="a nested tensor holds its own lengths"):
        layer(torch.nested.as_nested_tensor(parts, layout=torch.jagged), cache=KVCache())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("document", "more", "sentence"),
    [
        (torch.tensor([[0, 0, 1, 0], [2, 2, 2, 2]]), {}, "document 0 of row 0 starts again at position 3"),
        (torch.zeros(2, 4), {}, "document must be integers"),
        (torch.zeros(2, 5, dtype=torch.long), {}, r"of shape \(2, 4\) or \(1, 4\), not torch.int64 of shape \(2, 5\)"),
        (torch.zeros(2, 4, dtype=torch.long), {"cache": KVCache()}, "it goes with neither a cache nor a context"),
    ],
)
def test_documents_that_do_not_fit_are_refused(document, more, sentence):
    with pytest.raises(ValueError, match=sentence):
        SelfAttention(DIM, HEADS, causal=True)(torch.zeros(2, 4, DIM), document=document, **more)


# Contexts

CONTEXT = torch.zeros(2, 5, DIM)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("rotary", [False, True])
@pytest.mark.parametrize("design", ["q,k,v", "q,k=v", "q,k=v+latent=9", "q=k,v+core=full+qknorm", "q,k,v+kv_heads=2"])
def test_a_context_that_was_read_once_serves_every_step(design, rotary):
    layer = SelfAttention(DIM, HEADS, design, rotary=rotary).double()
    x, context, places = normal(3, 5, DIM), normal(3, 7, DIM, seed=1), torch.arange(2, 9)
    mask = normal(3, 1, 5, 7, seed=2) > -0.5
    both = {"positions": (torch.arange(5), places)} if rotary else {}
    expected = layer(x, mask, context=context, **both)
    read = layer.read_context(context, positions=places if rotary else None)
    for steps in ((5,), (1, 3, 1)):
        parts = zip(x.split(steps, 1), mask.split(steps, 2), torch.arange(5).split(steps), strict=True)
        out = [
            layer(part, hidden, context=read, **({"positions": place} if rotary else {}))
            for part, hidden, place in parts
        ]
        torch.testing.assert_close(torch.cat(out, 1), expected, rtol=0, atol=1e-12)
    assert len(read) == 7
    order = torch.tensor([2, 0, 1])
    read.reorder(order)
    again = layer(x[order], mask[order], context=read, positions=torch.arange(5) if rotary else None)
    torch.testing.assert_close(again, expected[order])


def test_a_context_of_another_width_has_its_own_product():
    layer = SelfAttention(DIM, HEADS, "q,k=v", context_dim=10)
    shapes = {name: tuple(module.weight.shape) for name, module in layer.named_children()}
    assert shapes == {"in_proj": (DIM, DIM), "context_proj": (DIM, 10), "o_proj": (DIM, DIM)}
    assert layer.layout.parameters == sum(parameter.numel() for parameter in layer.parameters())


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("options", "inputs", "sentence"),
    [
        ({"context_dim": 10}, {}, "a layer with context_dim needs a context"),
        ({"context_dim": 10}, {"context": torch.zeros(2, 5, DIM)}, "context must be .* with dim 10"),
        ({}, {"values": torch.zeros(2, 5, DIM)}, "values= goes with a context"),
        (
            {},
            {"context": torch.zeros(2, 5, DIM), "values": torch.zeros(2, 4, DIM)},
            "5 positions of context, 4 of values",
        ),
        (
            {"design": "q,k=v"},
            {"context": torch.zeros(2, 5, DIM), "values": torch.zeros(2, 5, DIM)},
            "leave values out",
        ),
        ({"design": "q,k,v+xsa"}, {"context": torch.zeros(2, 5, DIM)}, "no self to exclude"),
        ({"design": "q=k,v", "context_dim": 10}, {}, "they cannot share with them"),
        ({"softcap": 0.0}, {}, "softcap must be positive, not 0"),
    ],
)
def test_contexts_that_do_not_fit_are_refused(options, inputs, sentence):
    with pytest.raises(ValueError, match=sentence):
        SelfAttention(DIM, HEADS, **options)(torch.zeros(2, 4, DIM), **inputs)


def test_a_context_of_another_layer_is_refused():
    one, other = SelfAttention(DIM, HEADS), SelfAttention(DIM, HEADS)
    with pytest.raises(ValueError, match="this cache belongs to another layer"):
        other(torch.zeros(2, 4, DIM), context=one.read_context(torch.zeros(2, 5, DIM)))
    with pytest.raises(ValueError, match="one batch size, not 3 and 2"):
        one(torch.zeros(3, 4, DIM), context=one.read_context(torch.zeros(2, 5, DIM)))
