"""The probe of GPUs as a command, on the stand-in driver that the C++ tests are built with."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from probe_command import ROOT, Done, probe


@pytest.fixture(scope="session")
def stand_in() -> Path:
    built = ROOT / "build/cpp/tests/cpp/standin/whole/libcuda.so.1"
    library = Path(os.environ.get("GPUPOOL_STANDIN_LIBRARY", built))
    if not library.exists():
        pytest.skip(f"no stand-in driver at {library}: make test-cpp builds it")
    return library


@pytest.fixture(scope="session")
def asked(stand_in: Path) -> Callable[..., Done]:
    def ask(*arguments: str, **environment: str) -> Done:
        settings = ("--library", str(stand_in), "--mib", "64", "--json", "-")
        return probe(*settings, *arguments, **environment)

    return ask


@pytest.fixture(scope="session")
def whole(asked: Callable[..., Done]) -> Done:
    """All parts, once."""
    return asked("--seconds", "0.02")
