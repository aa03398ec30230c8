"""Real vLLM on the CPU: quantized weights and KV caches answer in a pool as they do alone."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

import torch
from quantized import SCHEMES, write_quantized

from demo.checkpoints import write_llama

_SCRIPT = Path(__file__).with_name("quantized_run.py")
TIMEOUT_S = 240
TOKENS = 24
NAMES = (*SCHEMES, "fp8 as it is loaded", "fp8 kv cache")
#: What vLLM's CPU build has in its library for AVX-512 alone, and refuses without.
NEED_AVX512 = {"int4 by group", "gptq", "awq", "fp8 kv cache"}
HAS_AVX512 = torch.cpu._is_avx512_supported()  # as vLLM asks


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """All engines, in one process, so that vLLM is imported once."""
    base = tmp_path_factory.mktemp("checkpoints")
    models: dict[str, dict[str, Any]] = {}
    for number, scheme in enumerate(SCHEMES):
        path = write_quantized(base / scheme.replace(" ", "-"), scheme, seed=number)
        models[scheme] = {"model": str(path)}
    plain = write_llama(base / "plain", seed=9, hidden_size=64, heads=2, kv_heads=1)
    models["fp8 as it is loaded"] = {"model": str(plain), "quantization": "fp8_per_channel"}
    models["fp8 kv cache"] = {"model": str(plain), "kv_cache_dtype": "fp8"}
    assert sorted(models) == sorted(NAMES)
    if not HAS_AVX512:
        models = {name: given for name, given in models.items() if name not in NEED_AVX512}
    done = subprocess.run(
        [sys.executable, str(_SCRIPT)],
        input=json.dumps(models),
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    answered: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answered


@pytest.mark.timeout(TIMEOUT_S + 20)
@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_log_probabilities_are_equal_bit_for_bit(
    found: dict[str, Any], name: str
) -> None:
    if name in NEED_AVX512 and not HAS_AVX512:
        pytest.skip("vLLM has no kernel for it on a CPU without AVX-512")
    assert found["pooled"][name] == found["alone"][name]
    assert found["swap_ins"][name] >= TOKENS  # between any two tokens
    # What the pool does not move it would not free either.
    assert found["outside"][name] == []
    assert found["reloaded"][name] == found["alone"][name]
    assert found["outside after"][name] == []


def test_models_differ(found: dict[str, Any]) -> None:
    answers = [json.dumps(answer) for answer in found["alone"].values()]
    assert len(set(answers)) == len(answers)
