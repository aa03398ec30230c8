"""An MPS daemon of the probe's own, where there is one to be started."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from gpu_probe.driver import MissingError

CONTROL = "nvidia-cuda-mps-control"
START_S, END_S = 15.0, 10.0  # at most


def end_s(limit_s: float) -> float:
    """How much of a part's time is for ending the daemon."""
    return min(END_S, limit_s / 4)


@contextlib.contextmanager
def mps_daemon(limit_s: float) -> Iterator[dict[str, str]]:
    """The environment of its clients, for the length of the block. Raises MissingError, at once.

    Starting it takes no more than a quarter of the time, and ending it ``end_s``.
    """
    program = shutil.which(CONTROL)
    if program is None:
        raise MissingError(f"not tried: there is no {CONTROL} on the PATH")
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(
                # What is left of a daemon that does not end may still write there.
                tempfile.TemporaryDirectory(prefix="gpupool-probe-mps-", ignore_cleanup_errors=True)
            )
            own = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
            # Into a file: a daemon may keep the output that it was started with while it is there.
            said = Path(folder, "start.log")
            with said.open("wb") as output:
                starting = subprocess.Popen(
                    [program, "-d"],
                    env=os.environ | own,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            stack.callback(_kill, starting)
            stack.callback(_end, program, own, end_s(limit_s))
            code = starting.wait(timeout=min(START_S, limit_s / 4))
            if code != 0:
                why = said.read_text(errors="replace").strip()[-500:] or f"it ended with {code}"
                raise MissingError(f"not tried: {CONTROL} could not be started: {why}")
        except subprocess.TimeoutExpired as error:
            why = f"took more than {error.timeout:.0f} s to start"
            raise MissingError(f"not tried: {CONTROL} {why}") from error
        except OSError as error:
            raise MissingError(f"not tried: {CONTROL} could not be started: {error}") from error
        yield own


def _kill(starting: subprocess.Popen[bytes]) -> None:
    """What is left of the session that it was started in."""
    with contextlib.suppress(OSError):
        os.killpg(starting.pid, signal.SIGKILL)
    with contextlib.suppress(subprocess.TimeoutExpired):
        starting.wait(timeout=5)


def _end(program: str, own: dict[str, str], limit_s: float) -> None:
    """Ask it to; one that does not answer is left, with a folder that nobody else looks at."""
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(
            [program],
            input=b"quit -t 1\n",
            env=os.environ | own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=limit_s,
        )
