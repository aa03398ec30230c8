"""The daemon that benchmarks start does not outlive them, however they end."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
KILLED = """
import os, sys
from benchmarks.pool_process import daemon
with daemon("host", 4 << 20, 2 << 20) as pool:
    print(pool.pid, flush=True)
    sys.stdin.readline()
    os.kill(os.getpid(), 9)
"""


def test_it_ends_with_who_started_it() -> None:
    starter = subprocess.Popen(
        [sys.executable, "-c", KILLED],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert starter.stdin is not None and starter.stdout is not None
    daemon = os.pidfd_open(int(starter.stdout.readline()))
    try:
        starter.stdin.write("\n")
        starter.stdin.close()
        assert starter.wait(60) == -signal.SIGKILL
        assert select.select([daemon], [], [], 60)[0], "the daemon goes on"
    finally:
        os.close(daemon)
        starter.stdout.close()
