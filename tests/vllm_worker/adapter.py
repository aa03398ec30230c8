"""A LoRA adapter with random weights, as PEFT writes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

RANK = 4


def write_adapter(directory: Path, checkpoint: Path, seed: int) -> Path:
    """For the query and output projections of every layer of a Llama checkpoint."""
    config = json.loads((checkpoint / "config.json").read_text())
    hidden, values = config["hidden_size"], np.random.default_rng(seed)
    tensors: dict[str, np.ndarray] = {}
    for layer in range(config["num_hidden_layers"]):
        for name in ("q_proj", "o_proj"):
            at = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for part, shape in (("A", (RANK, hidden)), ("B", (hidden, RANK))):
                weight = values.standard_normal(shape).astype(np.float32)
                tensors[f"{at}.lora_{part}.weight"] = weight
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": RANK,
        "lora_alpha": 8,
        "bias": "none",
        "target_modules": ["q_proj", "o_proj"],
    }
    (directory / "adapter_config.json").write_text(json.dumps(described))
    return directory
