"""Vision models on images: what heads do on them and what sharing costs, against the library's own model."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from transformers import AutoConfig, AutoModel, PreTrainedModel

from checkpoints import tiny_model
from querykey.checkpoint.reading import Checkpoint
from querykey.cli import main
from querykey.inspection.images import Images
from querykey.inspection.inspect import Inspection, examine
from querykey.inspection.page import as_html
from querykey.inspection.summary import sentences
from querykey.models.huggingface import open_model
from test_inspect import TOWERS

pytestmark = pytest.mark.usefixtures("unchecked")
QUICK, WHERE = ("vit", "clip", "swin"), {"clip": "vision_model", "siglip": "vision_model", "llava": "vision_tower"}
KINDS = [
    pytest.param(kind, marks=[] if kind in QUICK else pytest.mark.slow)
    for kind in (*QUICK, "deit", "dinov2", "siglip", "llava")
]


def photos(folder: Path, count: int = 12, side: int = 16) -> Path:
    folder.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


def pixels_of(folder: Path, side: int) -> Tensor:
    """Between −1 and 1, in the order of the names."""
    images = [Image.open(path).resize((side, side), Image.Resampling.BILINEAR) for path in sorted(folder.iterdir())]
    return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1


def vision(kind: str, folder: Path) -> PreTrainedModel:
    """A tiny model of this kind with weights large enough that attention matters."""
    model = AutoModel.from_config(AutoConfig.for_model(kind, **TOWERS[kind]), dtype=torch.float32).eval()
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        if parameter.dim() > 1:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
        elif "q_proj" in name or "v_proj" in name:
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_a_vision_model_against_the_library_s_own(kind: str, tmp_path: Path) -> None:
    """Fits that need nothing are made in the weights, and what a tied head keeps is computed from dense matrices."""
    model, folder = vision(kind, tmp_path / kind), photos(tmp_path / "photos", side=24)
    found = examine(tmp_path / kind, inputs=folder, forecast="layer")
    tower = model.get_submodule(WHERE.get(kind, ""))
    side = model.config.vision_config.image_size if WHERE.get(kind) else model.config.image_size
    pixels = pixels_of(folder, side)
    module = found.data.heads["module"].iloc[0]
    inputs: list[Tensor] = []
    hook = model.get_submodule(module).register_forward_pre_hook(
        lambda _, args, kwargs: inputs.append((*args, *kwargs.values())[0]), with_kwargs=True
    )
    with torch.no_grad():
        _, before = [tower(pixels[half::2])[0] for half in (0, 1)]
    hook.remove()
    check_shares(found, model, module, [x.flatten(0, -2) for x in inputs])
    rows = found.data.forecast.set_index(["scope", "replacement"])["cosine"]
    layers = [model.get_submodule(name) for name in dict.fromkeys(found.data.heads["module"])]
    for kind_of, weights in (("copied", lambda layer: layer.q_proj), ("uniform", lambda layer: None)):
        with torch.no_grad():
            kept = [replace(layer, weights(layer)) for layer in layers]
            after = tower(pixels[1::2])[0]
            for layer, state in zip(layers, kept, strict=True):
                layer.k_proj.load_state_dict(state)
        assert rows["all", kind_of] == pytest.approx(F.cosine_similarity(after, before, dim=-1).mean().item(), abs=1e-5)
    assert rows["all", "copied"] < 0.99
    assert len(inputs[0]) * len(inputs[0][0]) >= found.data.calibrated_on > 0


def replace(layer: torch.nn.Module, by: torch.nn.Module | None) -> dict[str, Tensor]:
    """W_K and its bias become those of another projection, or 0, so that all scores are equal; what they were."""
    kept = {name: tensor.clone() for name, tensor in layer.k_proj.state_dict().items()}
    for name, parameter in layer.k_proj.named_parameters():
        parameter.copy_(getattr(by, name) if by is not None else torch.zeros(()))
    return kept


def check_shares(found: Inspection, model: PreTrainedModel, module: str, inputs: list[Tensor]) -> None:
    """Σ^½ M Σ^½ of each head, the tied head fitted under the Σ of one half, its share under that of the other."""
    (fit, fit_inverse), (root, _) = (roots(x.double()) for x in inputs)
    layer, heads = model.get_submodule(module), found.heads[found.heads["module"] == module]
    size = int(heads["head_dim"].iloc[0])
    for _, row in heads.iterrows():
        rows = slice(row["head"] * size, (row["head"] + 1) * size)
        M = layer.q_proj.weight[rows].double().T @ layer.k_proj.weight[rows].double()
        fitted, own = fit @ M @ fit, root @ M @ root
        assert row["symmetry_data"] == pytest.approx(((own * own.T).sum() / own.square().sum()).item(), abs=1e-4)
        values, vectors = torch.linalg.eigh((fitted + fitted.T) / 2)
        tied = root @ fit_inverse @ vectors @ values.clamp(min=0).diag() @ vectors.T @ fit_inverse @ root
        kept = 1 - (own - tied).square().sum() / own.square().sum()
        assert row["tied_share_data"] == pytest.approx(kept.item(), abs=1e-4)


def roots(x: Tensor) -> tuple[Tensor, Tensor]:
    """Σ^½ and its inverse."""
    values, vectors = torch.linalg.eigh(x.T.cov(correction=0))
    inverse = torch.where(values > 1e-9 * values.max(), values.clamp(min=1e-30).rsqrt(), 0.0)
    return vectors * values.clamp(min=0).sqrt() @ vectors.T, vectors * inverse @ vectors.T


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("vit")
    vision("vit", folder)
    return folder


def test_what_is_said_of_images(vit: Path, tmp_path: Path) -> None:
    """Counts of images and tokens; a file that is there twice counts once; no perplexity; a page."""
    folder = photos(tmp_path / "photos", 10)
    shutil.copy(folder / "03.png", folder / "03 again.png")
    other = photos(tmp_path / "others", 20)  # of which 10 are the same
    found = examine(vit, inputs=folder, pieces=100, forecast="all")
    assert found.data.images == (5, 5)
    assert found.data.calibrated_on == 5 * 17
    assert examine(vit, inputs=folder, calibrate=other, pieces=100).data.images == (10, 10)
    words = " ".join(sentences(found))
    assert "5 images (85 tokens)" in words
    assert "5.3 tokens per dimension" in words
    assert "perplexity" not in words
    assert {"entropy", "self_mass", "cycle_longer", "tied_share_data_null"} <= {*found.heads}
    assert "On the images" in as_html([found])


def test_the_model_s_own_image_processor_is_used(vit: Path, tmp_path: Path) -> None:
    folder, copy = photos(tmp_path / "photos", 4), Path(shutil.copytree(vit, tmp_path / "vit"))
    config = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2, 0.3], "image_std": [0.5, 0.6, 0.7]}
    (copy / "preprocessor_config.json").write_text(json.dumps(config | {"size": {"height": 16, "width": 16}}))
    images, model = Images(folder, None, 4), open_model(copy, reads="images")
    images.check(model.checkpoint)
    plain = (pixels_of(folder, 16) + 1) / 2
    mean, std = (torch.tensor(config[name]).view(3, 1, 1) for name in ("image_mean", "image_std"))
    torch.testing.assert_close(images.halves(model)[1], ((plain - mean) / std)[1::2], atol=1e-5, rtol=1e-5)
    (copy / "preprocessor_config.json").write_text(json.dumps(config | {"size": {"height": 20, "width": 20}}))
    images.check(model.checkpoint)
    with pytest.raises(ValueError, match="does not run on images of 3 × 20 × 20"):
        images.halves(model)


def test_bad_input_is_one_sentence_before_any_weight_is_read(
    vit: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, text = photos(tmp_path / "photos", 4), tmp_path / "text.txt"
    text.write_text("words " * 900)
    tiny_model("llama").save_pretrained(tmp_path / "llama")
    monkeypatch.setattr(Checkpoint, "read", lambda *_, **__: pytest.fail("weights were read"))
    llama, nothing, damaged = tmp_path / "llama", tmp_path / "nothing", tmp_path / "damaged"
    nothing.mkdir()
    shutil.copytree(folder, damaged)
    (damaged / "02.png").write_bytes((damaged / "02.png").read_bytes()[:200])
    few = photos(tmp_path / "few", 3)
    cases = [
        (vit, ["--inputs", str(nothing)], f"no images in {nothing}"),
        (vit, ["--inputs", str(tmp_path / "gone")], f"no folder {tmp_path / 'gone'}"),
        (vit, ["--inputs", str(few)], "2 to fit shared heads to and 1 to measure on"),
        (vit, ["--inputs", str(damaged)], f"{damaged / '02.png'} cannot be read as an image"),
        (llama, ["--inputs", str(folder)], "model of type 'llama', does not read images; give a text"),
        (vit, ["--text", str(text)], "model of type 'vit', does not read text; give a folder of images"),
        (vit, ["--text", str(text), "--inputs", str(folder)], "one of them at a time"),
        (vit, ["--inputs", str(folder), "--context", "64"], "a context is for text"),
        (vit, ["--inputs", str(folder), "--calibrate", str(folder)], "is both read and calibrated on"),
    ]
    capsys.readouterr()
    for checkpoint, options, said in cases:
        assert main(["inspect", str(checkpoint), *options]) == 2, said
        error = capsys.readouterr().err.strip()
        assert said in error
        assert len(error.splitlines()) == 1
        assert "Traceback" not in error
