"""`benchmarks/bench_engine.py` with tiny engines: what it measures is there, and true.

Of times nothing is asked but that they are there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from random import Random
from statistics import median
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.engine_memory import MIB, EngineMemory

pytest.importorskip("vllm")

ROOT = Path(__file__).resolve().parents[2]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "benchmarks/bench_engine.py", "--device", "host", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=250,
    )


def test_what_it_measures(tmp_path: Path) -> None:
    done = bench(
        *("--parameters", "3e6", "--kv-mib", "16", "--starts", "0", "--runs", "1"),
        *("--block-steps", "4", "--folder", str(tmp_path), "--json", "-"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    assert found["complete"] is True
    swap, out = found["swap_in"], found["swap_out_clean"]
    # A pool that holds one engine: what came for the other is all but what was spared.
    assert found["footprint_bytes"] <= found["budget_bytes"] < 2 * found["footprint_bytes"]
    spare = found["budget_bytes"] - found["footprint_bytes"]
    assert swap["copied_bytes"] >= found["weights_bytes"] - spare
    assert out["copied_bytes"] == 0
    assert swap["total_ms"] >= swap["copy_ms"] > 0 and swap["map_ms"] > 0
    assert set(found["first_token_ms"]) == {"stock", "resident", "swapped", "prefetched"}
    assert all(took > 0 for took in found["first_token_ms"].values())
    step = found["decode_step"]
    assert min(step["stock_ms"], step["pooled_ms"], step["ratio"]) > 0
    assert "memcpy_1_threads" in found["plain_copy_gbps"]
    assert "sleep_mode" not in found and "cold_start_s" not in found
    assert "no sleep mode" in found["left_out"]["sleep_mode"]
    assert found["left_out"]["cold_start_s"] == "--starts 0"
    # Nor is there memory of a device, and it is not made out of that of processes.
    assert not {"device_memory_mib", "of_torch_mib"} & set(found)
    assert "processes" in found["left_out"]["device_memory_mib"]
    assert "left out: sleep_mode" in done.stderr and "swap-in" in done.stderr


class Gpu:
    """A device's memory, and who has how much of it."""

    def __init__(self, says: bool, others_mib: int) -> None:
        self.says, self.mib = says, others_mib

    def used_bytes(self) -> int | None:
        return self.mib * MIB if self.says else None


class OnGpu:
    """An engine's process that takes some of it, some for torch, and caches some more."""

    def __init__(self, gpu: Gpu, random: Random) -> None:
        self.gpu = gpu
        self.of_torch_mib, self.of_others_mib, self.cached_mib = (
            random.randrange(1000) for _ in range(3)
        )
        gpu.mib += self.of_torch_mib + self.of_others_mib + self.cached_mib

    def ask(self, what: str, *arguments: Any) -> int:
        assert (what, *arguments) == ("torch_bytes", 0)
        self.empty_cache()
        return self.of_torch_mib * MIB

    def empty_cache(self) -> None:
        """As it also does when it is asked to leave the pool, whoever is looked at then."""
        self.gpu.mib -= self.cached_mib
        self.cached_mib = 0

    def end(self) -> None:
        self.empty_cache()
        self.gpu.mib -= self.of_torch_mib + self.of_others_mib


@given(
    kinds=st.lists(st.sampled_from(["stock", "pooled", "pooled_from_image"]), max_size=9),
    says=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_what_engines_have_outside_the_pool(kinds: list[str], says: bool, seed: int) -> None:
    random = Random(seed)
    gpu = Gpu(says, random.randrange(50_000))
    memory = EngineMemory(gpu)  # type: ignore[arg-type]
    memory.begin()
    memory.take("stock", OnGpu(gpu, random))  # type: ignore[arg-type]
    memory.clear()
    engines: dict[str, list[OnGpu]] = {}
    for kind in kinds:
        memory.begin()
        engine = OnGpu(gpu, random)
        for others in engines.values():  # they leave the pool for it
            for other in others:
                other.empty_cache()
        memory.take(kind, engine)  # type: ignore[arg-type]
        engines.setdefault(kind, []).append(engine)
        if random.random() < 0.5:
            engine.end()
    expected = {
        "device_memory_mib": {
            kind: median(each.of_torch_mib + each.of_others_mib for each in of_kind)
            for kind, of_kind in engines.items()
        },
        "of_torch_mib": {
            kind: median(each.of_torch_mib for each in of_kind) for kind, of_kind in engines.items()
        },
    }
    assert memory.figures() == (expected if says and kinds else {})


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--graphs",), "are for --device cuda"),
        (("--prompt-tokens", "1000"), "give a smaller --prompt-tokens"),
    ],
)
def test_what_it_refuses(arguments: tuple[str, ...], said: str) -> None:
    done = bench(*arguments)
    assert done.returncode == 2 and said in " ".join(done.stderr.split())
