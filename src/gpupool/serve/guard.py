"""Runs one server and sees to it that nothing of it is left when the supervisor is gone.

A script of its own, standard library only, started by path. It stands between the supervisor
and the server because only a process that outlives the supervisor can end what a `kill -9` of
the supervisor would leave, and because a server is a tree: an engine core may outlive its API
server, or the reverse.

    stdin    the lifeline: a pipe whose other end only the supervisor holds; at its end
             everything is killed at once
    stdout   one line: the server's process id, or `error: ...` when it cannot be executed
    SIGTERM  is passed on to the server alone, which may then end by itself

When the server ends, for whatever reason, every descendant is killed, what they left in
/dev/shm is removed, and the guard exits with the server's status (128 + n for signal n).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
# Python's resource tracker removes the shared memory of a killed process, and then ends itself.
_TRACKER = b"multiprocessing.resource_tracker"
_TRACKER_GRACE_S = 2.0
_SAMPLE_PERIOD_MS = 5_000
_SHARED_MEMORY = "/dev/shm/"  # noqa: S108


def main(command: list[str]) -> int:
    """Runs `command` to its end, as described above."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGTERM, lambda *_: None)
    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    guard_pid = os.getpid()

    def bind_to_guard() -> None:
        for changed in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(changed, signal.SIG_DFL)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != guard_pid:  # it died before the line above
            os._exit(1)

    started = time.time()
    try:
        server = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=2,
            start_new_session=True,
            preexec_fn=bind_to_guard,
        )
    except (OSError, subprocess.SubprocessError) as error:
        os.write(1, f"error: {error}\n".encode())
        return 127
    os.write(1, f"{server.pid}\n".encode())
    os.close(1)
    shared: set[str] = set()
    _wait_for_end(server, wake_read, shared)
    _end_all(server, started, shared)
    status = server.wait()
    return status if status >= 0 else 128 - status


def _wait_for_end(server: subprocess.Popen[bytes], wake_read: int, shared: set[str]) -> None:
    """Until the server has ended or the lifeline has.

    Meanwhile adds to `shared` what descendants share: one may die long before the server.
    """
    server_fd = os.pidfd_open(server.pid)
    poll = select.poll()
    for fd in (0, server_fd, wake_read):
        poll.register(fd, select.POLLIN)
    while True:
        ready = {fd for fd, _ in poll.poll(_SAMPLE_PERIOD_MS)}
        if server_fd in ready or 0 in ready:
            return
        if not ready:
            shared |= _shared_memory_of(_descendants())
        elif signal.SIGTERM in os.read(wake_read, 64):
            signal.pidfd_send_signal(server_fd, signal.SIGTERM)


def _end_all(server: subprocess.Popen[bytes], started: float, shared: set[str]) -> None:
    """Kills every descendant, resource trackers last, and removes what they shared."""
    deadline: float | None = None
    while pids := _descendants():
        shared |= _shared_memory_of(pids)
        trackers = {pid for pid in pids if _TRACKER in _read(f"/proc/{pid}/cmdline")}
        if pids == trackers:
            deadline = deadline or time.monotonic() + _TRACKER_GRACE_S
        spare = trackers if deadline is None or time.monotonic() < deadline else set()
        for pid in pids - spare:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        _reap(server, pids)
        time.sleep(0.005)
    for path in map(Path, shared):
        with contextlib.suppress(OSError):
            status = path.stat()
            if status.st_uid == os.getuid() and status.st_ctime >= started - 1.0:
                path.unlink()


def _reap(server: subprocess.Popen[bytes], pids: set[int]) -> None:
    """Collects ended children; the server's status is kept by its Popen."""
    server.poll()
    for pid in pids - {server.pid}:
        with contextlib.suppress(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def _descendants() -> set[int]:
    """Every living process below this one. Orphans among them are our children: see subreaper."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        fields = _read(f"{entry}/stat").rpartition(b")")[2].split()
        if len(fields) > 1:
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found: set[int] = set()
    pending = [os.getpid()]
    while pending:
        for pid in children.get(pending.pop(), []):
            found.add(pid)
            pending.append(pid)
    return found


def _shared_memory_of(pids: set[int]) -> set[str]:
    paths: set[str] = set()
    for pid in pids:
        for line in _read(f"/proc/{pid}/maps").decode(errors="replace").splitlines():
            _, found, name = line.partition(_SHARED_MEMORY)
            if found and not name.endswith(" (deleted)"):
                paths.add(_SHARED_MEMORY + name)
    return paths


def _read(path: str) -> bytes:
    try:
        return Path(path).read_bytes()
    except OSError:
        return b""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
