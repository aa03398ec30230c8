"""An MPS daemon of the probe's own, where there is one to be started."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

from gpu_probe.driver import MissingError

CONTROL = "nvidia-cuda-mps-control"


@contextlib.contextmanager
def mps_daemon(wanted: bool) -> Iterator[dict[str, str]]:
    """The environment of its clients, for the length of the block. Raises MissingError."""
    if not wanted:
        yield {}
        return
    if shutil.which(CONTROL) is None:
        raise MissingError(f"not tried: there is no {CONTROL} on the PATH")
    with tempfile.TemporaryDirectory(prefix="gpupool-probe-mps-") as folder:
        own = {"CUDA_MPS_PIPE_DIRECTORY": folder, "CUDA_MPS_LOG_DIRECTORY": folder}
        environment = os.environ | own
        started = subprocess.run(
            [CONTROL, "-d"], env=environment, capture_output=True, text=True, timeout=20
        )
        if started.returncode != 0:
            said = (started.stderr or started.stdout).strip()
            raise MissingError(f"not tried: {CONTROL} could not be started: {said}")
        try:
            yield own
        finally:
            with contextlib.suppress(subprocess.TimeoutExpired):
                subprocess.run(
                    [CONTROL], input="quit -t 1\n", env=environment, text=True, timeout=20,
                    capture_output=True,
                )  # fmt: skip
