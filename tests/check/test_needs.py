"""What is run on a machine with a GPU imports no package but those that its part asks for."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gpupool.check.parts import NEEDS, PARTS, SUBJECTS, Places, planned

ROOT = Path(__file__).resolve().parents[2]
ONLY = Path(__file__).with_name("only.py")
DAEMON = ("-m", "gpupool", "daemon", "--help")
#: What a part's programs start.
STARTED = {
    "benchmarks": [DAEMON],
    "long_swaps": [DAEMON],
    "large_swaps": [DAEMON],
    "engine_swaps": [
        DAEMON,
        ("-c", "import benchmarks.engine_child, gpupool.vllm.worker, gpupool.vllm.plugin"),
    ],
}


def started(allowed: tuple[str, ...], *arguments: str) -> subprocess.CompletedProcess[str]:
    """A program that may import those packages, until it ends, as a part runs it."""
    paths = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    return subprocess.run(
        [sys.executable, str(ONLY), ",".join(allowed), *arguments],
        cwd=ROOT,
        env=os.environ
        | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "GPUPOOL_REQUIRE_GPU": "0", "PYTHONPATH": paths},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
    )


def programs(name: str, folder: Path) -> list[tuple[str, ...]]:
    """Of a part, those in Python, as they are asked for help, or which tests there are."""
    for subject in SUBJECTS:
        path = folder / "tests" / "cpp" / f"{subject}_test"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (part,) = planned((name,), Places(ROOT, folder, folder, vllm_sources=folder))
    found: list[tuple[str, ...]] = []
    for command in part.commands:
        if command[1:3] == ("-m", "pytest"):
            tests = [word for word in command if word.startswith("tests/")]
            found.append(("-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *tests))
        elif command[0] == sys.executable and command[1] == "-m":
            found.append(("-m", command[2], "--help"))
        elif command[0] == sys.executable:
            found.append((command[1], "--help"))
    return found


@pytest.mark.parametrize("name", sorted({*PARTS} - {"conformance", "sanitizer"}))
def test_a_part_needs_what_it_says(name: str, tmp_path: Path) -> None:
    needs = NEEDS.get(name, ())
    if absent := [each for each in needs if importlib.util.find_spec(each) is None]:
        pytest.skip(f"not installed: {', '.join(absent)}")
    asked = programs(name, tmp_path)
    assert asked
    for arguments in (*asked, *STARTED.get(name, ())):
        done = started(needs, *arguments)
        assert done.returncode == 0, f"{arguments}: {(done.stdout + done.stderr)[-2000:]}"


@pytest.mark.parametrize(("name", "hidden"), [("benchmarks", "numpy"), ("core", "hypothesis")])
def test_a_package_that_is_not_named_is_found_out(name: str, hidden: str, tmp_path: Path) -> None:
    allowed = tuple(each for each in NEEDS[name] if each != hidden)
    told = [started(allowed, *each) for each in programs(name, tmp_path)]
    assert any(hidden in done.stdout + done.stderr for done in told if done.returncode != 0)


def test_a_part_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    hidden = {"msgspec", "torch"}
    monkeypatch.setattr(
        "gpupool.check.parts.find_spec", lambda name: None if name in hidden else find_spec(name)
    )
    for part in planned(tuple(PARTS), Places(ROOT, tmp_path, tmp_path)):
        absent = [each for each in NEEDS.get(part.name, ()) if each in hidden]
        if absent and "no C++ tests" not in part.skip:
            assert part.skip.startswith("not installed: ") and part.commands == ()
            assert set(absent) <= {*part.skip.removeprefix("not installed: ").split(", ")}
