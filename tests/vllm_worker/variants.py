"""Small checkpoints whose weights vLLM processes in other ways than a plain Llama's."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from demo.checkpoints import write_llama

WEIGHTS = "model.safetensors"


def write_plain(path: Path, *, seed: int = 1) -> Path:
    return write_llama(path, seed=seed, hidden_size=64, heads=2, kv_heads=1)


def write_tied(path: Path, *, with_copy: bool) -> Path:
    """Input and output embeddings are one; checkpoints may have a copy that vLLM finds equal."""
    write_plain(path, seed=3)
    tensors = load_file(path / WEIGHTS)
    tensors.pop("lm_head.weight")
    if with_copy:
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"]
    _rewrite(path, tensors, {"tie_word_embeddings": True})
    return path


def write_experts(path: Path) -> Path:
    """A Mixtral of four experts, whose weights vLLM fuses."""
    write_plain(path, seed=4)
    noise = np.random.RandomState(5)
    leaves = {"gate_proj": "w1", "up_proj": "w3", "down_proj": "w2"}
    tensors: dict[str, Any] = {}
    for name, tensor in load_file(path / WEIGHTS).items():
        layer, found, rest = name.partition(".mlp.")
        if not found:
            tensors[name] = tensor
            continue
        for expert in range(4):
            own = tensor + noise.standard_normal(tensor.shape) * tensor.std()
            leaf = leaves[rest.partition(".")[0]]
            tensors[f"{layer}.block_sparse_moe.experts.{expert}.{leaf}.weight"] = own
        gate = noise.standard_normal((4, 64))
        tensors[f"{layer}.block_sparse_moe.gate.weight"] = gate
    tensors = {name: tensor.astype(np.float32) for name, tensor in tensors.items()}
    config = {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}
    kind = {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral"}
    _rewrite(path, tensors, config | kind)
    return path


def write_quantized(path: Path) -> Path:
    """Of eight bits, by a method that cannot take up weights that are processed already."""
    write_plain(path, seed=6)
    tensors = load_file(path / WEIGHTS)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        scale = np.abs(tensors[name]).max(axis=1, keepdims=True) / 127
        tensors[name] = np.round(tensors[name] / scale).astype(np.int8)
        tensors[f"{name}_scale"] = scale.astype(np.float32)
    eight_bits = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**eight_bits, "strategy": "channel", "dynamic": False},
        "input_activations": {**eight_bits, "strategy": "token", "dynamic": True},
    }
    quantization = {
        "quant_method": "compressed-tensors",
        "format": "int-quantized",
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }
    _rewrite(path, tensors, {"quantization_config": quantization})
    return path


def write_linked(path: Path) -> Path:
    """As the Hugging Face cache has it: links to files that are named by their content."""
    blobs = path.parent / f"{path.name}-store" / "blobs"
    blobs.mkdir(parents=True)
    write_plain(path, seed=7)
    blob = blobs / ("ab" * 32)
    (path / WEIGHTS).rename(blob)
    (path / WEIGHTS).symlink_to(blob)
    return path


def _rewrite(path: Path, tensors: dict[str, Any], config: dict[str, Any]) -> None:
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    known = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(known | config))
