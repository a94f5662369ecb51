"""The small Transformer: decoding equals the whole at once, and its sizes are what was asked for."""

import pytest
import torch

from querykey import KVCache
from querykey.transformer import Transformer

SIZES = {"dim": 24, "heads": 4, "layers": 3}


@pytest.mark.parametrize("positions", ["none", "learned", "rotary"])
@pytest.mark.parametrize("design", ["q,k,v", "q,k=v+selfmask", "q=k=v+core=full+kv_heads=2"])
def test_decoding_equals_the_whole_at_once(positions, design):
    model = Transformer(13, 11, 7, causal=True, design=design, positions=positions, **SIZES).double()
    inputs = torch.randint(13, (5, 7, 2), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        caches = [KVCache() for _ in range(3)]
        steps = torch.cat([model(part, caches=caches) for part in inputs.split((1, 2, 4), 1)], 1)
        torch.testing.assert_close(steps, model(inputs))


def test_a_decoder_does_not_see_ahead_and_an_encoder_does():
    inputs = torch.randint(13, (1, 7, 1), generator=torch.Generator().manual_seed(0))
    changed = inputs.clone()
    changed[0, -1] = (changed[0, -1] + 1) % 13
    for causal in (True, False):
        model = Transformer(13, 11, 7, causal=causal, **SIZES)
        assert torch.equal(model(inputs)[:, :-1], model(changed)[:, :-1]) == causal


@pytest.mark.parametrize(("mlp", "positions"), [(0, "none"), (2.5, "rotary"), (4, "learned")])
def test_parameters_by_hand(mlp, positions):
    model = Transformer(13, 11, 7, mlp=mlp, positions=positions, **SIZES)
    blocks = 3 * (4 * 24 * 24 + 24 + (2 * 24 * round(24 * mlp) + 24 if mlp else 0))
    expected = 13 * 24 + blocks + 24 + 24 * 11 + (7 * 24 if positions == "learned" else 0)
    assert sum(parameter.numel() for parameter in model.parameters()) == expected


@pytest.mark.usefixtures("unchecked")
def test_sizes_that_cannot_be_are_refused():
    for change, sentence in [
        ({"layers": 0}, "layers must be positive"),
        ({"mlp": -1.0}, "mlp is a width"),
        ({"positions": "absolute"}, "positions must be one of none, learned, rotary"),
        ({"heads": 5}, "5 heads do not divide dim 24"),
    ]:
        with pytest.raises(ValueError, match=sentence):
            Transformer(13, 11, 7, **(SIZES | change))
    model = Transformer(13, 11, 7, causal=True, **SIZES)
    with pytest.raises(ValueError, match="the model has 7 learned positions; 8 would be too many"):
        model(torch.zeros(1, 8, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="one cache for each of the 3 layers, got 2"):
        model(torch.zeros(1, 2, 1, dtype=torch.long), caches=[KVCache(), KVCache()])
