"""The type stub of the extension says what the extension has."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOOL, STUB = Path("tools", "stubs.py"), Path("src", "gpupool", "_core.pyi")

pytestmark = pytest.mark.skipif(
    sys.version_info[:2] != (3, 11), reason="the stub is that of Python 3.11"
)


def check(root: Path) -> subprocess.CompletedProcess[str]:
    """With the extension that is imported here, whatever tree it is asked about."""
    return subprocess.run(
        [sys.executable, root / TOOL, "--check"], capture_output=True, text=True, check=False
    )


def test_the_stub_is_up_to_date() -> None:
    done = check(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_stale_stub_is_a_failure(tmp_path: Path) -> None:
    for path in (TOOL, STUB, Path("pyproject.toml")):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / path, tmp_path / path)
    stub = tmp_path / STUB
    stub.write_text(stub.read_text().replace("def digest(", "def digests("))
    done = check(tmp_path)
    assert done.returncode == 1
    assert "-def digests(" in done.stdout and "+def digest(" in done.stdout
    assert "out of date: run `python tools/stubs.py`" in done.stdout
