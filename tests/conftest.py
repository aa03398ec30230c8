"""Time budgets: each group of tests has one, and a run says how long it took and which it is over.

And what Hypothesis draws is the same in every run.
"""

from __future__ import annotations

import contextlib
import os
from collections import defaultdict
from pathlib import Path

import pytest

with contextlib.suppress(ModuleNotFoundError):  # what runs on a GPU machine does without
    from hypothesis import settings

    settings.register_profile("suite", derandomize=True, deadline=None, database=None)
    settings.load_profile("suite")

# Minutes on two slow cores with nothing else to do, more than what is needed. Tests that take
# a group further than this belong in a target of their own (see `make help`). No run fails for it,
# since other work on the machine can take a group there too.
BUDGETS_MIN = {
    "check": 4,
    "core": 4,
    "daemon": 6,
    "demo": 1,
    "end_to_end": 6,
    "gang": 2,
    "gpu": 10,
    "images": 2,
    "kernels": 6,
    "kv": 3,
    "parking": 3,
    "plan": 3,
    "probe": 3,
    "profile": 3,
    "serve": 3,
    "sharing": 3,
    "simulate": 4,
    "vllm_worker": 9,
}
TESTS = Path(__file__).parent


class Budgets:
    """Adds up what each group takes."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._taken_s: defaultdict[str, float] = defaultdict(float)

    @pytest.hookimpl
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        path = (self._root / report.nodeid.partition("::")[0]).resolve()
        self._taken_s[path.relative_to(TESTS).parts[0]] += report.duration

    @pytest.hookimpl
    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for group, taken_s in sorted(self._taken_s.items()):
            over = "  OVER ITS BUDGET" if group in self._over() else ""
            terminalreporter.write_line(
                f"{group:<12} {taken_s:6.0f} s of {60 * BUDGETS_MIN[group]:5}{over}"
            )

    def _over(self) -> list[str]:
        return [g for g, taken_s in self._taken_s.items() if taken_s > 60 * BUDGETS_MIN[g]]


def pytest_configure(config: pytest.Config) -> None:
    if "GPUPOOL_ENGINE_TURNS" not in os.environ:  # `make soak` takes as long as it takes
        config.pluginmanager.register(Budgets(config.rootpath), "gpupool-budgets")
