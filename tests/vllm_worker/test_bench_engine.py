"""`benchmarks/bench_engine.py` with tiny engines: what it measures is there, and true.

Of times nothing is asked but that they are there.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

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
    assert "left out: sleep_mode" in done.stderr and "swap-in" in done.stderr


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
