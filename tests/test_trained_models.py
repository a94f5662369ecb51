"""Conversion of trained models, where they are on this machine: QUERYKEY_MODELS names the folder that holds them.

It holds transformers folders such as smollm2-135m and gemma3-270m. `make test-models QUERYKEY_MODELS=FOLDER` runs
these tests in some minutes. The fit is smaller than a real one (12 windows), so the bounds are wide.
"""

import os
import pydoc_data.topics
import sysconfig
from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from querykey.conversion.convert import Fitted, check, fit
from querykey.conversion.evaluate import overall
from querykey.conversion.save import load
from querykey.conversion.source import open_model
from querykey.conversion.texts import read_texts

FOLDER = os.environ.get("QUERYKEY_MODELS")
BOUNDS = {"smollm2-135m": 1.15, "gemma3-270m": 1.3}  # at half of the cache; 1.04 and 1.1 with a full calibration
pytestmark = [pytest.mark.models, pytest.mark.skipif(not FOLDER, reason="QUERYKEY_MODELS names no folder")]


@pytest.fixture(scope="module", params=BOUNDS)
def fitted(request, tmp_path_factory) -> Fitted:
    place = Path(FOLDER, request.param)
    if not (place / "config.json").exists():
        pytest.skip(f"{place} holds no model")
    model, tokenizer = open_model(str(place), dtype="float32")
    stdlib = Path(sysconfig.get_path("stdlib"))
    text = tmp_path_factory.mktemp("texts") / "reference.txt"
    text.write_text("\n\n".join(pydoc_data.topics.topics.values()), encoding="utf-8")
    texts = [stdlib / "argparse.py", text]
    return fit(model, tokenizer, share="kv", texts=texts, windows=12, length=256)


@pytest.mark.timeout(1200)
def test_half_of_the_cache(fitted, tmp_path):
    """Costs, bytes, a round trip through disk, generation with and without the cache, and bfloat16."""
    name = Path(fitted.model.config.name_or_path).name
    evaluation = read_texts(
        [Path(sysconfig.get_path("stdlib"), "typing.py")], fitted.tokenizer, windows=4, length=256
    )  # fmt: skip
    conversion = fitted.convert(0.5)
    check(conversion)  # rounding in float32 passes
    ratio = overall(conversion.evaluate(evaluation)).value
    assert 1 < ratio < BOUNDS[name]
    before, after = conversion.cache_bytes()
    assert after == before / 2
    conversion.save(tmp_path / "half")
    found, model = load(tmp_path / "half"), conversion.model
    ids = evaluation[0].windows[:1, :64]
    options = {"attention_mask": torch.ones_like(ids), "max_new_tokens": 24, "do_sample": False}
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, model(ids).logits, rtol=0, atol=1e-4)
    said = model.generate(ids, **options)
    assert torch.equal(found.generate(ids, **options), said)
    assert torch.equal(found.generate(ids, use_cache=False, **options), said)
    model.to(torch.bfloat16)
    assert abs(overall(conversion.evaluate(evaluation)).value - ratio) < 0.02  # with 1,024 tokens; 0.01 with more
