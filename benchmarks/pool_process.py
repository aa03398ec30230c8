"""A pool daemon in a process of its own, for benchmarks of what workers do."""

from __future__ import annotations

import contextlib
import ctypes
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from gpupool.daemon.queries import query_status
from gpupool.errors import DaemonUnavailableError, GpupoolError

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Daemon:
    """One that runs."""

    socket_path: Path
    pid: int


@contextlib.contextmanager
def daemon(device: str, budget_bytes: int, page_bytes: int, *options: str) -> Iterator[Daemon]:
    """One for the length of the block. Raises GpupoolError.

    ``options`` are more of ``gpupool daemon``'s.
    """
    with tempfile.TemporaryDirectory() as folder:  # which this user alone can enter
        path = Path(folder) / "daemon.sock"
        command = [sys.executable, "-m", "gpupool", "daemon", "--socket", str(path)]
        command += ["--device", device, "--budget-bytes", str(budget_bytes)]
        command += ["--page-bytes", str(page_bytes), *options]
        libc = ctypes.CDLL(None)

        def end_with_this_thread() -> None:
            # It kills a worker that fails it, which may be the one that started it.
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

        process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, preexec_fn=end_with_this_thread
        )
        try:
            while process.poll() is None:
                with contextlib.suppress(DaemonUnavailableError):
                    query_status(path)
                    break
                time.sleep(0.01)
            else:
                raise GpupoolError("the pool daemon did not start")
            yield Daemon(path, process.pid)
        finally:
            process.terminate()
            process.wait()
