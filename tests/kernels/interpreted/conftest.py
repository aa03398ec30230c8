"""Counts what was compared with the reference, for whoever started this process."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path

import pytest
import torch

CASES: Counter[str] = Counter()
torch.set_num_threads(1)


@pytest.fixture
def cases(request: pytest.FixtureRequest) -> Counter[str]:
    return CASES


def pytest_sessionfinish() -> None:
    if into := os.environ.get("GPUPOOL_KERNEL_CASES"):
        Path(into).write_text(json.dumps(CASES))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.write_line(f"compared with the reference: {dict(CASES)}")
