"""The kernels compiled ahead of time, for GPUs that are not here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import gpupool

pytest.importorskip("triton")
ROOT = Path(__file__).resolve().parents[2]


def compile_kernels(cache: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {
        "PYTHONPATH": str(Path(gpupool.__file__).parents[1]),
        "TRITON_CACHE_DIR": str(cache),
    }
    environment.pop("TRITON_INTERPRET", None)
    return subprocess.run(
        [sys.executable, "benchmarks/compile_kernels.py", "--json", "-", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=250,
    )


def test_no_spills_and_16_bytes_at_a_time(tmp_path: Path) -> None:
    done = compile_kernels(tmp_path)
    assert done.returncode == 0, done.stderr
    found = {(each["kernel"], each["architecture"]): each for each in json.loads(done.stdout)}
    kernels, architectures = ("gather", "scatter", "copy", "digest"), ("sm_80", "sm_90", "sm_100")
    assert found.keys() == {(k, a) for k in kernels for a in architectures}
    for (kernel, _), each in found.items():
        assert each["spills"] == each["stack_bytes"] == each["local_bytes"] == 0
        # Five programs of 128 threads fit on a processor beside each other.
        assert each["registers"] <= 96
        assert each["shared_bytes"] <= 1024
        assert each["reads"]["128"] >= 2
        if kernel != "digest":
            # A tile of 8 KiB is 4 accesses of each of 128 threads, and no other is of 64 bits.
            assert each["writes"]["128"] == each["reads"]["128"] == 4
            assert "64" not in each["writes"]


def test_spills_are_found(tmp_path: Path) -> None:
    done = compile_kernels(tmp_path, "--kernel", "digest", "--max-registers", "24")
    assert done.returncode == 1
    assert "digest on sm_80 spills" in done.stderr
    found = json.loads(done.stdout)
    assert [each["architecture"] for each in found] == ["sm_80", "sm_90", "sm_100"]
    assert all(each["spills"] > 0 < each["stack_bytes"] for each in found)
