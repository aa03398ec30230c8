"""``make gpu-check`` and ``make gpu-sanitize``: what they do before anything is checked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_check_command import STAND_IN

ROOT = Path(__file__).resolve().parents[2]
TARGETS = pytest.mark.parametrize("target", ["gpu-check", "gpu-sanitize"])
# Stands for cmake, ninja and the Python of the GPU machine, and says what it was asked.
FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >>"$SAID"
case "$*" in *"-r /dev/stdin") sed 's/^/asked for /' >>"$SAID"; exit "${PIP_ENDS_WITH:-0}";; esac
"""


def make(
    target: str, tools: Path, *names: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """What came of it, and what the tools of those names were asked."""
    tools.mkdir()
    # No other programs than these and those of the recipes, so that none of the machine is found.
    for name in ("sh", "awk", "find", "basename", "sed", "getconf", "make"):
        (tools / name).symlink_to(shutil.which(name) or pytest.fail(f"there is no {name}"))
    (tools / "python3.11").symlink_to(sys.executable)
    for name in (*names, "gpu-python"):
        (tools / name).write_text(FAKE)
        (tools / name).chmod(0o755)
    done = subprocess.run(
        [str(tools / "make"), target, "GPU_PYTHON=gpu-python", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env=os.environ | {"PATH": str(tools), "SAID": str(tools / "said")} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    said = tools / "said"
    return done, said.read_text().splitlines() if said.exists() else []


@TARGETS
def test_without_a_gpu_nothing_is_built(target: str, tmp_path: Path) -> None:
    done, asked = make(target, tmp_path / "bin", "cmake", "ninja", CUDA_VISIBLE_DEVICES="")
    assert done.returncode != 0 and asked == []
    sentences = [line for line in done.stderr.splitlines() if not line.startswith("make")]
    assert len(sentences) == 1 and sentences[0].startswith("there is no GPU to check, so nothing")


@TARGETS
@pytest.mark.parametrize("there", [(), ("cmake",), ("cmake", "ninja")])
def test_gpupool_is_installed_with_the_tools_that_are_there(
    target: str, there: tuple[str, ...], tmp_path: Path
) -> None:
    if not STAND_IN.exists():
        pytest.skip(f"no stand-in driver at {STAND_IN}: make test-cpp builds it")
    library = {"LD_LIBRARY_PATH": str(STAND_IN.parent), "COMMIT": "abc"}
    done, asked = make(target, tmp_path / "bin", *there, **library)
    requirements = {line.removeprefix("asked for ") for line in asked if "asked for" in line}
    missing = {"cmake", "ninja"} - set(there)
    assert requirements & {"cmake", "ninja"} == missing
    assert any(each.startswith("scikit-build-core") for each in requirements)
    assert any(each.startswith("msgspec") for each in requirements)
    if "cmake" in missing:  # which was not really installed
        assert done.returncode != 0 and not any("gpupool.check" in line for line in asked)
        return
    assert done.returncode == 0, done.stderr
    steps = [line for line in asked if "asked for" not in line]
    assert steps[0].startswith("gpu-python -m pip") and steps[0].endswith("install -r /dev/stdin")
    assert steps[1].startswith("cmake -S . -B build/cpp")
    assert steps[2].startswith("cmake --build build/cpp") and "gpu_programs" in steps[2]
    assert "--no-deps --no-build-isolation" in steps[3] and steps[3].endswith(" .")
    assert "-m gpupool.check --commit abc --build build/cpp" in steps[4]
    assert ("sanitizer" in steps[4]) == (target[4:] != "check")
    assert len(steps) == 5


def test_what_pip_cannot_get_is_said(tmp_path: Path) -> None:
    if not STAND_IN.exists():
        pytest.skip(f"no stand-in driver at {STAND_IN}: make test-cpp builds it")
    settings = {"LD_LIBRARY_PATH": str(STAND_IN.parent), "PIP_ENDS_WITH": "1"}
    done, asked = make("gpu-check", tmp_path / "bin", "cmake", "ninja", **settings)
    assert done.returncode != 0 and "name another Python with GPU_PYTHON=" in done.stderr
    assert not any(line.startswith("cmake") for line in asked)
