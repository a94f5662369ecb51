"""The examples run, at a size that takes seconds."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import querykey

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.mark.slow
def test_two_designs_train_under_accelerate_on_two_processes():
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    command += [str(EXAMPLES / "train_shared.py"), "--steps", "2", "--batch", "2", "--designs", "q,k,v", "q=k=v"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = {line.split()[0]: line.split()[1:] for line in done.stdout.splitlines() if line.startswith("q")}
    parameters = [int(rows[design][0].replace(",", "")) for design in ("q,k,v", "q=k=v")]
    assert parameters[0] - parameters[1] == 4 * 2 * 192 * 192  # two projections less in each of four layers
    assert all(0 < float(rows[design][1]) < 9 for design in rows)


# A Llama-style decoder

CONFIG = {
    "model_type": "llama", "vocab_size": 256, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-05, "rope_theta": 500000.0,
    "rope_scaling": {"rope_type": "llama3", "factor": 32.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
        "original_max_position_embeddings": 16},
    "max_position_embeddings": 512, "tie_word_embeddings": False, "attention_bias": False,
    "bos_token_id": 1, "eos_token_id": None,
}  # fmt: skip


def llama():
    spec = importlib.util.spec_from_file_location("llama_example", EXAMPLES / "llama.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(CONFIG))
    return path


def run_llama(config, *arguments, processes=1):
    command = [sys.executable]
    if processes > 1:
        command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    command += [str(EXAMPLES / "llama.py"), str(config), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_decoder_is_llama_on_its_weights(config, tmp_path):
    import transformers

    torch.manual_seed(0)
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_pretrained(config)).eval()
    theirs.save_pretrained(tmp_path)
    ours = llama().open_model(tmp_path, "q,k,v").eval()
    tokens = torch.randint(256, (2, 40), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-5)
    expected = theirs.generate(tokens, max_new_tokens=9, do_sample=False, pad_token_id=0)[:, 40:]
    assert torch.equal(llama().decode(ours, tokens, 9), expected)


def test_the_decoder_trains_adapters_alone(config):
    pytest.importorskip("peft")
    example = llama()
    model = example.open_model(config, "q,k=v")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    adapted = example.with_adapters(model, 4)
    losses = example.train(adapted, 8, 4, 32, 0.1)
    assert losses[-1] < losses[0] - 0.2
    tokens = torch.arange(12)[None]
    expected = adapted(tokens)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(merged(tokens), expected, rtol=1e-4, atol=1e-4)
    changed = {name for name, tensor in merged.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"blocks.{n}.attention.{part}_proj.weight" for n in range(2) for part in ("in", "o")}


@pytest.mark.slow
def test_the_decoder_decodes_256_tokens_with_one_graph(config):
    """The script forbids recompilations after the first step."""
    said = [run_llama(config, "--new", "257", *more).splitlines()[-1] for more in ((), ("--compile",))]
    assert len(said[0].split()) == 258
    assert said[0] == said[1]


@pytest.mark.slow
def test_the_decoder_trains_compiled_and_sharded(config):
    for arguments, processes in ((("--compile",), 1), ((), 2)):
        out = run_llama(config, "--steps", "30", "--length", "64", *arguments, "--new", "4", processes=processes)
        before, after = map(float, re.search(r"loss (\S+) before, (\S+) after", out).groups())
        assert after < before - 0.5


# The notebook


def test_the_notebook_is_clean_and_its_names_exist():
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(EXAMPLES / "querykey.ipynb", 4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(not cell.outputs and cell.execution_count is None for cell in code)
    for name in re.findall(r"\bquerykey\.(\w+)", "\n".join(cell.source for cell in code)):
        assert hasattr(querykey, name), name


@pytest.mark.slow
def test_the_notebook_runs_offline(tmp_path, monkeypatch):
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    monkeypatch.setenv("QUERYKEY_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    notebook = nbformat.read(EXAMPLES / "querykey.ipynb", 4)
    client = nbclient.NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    )
    client.execute()
    shown = [json.dumps(cell.outputs) for cell in notebook.cells if cell.cell_type == "code"]
    assert "<iframe srcdoc=" in shown[1]
    assert "q=k,v: worse on cycle" in shown[2]
    assert "torch.Size([2, 128, 256])" in shown[-1]
