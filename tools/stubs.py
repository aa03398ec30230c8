"""Write src/gpupool/_core.pyi, the type stub of the C++ extension, from the installed extension.

python tools/stubs.py           # write it anew
python tools/stubs.py --check   # say whether it is up to date; changes nothing
"""

from __future__ import annotations

import argparse
import difflib
import importlib
import re
import subprocess
import sys
import tempfile
from enum import Enum
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STUB = ROOT / "src" / "gpupool" / "_core.pyi"
PYTHON = (3, 11)  # the oldest that is supported; some types have other names in newer ones


def main() -> int:
    """Run it; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    check = parser.parse_args().check
    if sys.version_info[:2] != PYTHON:
        print(f"The stub is that of Python {PYTHON[0]}.{PYTHON[1]}: this one makes another.")
        return 0 if check else 1
    fresh = generate()
    if not check:
        STUB.write_text(fresh)
        return 0
    old = STUB.read_text() if STUB.exists() else ""
    difference = difflib.unified_diff(
        old.splitlines(), fresh.splitlines(), str(STUB.relative_to(ROOT)), "generated", lineterm=""
    )
    lines = list(difference)
    if lines:
        print("\n".join(lines))
        print("The stub is out of date: run `python tools/stubs.py` and commit what it writes.")
    return 1 if lines else 0


def generate() -> str:
    """The stub of the extension that this Python imports, formatted as the tree is."""
    with tempfile.TemporaryDirectory() as folder:
        run = [sys.executable, "-m", "pybind11_stubgen", "gpupool._core", "--output-dir", folder]
        # Invalid expressions and unresolved names would become Any.
        subprocess.run([*run, "--exit-code"], check=True, stdout=subprocess.DEVNULL)
        stub = Path(folder) / "gpupool" / "_core.pyi"
        stub.write_text(with_enum_members(stub.read_text()))
        settings = ["--config", str(ROOT / "pyproject.toml")]
        for step in (["check", "--fix-only", "--quiet"], ["format", "--quiet"]):
            subprocess.run([sys.executable, "-m", "ruff", *step, *settings, str(stub)], check=True)
        return stub.read_text()


def with_enum_members(text: str) -> str:
    """The enumerations as type checkers want them: members without annotation."""
    core = importlib.import_module("gpupool._core")
    for name, kind in vars(core).items():
        if isinstance(kind, type) and issubclass(kind, Enum):
            for member in kind:
                annotated = rf"^    {member.name}: typing\.ClassVar\[{name}\].*$"
                text = re.sub(annotated, f"    {member.name} = {member.value!r}", text, flags=re.M)
    return re.sub(
        r"^    @classmethod\n    def __new__\(cls, value\):.*\n(?: {8}.*\n)*", "", text, flags=re.M
    )


if __name__ == "__main__":
    sys.exit(main())
