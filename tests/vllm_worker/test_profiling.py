"""``gpupool profile`` with a real engine on the CPU; what it writes is what is simulated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

pytest.importorskip("vllm")

from variants import write_plain

from gpupool.cli import main
from gpupool.simulate.profile_file import read_profiles

LENGTHS, BATCHES = (16, 64, 200), (1, 2, 4)
ENGINE = ("--dtype", "float32", "--enforce-eager", "--max-model-len", "256", "--block-size", "32")
# For such a small model, as the other engines of these tests have it.
THREADS = {"OMP_NUM_THREADS": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


def profile(checkpoint: Path, output: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gpupool", "profile", str(checkpoint), "--device", "host"]
    command += ["--name", "tiny", "--gpu", "mine", "--kv-cache", "4MiB", "--page", "2MiB"]
    command += ["--runs", "2", "--steps", "4", "--output", str(output), "--json", "-"]
    command += ["--input-tokens", ",".join(map(str, LENGTHS))]
    command += ["--batch-sizes", ",".join(map(str, (*BATCHES, 1000)))]
    return subprocess.run(
        [*command, "--", *ENGINE, *options],
        capture_output=True,
        text=True,
        timeout=200,
        env=os.environ | THREADS | {"XDG_STATE_HOME": str(output.parent / "state")},
    )


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_plain(tmp_path_factory.mktemp("profiled") / "checkpoint")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile") / "profiles.csv"


@pytest.fixture(scope="module")
def measured(checkpoint: Path, output: Path) -> dict[str, Any]:
    # One batch is longer than a step: its prompts are prefilled in two.
    done = profile(checkpoint, output, "--max-num-batched-tokens", "512")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_every_batch_is_measured_and_what_cannot_be_is_named(measured: dict[str, Any]) -> None:
    points = [batch["point"] for batch in measured["batches"]]
    assert [(point["input_tokens"], point["batch_size"]) for point in points] == [
        (n, b) for n in LENGTHS for b in BATCHES
    ]
    assert [point["prefill_steps"] for point in points] == [1] * 8 + [2]
    assert all(point["prefill_s"] > 0 and point["decode_step_s"] > 0 for point in points)
    assert [one["batch_size"] for one in measured["left_out"]] == [1000] * 3
    assert measured["batches"][-1]["prefill"]["left_out"] == "several steps"


def test_switches_copy_what_was_not_kept(measured: dict[str, Any]) -> None:
    checkpoint = measured["checkpoint"]
    copied = [one["copied_bytes"] for one in measured["switches"]]
    assert copied == sorted(copied, reverse=True)
    assert copied[0] == checkpoint["weights_bytes"] > copied[-1]
    assert checkpoint["kv_bytes_per_token"] == 2 * 2 * 32 * 4  # 2 layers, a head of 32, float32
    assert checkpoint["context_tokens_max"] == 256
    switch = checkpoint["switch"]
    assert switch["fixed_s"] + switch["s_per_byte"] * checkpoint["weights_bytes"] > 0
    for one in measured["switches"]:
        assert 0 < one["map_s"] + one["copy_s"] <= one["in_s"]  # of two runs medians are means
        assert one["out_s"] > 0


def test_the_file_says_the_same_and_is_simulated(measured: dict[str, Any], output: Path) -> None:
    profiles = read_profiles(output)
    found = profiles.checkpoints["tiny", "mine"]
    assert found.weights_bytes == measured["checkpoint"]["weights_bytes"]
    assert found.switch is not None
    assert found.switch.s_per_byte == measured["checkpoint"]["switch"]["s_per_byte"]
    assert list(profiles.fits["tiny", "mine"].step_s) == measured["fit"]["step_s"]
    arguments = ("--models", "3", "--devices", "1", "--gpu", "mine", "--profiles", str(output))
    done = CliRunner().invoke(main, ["simulate", *arguments, "--json", "-"], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["finished"] == result["requests"] > 0
    assert result["switching_s"] >= found.switch.fixed_s


def test_an_engine_that_cannot_start_says_why_and_leaves_the_file(
    checkpoint: Path, measured: dict[str, Any], output: Path
) -> None:
    before = output.read_text()
    done = profile(checkpoint, output, "--no-such-option")
    assert done.returncode != 0
    assert "unrecognized arguments: --no-such-option" in done.stderr
    assert "Traceback" not in done.stderr
    kept = Path(done.stderr.partition("its log is ")[2].partition(")")[0])
    assert "--no-such-option" in kept.read_text()
    assert output.read_text() == before
