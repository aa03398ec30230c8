"""Runs ``interpreted`` in processes of their own; see conftest.py."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import gpupool

pytest.importorskip("triton")
FOLDER = Path(__file__).parent / "interpreted"
FILES = sorted(FOLDER.glob("test_*.py"))
LEAST_MOVES, LEAST_DIGESTS = 2000, 250
TIMEOUT_S = 900


def start(file: Path, folder: Path) -> subprocess.Popen[str]:
    environment = os.environ | {
        "TRITON_INTERPRET": "1",
        "GPUPOOL_KERNEL_CASES": str(folder / f"{file.stem}.json"),
        "PYTHONPATH": str(Path(gpupool.__file__).parents[1]),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(file)],
        cwd=FOLDER.parents[2],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.timeout(TIMEOUT_S)
def test_all_pass_and_compare_enough(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Beside each other: most of the time is that of two of them."""
    children = {file: start(file, tmp_path) for file in FILES}
    try:
        for file, child in children.items():
            output, _ = child.communicate(timeout=TIMEOUT_S - 20)
            assert child.returncode == 0, f"{file.name}:\n{output}"
    finally:
        for child in children.values():
            child.kill()
            child.wait()
    cases: Counter[str] = Counter()
    for file in FILES:
        cases += Counter(json.loads((tmp_path / f"{file.stem}.json").read_text()))
    with capsys.disabled():
        print(f"\nkernels compared with their references {cases.total()} times: {dict(cases)}")
    moves = [cases[move] for move in ("gather", "scatter", "copy")]
    assert sum(moves) >= LEAST_MOVES
    assert min(moves) >= LEAST_MOVES // 4
    assert cases["digest"] >= LEAST_DIGESTS
    assert cases.total() == sum(moves) + cases["digest"]
