"""Small checkpoints of each scheme of quantized weights, with random values.

What a model says does not matter to the tests, only that it says the same wherever its weights lie.
So 4-bit weights are random words; the scales give them the size that the plain ones had.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from demo.checkpoints import write_llama

WEIGHTS = "model.safetensors"
GROUP = 32  # rows that share a scale
Tensors = dict[str, torch.Tensor]
_FP8_MAX = 448.0
_NIBBLE = 4.6  # the standard deviation of a random one


def write_quantized(path: Path, scheme: str, *, seed: int) -> Path:
    """A Llama with the linear weights of its layers in that scheme, a key of SCHEMES."""
    write_llama(path, seed=seed, hidden_size=64, heads=2, kv_heads=1)
    generator = torch.Generator().manual_seed(seed)
    quantize, config = SCHEMES[scheme]
    tensors: Tensors = {}
    for name, tensor in load_file(path / WEIGHTS).items():
        if name.endswith("_proj.weight"):
            layer = name.removesuffix(".weight")
            found = quantize(tensor, generator)
            tensors |= {f"{layer}.{leaf}": value.contiguous() for leaf, value in found.items()}
        else:
            tensors[name] = tensor
    save_file(tensors, path / WEIGHTS, metadata={"format": "pt"})
    known = json.loads((path / "config.json").read_text())
    known["quantization_config"] = config
    (path / "config.json").write_text(json.dumps(known))
    return path


def _fp8(weight: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    return (weight / scale).clamp(-_FP8_MAX, _FP8_MAX).to(torch.float8_e4m3fn)


def _fp8_per_channel(weight: torch.Tensor, _: torch.Generator) -> Tensors:
    scale = weight.abs().amax(dim=1, keepdim=True) / _FP8_MAX
    return {"weight": _fp8(weight, scale), "weight_scale": scale}


def _words(rows: int, columns: int, generator: torch.Generator) -> torch.Tensor:
    """Random words of 32 bits."""
    return torch.randint(-(2**31), 2**31, (rows, columns), generator=generator).to(torch.int32)


def _scales(weight: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One for each group of inputs and each output."""
    size = (weight.shape[1] // GROUP, weight.shape[0])
    return (0.5 + torch.rand(size, generator=generator)) * weight.std() / _NIBBLE


def _gptq(weight: torch.Tensor, generator: torch.Generator) -> Tensors:
    out, inputs = weight.shape
    return {
        "qweight": _words(inputs // 8, out, generator),
        "qzeros": torch.full((inputs // GROUP, out // 8), 0x77777777, dtype=torch.int32),
        "scales": _scales(weight, generator).half(),
        "g_idx": (torch.arange(inputs) // GROUP).to(torch.int32),
    }


def _awq(weight: torch.Tensor, generator: torch.Generator) -> Tensors:
    out, inputs = weight.shape
    return {
        "qweight": _words(inputs, out // 8, generator),
        "qzeros": _words(inputs // GROUP, out // 8, generator),
        "scales": _scales(weight, generator).half(),
    }


def _packed(weight: torch.Tensor, generator: torch.Generator) -> Tensors:
    out, inputs = weight.shape
    return {
        "weight_packed": _words(out, inputs // 8, generator),
        "weight_scale": _scales(weight, generator).t().bfloat16(),
        "weight_shape": torch.tensor([out, inputs]),
    }


def _compressed(
    form: str, weights: dict[str, Any], inputs: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A configuration of compressed-tensors."""
    group = {"targets": ["Linear"], "weights": {"symmetric": True, "dynamic": False, **weights}}
    if inputs is not None:
        group["input_activations"] = {"symmetric": True, **inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


_FLOAT8 = {"num_bits": 8, "type": "float"}
_TOKENS = {"strategy": "token", "dynamic": True}
_BY_GROUP = {"strategy": "group", "group_size": GROUP}

Quantize = Callable[[torch.Tensor, torch.Generator], Tensors]
SCHEMES: dict[str, tuple[Quantize, dict[str, Any]]] = {
    "fp8 by channel": (
        _fp8_per_channel,
        _compressed("float-quantized", {**_FLOAT8, "strategy": "channel"}, {**_FLOAT8, **_TOKENS}),
    ),
    "int4 by group": (
        _packed,
        _compressed("pack-quantized", {"num_bits": 4, "type": "int", **_BY_GROUP}),
    ),
    "gptq": (
        _gptq,
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
    ),
    "awq": (
        _awq,
        {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True},
    ),
}
