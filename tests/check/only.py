"""Runs a program of which gpupool's own code may import only some packages, whatever is installed.

    python only.py ALLOWED,... (-m MODULE | -c CODE | FILE) [ARGUMENTS]

What those packages import themselves is theirs.
"""

from __future__ import annotations

import builtins
import runpy
import sys
from pathlib import Path
from typing import Any

import gpupool

ROOT = Path(__file__).resolve().parents[2]
OURS = (
    str(Path(gpupool.__file__).parent),
    *(str(ROOT / folder) for folder in ("benchmarks", "demo", "tests")),
)


def refuse_all_but(allowed: set[str]) -> None:
    """Say of everything else that it is not there, as a program of ours imports it."""
    allowed = allowed | {"_pytest", *sys.stdlib_module_names, "gpupool", "benchmarks", "demo"}
    found = builtins.__import__

    def limited(name: str, globals: Any = None, *more: Any, **named: Any) -> Any:
        top, file = name.partition(".")[0], str((globals or {}).get("__file__") or "")
        if file and top not in allowed and (more[2:] or (0,))[0] == 0:
            inside = str(Path(file).resolve()).startswith(OURS)
            if inside and not is_beside(top):
                raise ModuleNotFoundError(f"{name} may not be imported here", name=name)
        return found(name, globals, *more, **named)

    builtins.__import__ = limited


def is_beside(name: str) -> bool:
    """A module or package of a folder that a program of ours is in."""
    folders = [Path(folder) for folder in sys.path if folder.startswith(OURS)]
    return any((each / name).exists() or (each / f"{name}.py").exists() for each in folders)


def main() -> None:
    """Forget what was imported of gpupool to find it, and run."""
    allowed, program, *arguments = sys.argv[1:]
    for name in [name for name in sys.modules if name.partition(".")[0] == "gpupool"]:
        if name != "gpupool._core":
            del sys.modules[name]
    refuse_all_but({*allowed.split(",")})
    if program == "-m":
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    elif program == "-c":
        exec(arguments[0], {})
    else:
        sys.argv = [program, *arguments]
        sys.path.insert(0, str(Path(program).resolve().parent))
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main()
