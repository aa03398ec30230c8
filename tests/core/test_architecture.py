"""Who may include and import whom, so that the rooms stay rooms."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CSRC, PACKAGE = ROOT / "csrc", ROOT / "src" / "gpupool"

# Each folder may include itself and those before it.
CPP_ROOMS = ["digest", "driver", "memory", "transfer", "image", "swap", "bindings"]

# Each room, which rooms it may import besides itself, and which packages that are not Python's own.
CORE = {"_core", "errors"}
LIBRARY = CORE | {
    "checks",
    "devices",
    "host_images",
    "session",
    "gate",
    "keeper",
    "residency",
    "sharing",
    "regions",
    "model",
    "pool",
    "arbiter",
    "host_budget",
    "schedule",
    "statistics",
    "trace",
}
PYTHON_ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "checks": ({"errors"}, set()),
    "cache_folder": (set(), set()),
    "schedule": (set(), set()),
    "simulate": ({"errors", "schedule"}, {"matplotlib", "msgspec", "numpy"}),
    "plan": ({"errors", "schedule", "simulate"}, {"matplotlib", "msgspec"}),
    "profile": ({"errors", "serve", "simulate"}, {"msgspec", "numpy"}),
    "session": (CORE | {"sharing"}, set()),
    "sharing": (CORE | {"host_images"}, {"blake3"}),
    "arbiter": (CORE | {"schedule", "sharing"}, set()),
    "host_budget": (
        {"arbiter", "checks", "errors", "host_images", "schedule", "sharing"},
        set(),
    ),
    "gate": (CORE | {"residency"}, set()),
    "statistics": (CORE, set()),
    "trace": (CORE | {"checks"}, set()),
    "host_images": (CORE, set()),
    "devices": (CORE | {"trace"}, set()),
    "interop": (CORE, {"cupy", "torch"}),
    "keeper": (set(), set()),
    "residency": (CORE | {"host_images", "keeper", "session", "sharing", "trace"}, set()),
    "figures": (CORE | {"residency", "session"}, set()),
    "regions": (CORE | {"checks", "gate", "host_images", "residency", "session"}, set()),
    "model": (
        CORE
        | {"checks", "figures", "gate", "interop", "keeper", "regions", "residency", "session"},
        set(),
    ),
    "scrubbing": (CORE, set()),
    "embedded": (
        CORE
        | {"arbiter", "host_budget", "host_images", "schedule", "scrubbing", "session"}
        | {"sharing", "statistics"},
        set(),
    ),
    "pool": (
        CORE
        | {"checks", "devices", "embedded", "host_budget", "model", "scrubbing", "session"}
        | {"statistics", "trace"},
        set(),
    ),
    "kv": (
        CORE | {"cache_folder", "host_images", "kernels", "model", "pool", "session"},
        {"msgspec", "numpy", "torch"},
    ),
    "kernels": (CORE, {"torch", "triton"}),
    "module_tensors": ({"errors"}, {"torch"}),
    "adopt": (CORE | {"model", "module_tensors"}, {"torch"}),
    "images": (
        CORE | {"adopt", "cache_folder", "model", "module_tensors"},
        {"msgspec", "torch"},
    ),
    "live": ({"arbiter", "schedule"}, set()),
    "daemon": (LIBRARY | {"", "live"}, {"msgspec"}),
    "gang": (CORE | {"daemon", "gate", "residency", "session"}, {"msgspec"}),
    "vllm": (
        LIBRARY | {"adopt", "daemon", "gang", "images", "kernels", "kv", "profile"},
        {"vllm", "torch", "msgspec", "huggingface_hub", "click"},
    ),
    "check": ({"", "devices", "errors", "pool"}, {"click"}),
    "serve": (
        {"errors", "daemon", "host_budget"},
        {"anyio", "httpx", "msgspec", "prometheus_client", "rich", "starlette", "uvicorn", "yaml"},
    ),
    "cli": (
        {"", "daemon", "errors", "host_budget", "images", "kv", "live", "plan", "profile"}
        | {"schedule", "serve", "simulate"},
        {"click", "msgspec"},
    ),
    "__main__": ({"cli"}, set()),
    "__init__": ({"_core", "model", "pool"}, set()),
}


def cpp_files() -> Iterator[Path]:
    yield from (path for path in CSRC.rglob("*") if path.suffix in (".cpp", ".cu", ".h"))


def python_files() -> Iterator[Path]:
    yield from PACKAGE.rglob("*.py")


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path) -> Iterator[str]:
    """Dotted names of all modules that a file imports, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                is_module = (ROOT / "src" / whole.replace(".", "/")).exists() or (
                    ROOT / "src" / (whole.replace(".", "/") + ".py")
                ).exists()
                yield whole if is_module else str(node.module)


@pytest.mark.parametrize("room", sorted({room_of(path) for path in python_files()}))
def test_a_room_imports_only_what_it_may(room: str) -> None:
    assert room in PYTHON_ROOMS, "a new room needs its line in the table above"
    rooms, packages = PYTHON_ROOMS[room]
    for path in python_files():
        if room_of(path) != room:
            continue
        for name in imports_of(path):
            top, _, rest = name.partition(".")
            if top == "gpupool":
                used = rest.partition(".")[0]
                assert used == room or used in rooms, f"{path} imports {name}"
            elif top not in sys.stdlib_module_names:
                assert top in packages, f"{path} imports {name}"


PURE = {"__future__", "collections", "dataclasses", "enum", "functools", "json", "math"}
PURE |= {"operator", "types", "typing"}


@pytest.mark.parametrize("room", ["live", "schedule"])
def test_what_decides_has_no_clock_no_chance_and_no_files(room: str) -> None:
    for path in python_files():
        if room_of(path) == room:
            tops = {name.partition(".")[0] for name in imports_of(path)}
            assert tops <= PURE | {"gpupool"}, path
            names = {n.id for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Name)}
            assert not names & {"open", "print", "input", "__import__"}, path


def test_the_table_has_no_cycle() -> None:
    done: set[str] = {"_core", ""}
    left = {room: rooms - {room} for room, (rooms, _) in PYTHON_ROOMS.items()}
    while left:
        ready = {room for room, rooms in left.items() if rooms <= done}
        assert ready, f"these import each other: {sorted(left)}"
        done |= ready
        for room in ready:
            del left[room]


def own_includes(text: str) -> list[str]:
    """Everything in quotes, and what of ours is in angle brackets: csrc/ is searched for both."""
    found = re.findall(
        r'^[ \t]*#[ \t]*include(?:_next)?[ \t]*(["<])([^">]+)[">]', text, re.MULTILINE
    )
    return [name for opening, name in found if opening == '"' or (CSRC / name).is_file()]


def test_an_include_is_seen_however_it_is_written() -> None:
    text = """
#include <vector>
#include <swap/swap.h>
  #  include "swap/placement.h"
#include"memory/memory.h"
"""
    assert own_includes(text) == ["swap/swap.h", "swap/placement.h", "memory/memory.h"]


def test_csrc_includes_only_upwards() -> None:
    for path in cpp_files():
        included = own_includes(path.read_text())
        assert path.parent != CSRC, f"{path} is in no room"
        allowed = CPP_ROOMS[: CPP_ROOMS.index(path.parent.name) + 1]
        for name in included:
            assert (CSRC / name).is_file(), f"{path} includes {name}"
            assert name.partition("/")[0] in allowed, f"{path} includes {name}"


def test_every_room_of_csrc_has_a_header_of_its_name() -> None:
    folders = {path.name for path in CSRC.iterdir() if path.is_dir()}
    assert folders == set(CPP_ROOMS)
    for folder in folders:
        assert (CSRC / folder / f"{folder}.h").is_file()


def test_only_the_bindings_know_python() -> None:
    for path in cpp_files():
        if path.parent.name != "bindings":
            assert not re.search(r"Python\.h|pybind11|PyObject", path.read_text()), path


def test_every_source_of_csrc_is_built() -> None:
    listed = (ROOT / "CMakeLists.txt").read_text()
    for path in cpp_files():
        if path.suffix == ".cpp":
            assert str(path.relative_to(ROOT)) in listed, path


def test_no_file_is_longer_than_300_lines() -> None:
    # What is generated says so, in digest_kernel.ptx.inc, and nobody reads it.
    kinds = {path.suffix for path in CSRC.rglob("*") if path.is_file()}
    assert kinds == {".cpp", ".cu", ".h", ".inc", ".md"}
    others = [
        path
        for folder in ("tests", "benchmarks", "demo", "tools")
        for path in (ROOT / folder).rglob("*")
        if path.suffix in (".py", ".cpp", ".h", ".cmake")
    ]
    assert {path.suffix for path in others} == {".py", ".cpp", ".h", ".cmake"}
    for path in [*cpp_files(), *python_files(), *others]:
        assert len(path.read_text().splitlines()) <= 300, path


def test_test_modules_have_names_of_their_own() -> None:
    # Their folders are no packages: two of one name would be one module to pytest.
    found: dict[str, Path] = {}
    for path in (ROOT / "tests").rglob("*.py"):
        if path.name != "conftest.py":
            assert path.name not in found, f"{path} and {found[path.name]}"
            found[path.name] = path
