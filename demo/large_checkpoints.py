"""Llama checkpoints of millions to billions of parameters, in bfloat16, without a tokenizer.

Written by all processors, since what is asked of them waits for it: on two cores 45 million
parameters a second. As the small ones, a checkpoint is a function of its seed and size, but of
numpy's version too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from math import prod
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from demo.checkpoints import CheckpointSpec, Matrix, config, matrices

SHARD_BYTES = 2 << 30
VALUE_BYTES = 2  # of bfloat16
LARGE = 500_000_000  # parameters; smaller models have small heads and a small vocabulary


def large_spec(seed: int, parameters: float) -> CheckpointSpec:
    """The shape of a Llama of about so many parameters, at least 2.5 million.

    Proportions are those of Llama 3: four heads of queries to one of keys and values, 3.5 times the
    width inside, and a layer for each 128 of the width.
    """
    vocab, head_size = (32_000, 128) if parameters >= LARGE else (8_192, 32)
    step = 4 * head_size
    width = max(1, round((128 * parameters / 13) ** (1 / 3) / step)) * step
    while width > step and 2 * vocab * width + 2 * 13 * width**2 > parameters:
        width -= step
    layers = max(2, round((parameters - 2 * vocab * width) / (13 * width**2)))
    heads = width // head_size
    return CheckpointSpec(
        seed=seed,
        hidden_size=width,
        layers=layers,
        heads=heads,
        kv_heads=heads // 4,
        intermediate_size=7 * width // 2,
        vocab=vocab,
    )


def parameters_of(spec: CheckpointSpec) -> int:
    """How many it really has."""
    return sum(prod(each.shape) for each in matrices(spec))


def write_large(path: Path, spec: CheckpointSpec, *, shard_bytes: int = SHARD_BYTES) -> None:
    """Write its checkpoint into the directory `path`, in files of about `shard_bytes` each.

    Needs room for a file in memory.
    """
    path.mkdir(parents=True, exist_ok=True)
    numbered = list(enumerate(matrices(spec)))
    shards = list(_shards(numbered, shard_bytes))
    index: dict[str, str] = {}
    with ThreadPoolExecutor(os.cpu_count()) as executor:
        for at, shard in enumerate(shards):
            name = f"model-{at + 1:05}-of-{len(shards):05}.safetensors"
            values = executor.map(lambda one: _values(spec.seed, *one), shard)
            tensors = {each.name: tensor for (_, each), tensor in zip(shard, values, strict=True)}
            save_file(tensors, path / name, metadata={"format": "pt"})
            index |= dict.fromkeys(tensors, name)
    size_bytes = VALUE_BYTES * parameters_of(spec)
    written = {"metadata": {"total_size": size_bytes}, "weight_map": index}
    (path / "model.safetensors.index.json").write_text(json.dumps(written, indent=1) + "\n")
    # Last: a folder without one is no checkpoint.
    (path / "config.json").write_text(json.dumps(config(spec, "bfloat16"), indent=1) + "\n")


def _shards(
    numbered: list[tuple[int, Matrix]], shard_bytes: int
) -> Iterator[list[tuple[int, Matrix]]]:
    shard: list[tuple[int, Matrix]] = []
    filled_bytes = 0
    for number, each in numbered:
        if shard and filled_bytes + VALUE_BYTES * prod(each.shape) > shard_bytes:
            yield shard
            shard, filled_bytes = [], 0
        shard.append((number, each))
        filled_bytes += VALUE_BYTES * prod(each.shape)
    yield shard


def _values(seed: int, number: int, each: Matrix) -> torch.Tensor:
    if each.std is None:
        return torch.ones(each.shape, dtype=torch.bfloat16)
    # A stream for each tensor, so that it does not matter who is first. Lets the interpreter go.
    random = np.random.Generator(np.random.SFC64([seed, number]))
    values = random.standard_normal(each.shape, dtype=np.float32)
    values *= each.std
    return torch.from_numpy(values).to(torch.bfloat16)
