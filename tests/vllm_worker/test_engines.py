"""Real vLLM on the CPU: engines that share a pool answer as they do alone, bit for bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")

from adapter import write_adapter

from demo.checkpoints import write_llama

_SCRIPT = Path(__file__).with_name("engines_run.py")
TURNS = int(os.environ.get("GPUPOOL_ENGINE_TURNS", "800"))  # `make soak` takes more of them
TIMEOUT_S = 200 + TURNS


def _answers(kind: str, directory: Path, seed: int, *more: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, str(_SCRIPT), kind, str(directory), str(seed), *more],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _both(directory: Path, seed: int, *more: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What engines answered alone and in a pool, which is the same."""
    alone = _answers("stock", directory, seed, *more)
    pooled = _answers("pooled", directory, seed, *more)
    different = [
        name for name, is_so in alone["answers"].items() if pooled["answers"][name] != is_so
    ]
    assert different == []
    assert pooled["answers"] == alone["answers"]
    assert pooled["counts"] == alone["counts"]
    assert pooled["sums"] == alone["sums"]
    return alone, pooled


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoints")
    for index in range(3):
        write_llama(
            directory / f"m{index}",
            seed=index + 1,
            hidden_size=96 if index == 1 else 64,
            heads=3 if index == 1 else 2,
            kv_heads=1,
        )
    for number in range(2):
        write_adapter(directory / f"adapter{number}", directory / "m2", seed=number)
    return directory


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_tokens_and_log_probabilities_are_equal_bit_for_bit(checkpoints: Path) -> None:
    seed = TURNS  # another traffic for each length
    alone, pooled = _both(checkpoints, seed, str(TURNS))
    print(f"seed={seed} swaps={pooled['swaps']} blocks saved={pooled['blocks saved']}")
    print(f"requests={len(alone['answers'])} {pooled['counts']}")
    print({what: pooled[what] for what in ("resumed", "chunks", "hits", "hits_away", "in flight")})
    assert pooled["refused"]  # a callable that touches a model without asking for its memory
    assert pooled["swaps"] >= TURNS * 5 // 8  # 500
    assert pooled["resumed"] > 0
    assert all(pooled["counts"][what] > 0 for what in ("aborted", "stopped", "through an adapter"))
    assert pooled["counts"]["several samples"] > 0
    assert pooled["hits_away"] > 100  # blocks of prefix hits that were on the host alone
    assert pooled["chunks"] > 50  # of prompts
    # Slots of adapters are in the pool, written to in steps, and copied where they have changed.
    assert pooled["counts"]["adapters exchanged in steps"] >= 10
    assert pooled["outside bytes"] == 0
    assert pooled["slots"]["slots"] > 0
    assert pooled["slots"]["in the pool"] == pooled["slots"]["slots"]
    assert pooled["copied"]["nothing"] == pooled["copied"]["the same"] == 0
    assert pooled["copied"]["exchanged"] > 0
    assert min(pooled["in flight"]) > 0  # aborts with copies under way, out and in


@pytest.mark.timeout(2 * TIMEOUT_S)
def test_two_batches_in_flight_change_no_token(checkpoints: Path) -> None:
    turns = TURNS // 4
    _, pooled = _both(checkpoints, turns, str(turns), "ahead")
    print(f"swaps={pooled['swaps']} {pooled['counts']}")
    assert pooled["swaps"] >= turns * 5 // 8
    # At so many swaps a batch had run whose tokens were handed out only once the engine was back.
    assert pooled["counts"]["batches in flight between turns"] > turns // 2
    assert pooled["resumed"] > 0 and pooled["chunks"] > 10 and pooled["hits_away"] > 30
    assert min(pooled["in flight"]) > 0
