"""An asynchronous engine, as on CUDA: two batches in flight, sampling deferred, empty steps."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")
_SCRIPT = Path(__file__).with_name("async_engine_run.py")


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(_SCRIPT), *arguments], capture_output=True, text=True, timeout=240
    )


def test_tokens_are_those_of_an_undisturbed_run() -> None:
    done = _run("12")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    swaps = [int(count) for count in re.findall(r"swaps=(\d+)", done.stdout)]
    assert len(swaps) == 12
    assert sum(swaps) >= 240


def test_state_that_is_not_in_blocks_is_kept_whole() -> None:
    done = _run("3", "whole")
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.parametrize("safeguard", ["synchronize", "written", "restored", "fresh", "runtime"])
def test_without_a_safeguard_it_fails(safeguard: str) -> None:
    done = _run("12", safeguard)
    assert done.returncode != 0
    assert "tokens differ" in done.stdout or done.returncode < 0, done.stderr[-2000:]
