"""On a GPU a daemon has all of its budget before anybody can reach it, or says why it has not."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from on_stand_in import OUT_OF_MEMORY, PAGE_BYTES, PAGES, UNKNOWN

import gpupool
from gpupool._core import PagePool
from gpupool.daemon import budget
from gpupool.daemon.queries import query_status

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("on_stand_in.py")


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """Of a process that finds the stand-in for the driver."""
    built = ROOT / "build/cpp/tests/cpp/standin/whole/libcuda.so.1"
    library = Path(os.environ.get("GPUPOOL_STANDIN_LIBRARY", built))
    if not library.exists():
        pytest.skip(f"no stand-in driver at {library}: make test-cpp builds it")
    own = str(Path(gpupool.__file__).parents[1])
    return os.environ | {"LD_LIBRARY_PATH": str(library.parent), "PYTHONPATH": own}


def words(
    socket_path: Path, fail: tuple[int, int] = (0, 0), hit: tuple[int, int] = (0, 0)
) -> list[str]:
    numbers = [str(number) for number in (*fail, *hit)]
    options = ["--device", "cuda", "--budget-bytes", str(PAGES * PAGE_BYTES)]
    options += ["--page-bytes", str(PAGE_BYTES), "--socket", str(socket_path)]
    return [sys.executable, str(SCRIPT), "command", *numbers, *options]


def ended(command: list[str], environment: dict[str, str]) -> Any:
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_a_page_that_cannot_be_made_leaves_nothing(
    environment: dict[str, str], directory: Path
) -> None:
    done = ended([sys.executable, str(SCRIPT), "each", str(directory)], environment)
    assert done.returncode == 0, done.stderr
    # Of each number of pages, at each of them, by each of two answers.
    assert int(done.stdout) == 2 * sum(range(1, PAGES + 1))


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (OUT_OF_MEMORY, f"cuda has no room for a budget of {PAGES * PAGE_BYTES} bytes: "),
        (UNKNOWN, "page_create failed: "),
    ],
)
def test_the_command_says_why_in_one_line(
    environment: dict[str, str], directory: Path, status: int, said: str
) -> None:
    done = ended(words(directory / "daemon.sock", fail=(3, status)), environment)
    assert done.returncode == 1
    assert done.stderr.startswith(f"Error: {said}") and done.stderr.count("\n") == 1
    assert json.loads(done.stdout) == {"pages": 0, "asked": 2, "calls": 3}
    assert list(directory.iterdir()) == []


def test_a_signal_while_pages_are_made(environment: dict[str, str], directory: Path) -> None:
    path = directory / "daemon.sock"
    done = ended(words(path, hit=(2, signal.SIGTERM)), environment)
    assert done.returncode == -signal.SIGTERM and done.stdout == ""
    done = ended(words(path, hit=(2, signal.SIGINT)), environment)
    assert done.returncode == 1 and "Aborted!" in done.stderr
    assert json.loads(done.stdout) == {"pages": 0, "asked": 2, "calls": 2}
    assert list(directory.iterdir()) == []


def test_who_reaches_it_finds_all_pages(environment: dict[str, str], directory: Path) -> None:
    path = directory / "daemon.sock"
    process = subprocess.Popen(
        words(path), env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout
        assert process.stdout.readline() == f"gpupool daemon ready: {path}\n"
        assert query_status(path).pages_free == PAGES
        # A second one leaves the GPU alone, of which it could have nothing.
        second = ended(words(path), environment)
        assert second.returncode == 1
        assert f"a daemon is listening on {path} already" in second.stderr
        assert json.loads(second.stdout)["calls"] == 0
        assert query_status(path).pages_free == PAGES
    finally:
        process.terminate()
        left, said = process.communicate()
    assert process.returncode == 0
    assert re.fullmatch(rf"gpupool: {PAGES} pages of 2 MiB created on cuda in \d+\.\d s\n", said)
    assert json.loads(left)["calls"] == PAGES
    assert list(directory.iterdir()) == []


def test_ordinary_memory_is_taken_as_it_is_used() -> None:
    pages = budget.pages_of("host", PAGES * PAGE_BYTES, PAGE_BYTES)
    assert isinstance(pages, PagePool)
    assert (pages.created_pages, pages.total_pages) == (0, PAGES)
    pages.acquire(1, 2)
    assert pages.created_pages == 2
