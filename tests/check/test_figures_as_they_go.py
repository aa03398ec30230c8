"""Programs that a GPU machine may cut off leave what they had reached, and say it is not all."""

from __future__ import annotations

import importlib
import itertools
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def figures_file(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("figures_file")


def test_no_reader_finds_half_of_it(
    figures_file: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    into = tmp_path / "found.json"
    figures_file.keep(str(into), {"swaps": 1}, complete=False)
    written = Path.write_text

    def cut_off(path: Path, text: str) -> int:
        written(path, text[: len(text) // 2])
        raise OSError("the disk is full")

    monkeypatch.setattr(Path, "write_text", cut_off)
    with pytest.raises(OSError, match="disk is full"):
        figures_file.keep(str(into), {"swaps": 2}, complete=True)
    assert json.loads(into.read_text()) == {"complete": False, "swaps": 1}


@pytest.mark.parametrize("path", [None, "-"])
def test_no_file_is_written_where_none_is_named(
    path: str | None, figures_file: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert figures_file.keep(path, {"a": 1}, complete=True) == {"complete": True, "a": 1}
    assert list(tmp_path.iterdir()) == []


def test_long_swaps_that_are_killed(tmp_path: Path) -> None:
    into = tmp_path / "long.json"
    script = ROOT / "benchmarks" / "long_swaps.py"
    running = subprocess.Popen(
        [
            *(sys.executable, str(script), "--device", "host", "--mib", "2"),
            *("--swaps", "20000", "--json", str(into)),
        ],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert running.stderr is not None
    line = running.stderr.readline()
    running.send_signal(signal.SIGKILL)
    running.communicate(timeout=60)
    assert line.startswith("1000 of 20000 swaps"), line
    found = json.loads(into.read_text())
    assert found["complete"] is False and found["swaps"] == 20000
    assert found["done"] % 1000 == 0 and found["done"] >= 1000
    assert len(found["samples"]) == found["done"] // found["sample_every"]
    assert "figures" not in found  # nothing is judged yet


def test_swaps_are_there_after_each_round(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    pytest.importorskip("torch")
    bench_swap = importlib.import_module("bench_swap")
    mib = 1 << 20
    found: list[dict[str, Any]] = list(bench_swap.measure("host", 64 * mib, 2 * mib, 3))
    assert [each["runs"] for each in found] == [1, 2, 3, 3, 3]
    for before, after in itertools.pairwise(found):
        assert before.keys() <= after.keys()
    assert "prefetched_visible_fraction" in found[-1].keys() - found[0].keys()
    assert found[0]["verify_off"]["copy_ms"] > 0
