"""Lay the Python of another vLLM over the compiled libraries of the CPU build that is installed.

    python tools/vllm_python.py VERSION FOLDER
    python tools/vllm_python.py --tests VERSION FOLDER      its own tests alone, of the sources

There is no CPU build of every version. What a version changes in Python can still be run, as long
as it asks the libraries for nothing new: FOLDER then has its package `vllm` with links to them, and
its own tests. The sources come from the package index, once, and are never part of this tree.

    VLLM_TARGET_DEVICE=cpu PYTHONPATH=FOLDER python ...
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path


def main() -> int:
    """Fetch what is not there yet; 1 if it cannot be had."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("version", metavar="VERSION", help="of vLLM")
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="which gets it")
    parser.add_argument("--tests", action="store_true", help="its own tests alone, for elsewhere")
    given = parser.parse_args()
    tests_alone, version, folder = given.tests, given.version, given.folder.resolve()
    installed = None if tests_alone else _installed()
    if installed is None and not tests_alone:
        print("vLLM's CPU build is not installed: run make install")
        return 1
    if not (folder / "tests").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            sources = fetched(version, Path(scratch))
            if sources is None:
                print(f"the sources of vLLM {version} could not be fetched: see pip's output above")
                return 1
            if not tests_alone:
                shutil.rmtree(folder / "vllm", ignore_errors=True)
                (sources / "vllm").rename(folder / "vllm")
            (sources / "tests").rename(folder / "tests")  # last: all is there then
    for library in installed.glob("*.so") if installed else ():
        link = folder / "vllm" / library.name
        link.unlink(missing_ok=True)
        link.symlink_to(library)
    return 0


def _installed() -> Path | None:
    """The folder of vLLM."""
    spec = find_spec("vllm")
    found = spec.submodule_search_locations if spec else None
    return Path(found[0]) if found else None


def fetched(version: str, scratch: Path) -> Path | None:
    """The unpacked sources, or None, having said why.

    pip asks the build of vLLM for its metadata, which may fail where that has not all it needs. By
    then it has unpacked the sources, and leaves them if told so.
    """
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download"]
    command += ["--no-deps", "--no-binary", "vllm", "--no-build-isolation", "--no-clean"]
    done = subprocess.run(
        [*command, "--dest", str(scratch), f"vllm=={version}"],
        env={**os.environ, "TMPDIR": str(scratch), "VLLM_TARGET_DEVICE": "empty"},
        capture_output=True,
        text=True,
    )
    for archive in scratch.glob("vllm-*.tar.gz"):
        with tarfile.open(archive) as packed:
            packed.extractall(scratch, filter="data")
    for path in scratch.glob("*/**/vllm/version.py"):
        return path.parents[1]
    print(done.stdout + done.stderr)
    return None


if __name__ == "__main__":
    sys.exit(main())
