"""A pool daemon for tests: a process that only lives, and a status kept in files.

Run as a script it is the daemon process: `fake_pool.py SOCKET_PATH`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import msgspec

from gpupool.daemon.protocol import ModelStatus, Refusal, Status
from gpupool.errors import DaemonUnavailableError

MIB = 1 << 20


def model_status(name: str, pid: int, swap_in_s: list[float] | None = None) -> ModelStatus:
    swaps = swap_in_s or []
    return ModelStatus(
        name=name,
        pid=pid,
        state="out",
        stays="",
        footprint_bytes=96 * MIB,
        held_bytes=0,
        weights_bytes=64 * MIB,
        kv_cache_bytes=32 * MIB,
        swap_ins=len(swaps),
        swap_outs=len(swaps),
        swap_in_s=swaps,
        swap_in_copied_bytes=[0] * len(swaps),
        swap_in_copy_s=swaps,
        lease_wait_s=[0.0] * len(swaps),
    )


def make_status(models: list[ModelStatus], refusals: list[Refusal] | None = None) -> Status:
    return Status(
        version="0",
        device="host",
        page_bytes=2 * MIB,
        budget_bytes=192 * MIB,
        pages_free=95,
        pages_granted=1,
        pages_fenced=0,
        host_bytes=0,
        models=models,
        refusals=refusals or [],
    )


def query_status(socket_path: Path) -> Status:
    directory = socket_path.parent
    if not socket_path.exists():
        raise DaemonUnavailableError("the fake daemon does not run")
    models = []
    for path in sorted(directory.glob("*.worker")):
        pid = int(path.read_text())
        if Path(f"/proc/{pid}").exists():
            models.append(model_status(path.stem, pid))
    refusals = [
        msgspec.convert(json.loads(path.read_text()), Refusal)
        for path in sorted(directory.glob("*.refusal"))
    ]
    return make_status(models, refusals)


def main() -> None:
    socket_path = Path(sys.argv[1])
    socket_path.parent.mkdir(mode=0o700, exist_ok=True)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    draft = socket_path.with_suffix(".pid-draft")
    draft.write_text(str(os.getpid()))
    draft.rename(socket_path.with_suffix(".pid"))
    socket_path.touch()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    socket_path.unlink()


if __name__ == "__main__":
    main()
