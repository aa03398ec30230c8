"""The tool that fetches vLLM's sources, from a package index that has made-up ones."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
from pathlib import Path

TOOL = Path(__file__).resolve().parents[2] / "tools" / "vllm_python.py"
FILES = {
    "PKG-INFO": "Metadata-Version: 2.1\nName: vllm\nVersion: 0.26.0\n",
    # Their build wants what is not here; pip has unpacked them by then.
    "setup.py": "raise SystemExit('a compiler for GPUs is needed')\n",
    "vllm/version.py": "",
    "tests/utils.py": "made = 'up'\n",
}


def fetch(index: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TOOL), "--tests", "0.26.0", str(folder)],
        env=os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_tests_alone_are_fetched_once(tmp_path: Path) -> None:
    sources, index = tmp_path / "vllm-0.26.0", tmp_path / "index"
    index.mkdir()
    for name, text in FILES.items():
        (sources / name).parent.mkdir(parents=True, exist_ok=True)
        (sources / name).write_text(text)
    with tarfile.open(index / "vllm-0.26.0.tar.gz", "w:gz") as packed:
        packed.add(sources, "vllm-0.26.0")
    folder = tmp_path / "fetched"
    for _ in range(2):
        done = fetch(index, folder)
        assert done.returncode == 0, done.stdout + done.stderr
        assert [path.name for path in folder.iterdir()] == ["tests"]
        assert (folder / "tests" / "utils.py").read_text() == FILES["tests/utils.py"]
        (index / "vllm-0.26.0.tar.gz").unlink(missing_ok=True)  # the second time it is there


def test_what_cannot_be_fetched_is_said(tmp_path: Path) -> None:
    done = fetch(tmp_path, tmp_path / "fetched")
    assert done.returncode == 1 and "vLLM 0.26.0 could not be fetched" in done.stdout
    assert list((tmp_path / "fetched").iterdir()) == []
