"""Pages come as descriptors: a process that may not open so many files is told so at the door."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest
from daemon_bench import PAGE_BYTES, Daemon, StartDaemon
from hypothesis import given
from hypothesis import strategies as st

from gpupool.daemon import open_files
from gpupool.daemon.open_files import open_files_max

PAGES = 300  # more than come in one message
JOIN = f"""
import resource, sys
from pathlib import Path
from gpupool.daemon.client import DaemonSession
from gpupool.errors import UsageError
from gpupool.model import Model
path, soft, hard = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
try:
    session = DaemonSession(path, "a")
except UsageError as error:
    sys.exit(f"refused: {{error}}")
model = Model("a", session)
model.region("workspace", {PAGES * PAGE_BYTES})
with model.resident():
    print(len(model.regions("workspace")))
model.close()
"""


def join(daemon: Daemon, soft: int, hard: int) -> subprocess.CompletedProcess[str]:
    """A worker of all the pool, with those limits."""
    return subprocess.run(
        [sys.executable, "-c", JOIN, str(daemon.socket_path), str(soft), str(hard)],
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("soft", [40, 120, 200, 300])
def test_a_low_soft_limit_is_raised_before_pages_come(start_daemon: StartDaemon, soft: int) -> None:
    daemon = start_daemon(pages=PAGES)
    done = join(daemon, soft, 4096)
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    daemon.until_ledger(free=PAGES)


@pytest.mark.parametrize("hard", [120, 200, 300, PAGES + 64])
def test_a_low_hard_limit_is_an_error_at_the_door(start_daemon: StartDaemon, hard: int) -> None:
    daemon = start_daemon(pages=PAGES)
    done = join(daemon, 60, hard)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr.startswith(f"refused: this process may have {hard} files open, and with ")
    assert f"{PAGES} pages" in done.stderr and "ulimit -n" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert daemon.status().models == []  # the name is free
    assert join(daemon, 60, 4096).returncode == 0


UNLIMITED = resource.RLIM_INFINITY
LIMITS = st.one_of(st.just(UNLIMITED), st.integers(3, 1 << 21))


@given(soft=LIMITS, hard=LIMITS, wanted=st.integers(0, 1 << 21))
def test_a_limit_is_raised_as_far_as_is_wanted_and_allowed(
    soft: int, hard: int, wanted: int
) -> None:
    number = {UNLIMITED: 1 << 40}
    if number.get(soft, soft) > number.get(hard, hard):
        soft, hard = hard, soft
    asked: list[tuple[int, int]] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(open_files.resource, "getrlimit", lambda _: (soft, hard))
        patch.setattr(open_files.resource, "setrlimit", lambda _, limits: asked.append(limits))
        found = open_files_max(wanted)
    assert all(limits[1] == hard for limits in asked) and len(asked) <= 1
    in_force = asked[0][0] if asked else soft
    assert number.get(in_force, in_force) >= max(number.get(soft, soft), found)
    assert found >= min(wanted, number.get(hard, hard))
    if soft not in (UNLIMITED, found):
        assert found == min(wanted, number.get(hard, hard)) > soft


def test_what_is_open_already_counts() -> None:
    script = """
import os, resource, sys
from gpupool.daemon.open_files import check_room_for_pages
from gpupool.errors import UsageError
resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200))
check_room_for_pages(100)
held = [os.dup(0) for _ in range(60)]
try:
    check_room_for_pages(100)
except UsageError as error:
    sys.exit(str(error))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("this process may have 200 files open")
