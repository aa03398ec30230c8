"""A pool daemon in a process of its own, for benchmarks of what workers do."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from gpupool.daemon.client import query_status
from gpupool.errors import DaemonUnavailableError, GpupoolError


@contextlib.contextmanager
def daemon(device: str, budget_bytes: int, page_bytes: int) -> Iterator[Path]:
    """One for the length of the block, and the socket it listens on. Raises GpupoolError."""
    with tempfile.TemporaryDirectory() as folder:  # which this user alone can enter
        path = Path(folder) / "daemon.sock"
        command = [sys.executable, "-m", "gpupool", "daemon", "--socket", str(path)]
        command += ["--device", device, "--budget-bytes", str(budget_bytes)]
        command += ["--page-bytes", str(page_bytes)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                with contextlib.suppress(DaemonUnavailableError):
                    query_status(path)
                    break
                time.sleep(0.01)
            else:
                raise GpupoolError("the pool daemon did not start")
            yield path
        finally:
            process.terminate()
            process.wait()
