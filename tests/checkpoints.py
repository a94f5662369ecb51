"""Tiny random models of many architectures, what their attention really gets, and how to tie their queries and keys."""

from __future__ import annotations

import json
import zlib
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from querykey.checkpoint import LayerWeights
from querykey.checkpoint.headmap import HeadMap

# head_dim × heads ≠ hidden where an architecture allows it, and no two sizes are equal where they need not be.
SIZES = {
    "vocab_size": 61,
    "hidden_size": 40,
    "intermediate_size": 56,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SQUARE = {**SIZES, "hidden_size": 48}  # for those whose heads have to fill the width
EXPERTS = {"num_local_experts": 3, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
LATENT = SQUARE | {
    "q_lora_rank": 22,
    "kv_lora_rank": 14,
    "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 4,
    "head_dim": 4,
    "v_head_dim": 6,
    "num_key_value_heads": 6,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "moe_intermediate_size": 24,
    "first_k_dense_replace": 1,
}
GPT = {
    "vocab_size": 61,
    "n_positions": 64,
    "n_embd": 48,
    "n_layer": 2,
    "n_head": 6,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FALCON = {key: value for key, value in SQUARE.items() if key != "head_dim"} | {"num_kv_heads": 3}

# name: (model type, sizes)
TINY: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", SQUARE | {"attention_bias": True}),
    "mistral": ("mistral", SIZES),
    "mixtral": ("mixtral", SIZES | EXPERTS),
    "gpt2": ("gpt2", GPT),
    "gpt_neox": ("gpt_neox", SQUARE | {"rotary_pct": 0.5}),
    "phi": ("phi", SQUARE),
    "phi3": ("phi3", SQUARE),
    "falcon-7b": ("falcon", FALCON | {"multi_query": True, "new_decoder_architecture": False, "parallel_attn": True}),
    "falcon-40b": ("falcon", FALCON | {"new_decoder_architecture": True}),
    "falcon-rw": (
        "falcon",
        FALCON | {"num_kv_heads": 6, "multi_query": False, "alibi": True, "bias": True, "parallel_attn": False},
    ),
    "qwen2": ("qwen2", SQUARE),
    "qwen3": ("qwen3", SIZES),
    "qwen3_moe": ("qwen3_moe", SIZES | EXPERTS),
    "gemma": ("gemma", SIZES),
    "gemma2": ("gemma2", SQUARE | {"query_pre_attn_scalar": 19}),
    "gemma3": ("gemma3_text", SQUARE | {"layer_types": ["sliding_attention", "full_attention"]}),
    "gemma4": (
        "gemma4_text",
        SIZES
        | {"layer_types": ["sliding_attention", "full_attention"], "global_head_dim": 16, "attention_k_eq_v": True}
        | {"num_global_key_value_heads": 2, "num_kv_shared_layers": 0, "hidden_size_per_layer_input": 0},
    ),
    "cohere": ("cohere", SQUARE | {"use_qk_norm": True}),
    "cohere2": ("cohere2", SIZES | {"layer_types": ["sliding_attention", "full_attention"]}),
    "bert": ("bert", SQUARE),
    "roberta": ("roberta", SQUARE),
    "xlm-roberta": ("xlm-roberta", SQUARE),
    "electra": ("electra", SQUARE | {"embedding_size": 20}),
    "distilbert": ("distilbert", {"vocab_size": 61, "dim": 48, "hidden_dim": 56, "n_layers": 2, "n_heads": 6}),
    "modernbert": ("modernbert", SQUARE | {"global_attn_every_n_layers": 2}),
    "deberta": ("deberta", SQUARE | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]}),
    "albert": ("albert", SQUARE | {"embedding_size": 20}),
    "t5": ("t5", {"vocab_size": 61, "d_model": 40, "d_kv": 8, "d_ff": 56, "num_layers": 2, "num_heads": 6}),
    "bart": (
        "bart",
        {"vocab_size": 61, "d_model": 48, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 6}
        | {"decoder_attention_heads": 6, "encoder_ffn_dim": 56, "decoder_ffn_dim": 56, "max_position_embeddings": 64},
    ),
    "opt": ("opt", SQUARE | {"ffn_dim": 56, "word_embed_proj_dim": 48}),
    "starcoder2": ("starcoder2", SQUARE | {"use_bias": True}),
    "gpt_bigcode": ("gpt_bigcode", GPT | {"multi_query": True}),
    "olmo2": ("olmo2", SQUARE),
    "granite": ("granite", SQUARE | {"attention_multiplier": 0.3}),
    "stablelm": ("stablelm", SQUARE | {"qk_layernorm": False, "use_qkv_bias": True}),
    "persimmon": ("persimmon", SQUARE | {"qk_layernorm": True}),
    "smollm3": ("smollm3", SQUARE | {"no_rope_layers": [1, 0]}),
    "llama4": (
        "llama4_text",
        SIZES | EXPERTS | {"use_qk_norm": True, "no_rope_layers": [1, 0], "intermediate_size_mlp": 40},
    ),
    "gpt_oss": ("gpt_oss", SIZES | EXPERTS | {"layer_types": ["sliding_attention", "full_attention"]}),
    "hunyuan": ("hunyuan_v1_dense", SIZES),
    "deepseek_v2": ("deepseek_v2", LATENT | {"topk_method": "greedy"}),
    "deepseek_v2-lite": ("deepseek_v2", LATENT | {"topk_method": "greedy", "q_lora_rank": None}),
    "deepseek_v3": ("deepseek_v3", LATENT),
    "deepseek_v4": (
        "deepseek_v4",
        SIZES
        | {"q_lora_rank": 22, "o_groups": 2, "o_lora_rank": 7, "num_key_value_heads": 1, "partial_rotary_factor": 0.5}
        | {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
        | {"num_hash_layers": 0, "hc_mult": 2, "layer_types": ["sliding_attention"] * 2},
    ),
    "minicpm3": ("minicpm3", LATENT),
    "bloom": ("bloom", {"vocab_size": 61, "hidden_size": 48, "n_layer": 2, "n_head": 6}),
    "gptj": ("gptj", GPT | {"rotary_dim": 4}),
    "codegen": ("codegen", GPT | {"n_head": 8, "rotary_dim": 4}),
    "gpt_neo": (
        "gpt_neo",
        {
            "vocab_size": 61,
            "hidden_size": 48,
            "num_layers": 2,
            "num_heads": 6,
            "attention_types": [[["global", "local"], 1]],
        },
    ),
    "mpt": ("mpt", {"vocab_size": 61, "d_model": 48, "n_layers": 2, "n_heads": 6, "max_seq_len": 64}),
}

# Those that the quick tests take: every kind of layout once. The others wait for the slow ones.
QUICK = {
    "llama",
    "gpt2",
    "gpt_neox",
    "phi3",
    "falcon-7b",
    "falcon-40b",
    "falcon-rw",
    "qwen3",
    "gemma3",
    "gemma4",
    "cohere",
    "bert",
    "modernbert",
    "albert",
    "deberta",
    "t5",
    "opt",
    "gpt_bigcode",
    "olmo2",
    "hunyuan",
    "llama4",
    "deepseek_v3",
    "deepseek_v4",
    "bloom",
    "gptj",
    "codegen",
}
ARCHITECTURES = [pytest.param(name, marks=[] if name in QUICK else pytest.mark.slow) for name in TINY]
TWO_STEPS = {"deepseek_v2", "deepseek_v2-lite", "deepseek_v3", "deepseek_v4", "minicpm3"}


def tiny_config(name: str) -> PreTrainedConfig:
    kind, sizes = TINY[name]
    return AutoConfig.for_model(kind, **sizes)


def tiny_model(name: str, seed: int = 0) -> PreTrainedModel:
    """A random model in float64; gains and biases are random too, but for the biases of normalisations of q and k."""
    generator = torch.Generator().manual_seed(seed)
    model = AutoModel.from_config(
        tiny_config(name), dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )
    for path, parameter in model.named_parameters():
        parameter.requires_grad_(False)
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.3
        parameter.copy_(values * ("layernorm.bias" not in path))
    return model.eval()


@dataclass(frozen=True)
class Call:
    """What one attention module computed with, (batch, heads, length, size) each: keys as each query head gets them."""

    query: Tensor
    key: Tensor
    value: Tensor
    result: Tensor


class Seen(TorchFunctionMode):
    """What arrives at the attention of a running model with real weights, and what its modules get as input.

    An oracle of its own: it takes the two products around a softmax, or the arguments of PyTorch's kernel.
    """

    def __init__(self, model: PreTrainedModel, length: int) -> None:
        super().__init__()
        self.length = length
        self.calls: dict[str, Call] = {}
        self.inputs: dict[str, Tensor] = {}
        self.outputs: dict[str, Tensor] = {}
        self.running: list[str] = []
        self.scores: tuple[Tensor, Tensor] | None = None
        for name, module in model.named_modules():
            module.register_forward_pre_hook(lambda _, args, name=name: self._enter(name, args))
            module.register_forward_hook(lambda _, args, out: self._leave(out))

    def _leave(self, out: Any) -> None:
        name = self.running.pop()
        if isinstance(out, Tensor):
            self.outputs.setdefault(name, out.detach().clone())

    def _enter(self, name: str, args: tuple[Any, ...]) -> None:
        self.running.append(name)
        if args and isinstance(args[0], Tensor):
            self.inputs.setdefault(name, args[0].detach().clone())

    def _note(self, *tensors: Tensor) -> None:
        heads = tensors[0].numel() // (tensors[0].shape[-1] * self.length)  # of a batch of one
        four = [x.detach().clone().reshape(1, -1, *x.shape[-2:]) for x in tensors]
        self.calls.setdefault(self.running[-1], Call(*(x.repeat_interleave(heads // x.shape[1], 1) for x in four)))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is nn.functional.scaled_dot_product_attention:
            out = func(*args, **kwargs)
            self._note(*(*args, *kwargs.values())[:3], out)
            return out
        if getattr(func, "__name__", "") in ("matmul", "__matmul__", "bmm", "baddbmm"):
            left, right = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)][-2:]
            if min(left.dim(), right.dim()) > 2 and left.shape[-2] == right.shape[-1] == self.length:
                self.scores = left, right.mT
            elif left.shape[-2:] == (self.length, self.length) and self.scores:
                out = func(*args, **kwargs)
                self._note(*self.scores, right, out)
                self.scores = None
                return out
        return func(*args, **kwargs)


def seen(model: PreTrainedModel, length: int = 7) -> Seen:
    """Runs `model` on a few tokens."""
    tokens = torch.arange(3, 3 + length)[None]
    inputs = {"input_ids": tokens}
    if model.config.is_encoder_decoder:
        inputs["decoder_input_ids"] = tokens
    watch = Seen(model, length)
    with watch, torch.no_grad():
        model(**inputs, use_cache=False)
    return watch


def tie(model: PreTrainedModel, layer: HeadMap) -> None:
    """Overwrites W_Q of every query head with W_K of its key head: rows, bias and gains, at their places by `layer`."""
    parameters = dict(model.named_parameters())
    (query,), (key,) = layer.query.parts, layer.key.parts
    group = torch.tensor(layer.key_head)
    pairs = [(query.weight, key.weight, query.rows, key.rows)]
    pairs += [(q.name, k.name, q.places, k.places) for q, k in zip(query.biases, key.biases, strict=False)]
    for bias in query.biases[len(key.biases) :]:  # which only queries have
        parameters[bias.name].flatten()[bias.places] = 0
    if query.norm and key.norm and query.gain is not None and key.gain is not None:
        pairs.append((query.norm.weight, key.norm.weight, query.gain, key.gain))
    for to, of, to_rows, of_rows in pairs:
        if to and of:
            source, target = parameters[of], parameters[to]
            source, target = (x.flatten() if to != query.weight else x for x in (source, target))
            source = source.T if of == key.weight and key.transposed else source
            target = target.T if to == query.weight and query.transposed else target
            rows = of_rows.view(layer.key.heads, -1)[group].flatten()
            target[to_rows] = source[rows].clone()


class Hub:
    """A server on this machine that gives out one folder as a repository, as the Hub does, and can be made to fail."""

    commit = "0123456789abcdef0123456789abcdef01234567"

    def __init__(self, repository: str, folder: Path) -> None:
        self.repository, self.folder = repository, folder
        self.ranges: list[tuple[str, int, int]] = []
        self.whole: set[str] = set()
        self.paths: list[str] = []
        self.answers_ranges = True
        self.failures: list[int] = []
        self.stops_after: list[int] = []

    def stands_for_the_hub(self, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
        """Lets huggingface_hub ask this server, with a cache of its own, and without waiting between attempts."""
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(cache))
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{constants}.ENDPOINT", self.endpoint)
        template = f"{self.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("querykey.checkpoint.files.WAIT", 0.0)

    @property
    def sizes(self) -> dict[str, int]:
        return {path.name: path.stat().st_size for path in self.folder.iterdir()}

    @property
    def shards(self) -> set[str]:
        return {name for name in self.sizes if name.endswith(".safetensors")}

    def __enter__(self) -> Hub:
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.do_GET()

            def do_GET(self) -> None:
                hub.answer(self)

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = Thread(target=self.server.serve_forever, args=(0.01,))
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.thread.join()
        self.server.server_close()

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        path = request.path.partition("?")[0]
        if path in (f"/api/models/{self.repository}/revision/{r}" for r in ("main", self.commit)) or (
            path == f"/api/models/{self.repository}"
        ):
            files = [{"rfilename": name, "size": size} for name, size in self.sizes.items()]
            self._send(
                request, 200, json.dumps({"id": self.repository, "sha": self.commit, "siblings": files}).encode()
            )
        elif path.startswith(f"/{self.repository}/resolve/{self.commit}/"):
            self.paths.append(path)
            self._file(request, path.rpartition("/")[2])
        else:
            self._send(request, 404, b"{}")

    def _file(self, request: BaseHTTPRequestHandler, name: str) -> None:
        content = (self.folder / name).read_bytes()
        if name in self.shards and self.failures:
            return self._send(request, self.failures.pop(0), b"")
        if "Range" in request.headers and self.answers_ranges:
            first, last = request.headers["Range"].removeprefix("bytes=").split("-")
            start, stop = int(first), min(int(last) + 1, len(content))
            self.ranges.append((name, start, stop))
            return self._send(request, 206, content[start:stop])
        if request.command == "GET":
            self.whole.add(name)
        return self._send(request, 200, content)

    def _send(self, request: BaseHTTPRequestHandler, status: int, content: bytes) -> None:
        request.send_response(status)
        request.send_header("Content-Length", str(len(content)))
        request.send_header("ETag", f'"{zlib.crc32(content):x}"')
        request.send_header("X-Repo-Commit", self.commit)
        request.end_headers()
        if request.command == "GET":
            sent = self.stops_after.pop(0) if status == 206 and self.stops_after else len(content)
            request.wfile.write(content[:sent])
        request.close_connection = True


def rewrite(folder: Path, changes: dict[str, torch.Tensor | None]) -> None:
    """Replaces, adds or (None) drops tensors of a one-file checkpoint."""
    tensors = load_file(folder / "model.safetensors") | changes
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors", {"format": "pt"})


def reconfigure(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_equal(a: LayerWeights, b: LayerWeights) -> None:
    for field in ("W_Q", "b_Q", "W_K", "b_K", "W_V", "b_V", "W_O"):
        one, other = getattr(a, field), getattr(b, field)
        assert (one is None) == (other is None), field
        if one is not None:
            assert torch.equal(one, other), field
