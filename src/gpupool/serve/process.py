"""One server process under its guard, seen from the supervisor's event loop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import anyio

from gpupool.serve import guard
from gpupool.serve.failures import ServeError

# How long the guard may take to kill everything before its own group is killed as well.
_GUARD_GRACE_S = 10.0


class GuardedProcess:
    """A server that ends, with all its descendants, no later than the supervisor does.

    Make one with `start`. `pid` is the server's own process id, also its process group.
    """

    def __init__(self, popen: subprocess.Popen[bytes], lifeline_fd: int) -> None:
        self.pid = 0
        self.returncode: int | None = None
        self._popen = popen
        self._lifeline_fd = lifeline_fd
        self._guard_fd = os.pidfd_open(popen.pid)
        self._ended = anyio.Event()
        asyncio.get_running_loop().add_reader(self._guard_fd, self._on_end)

    @classmethod
    async def start(
        cls, command: list[str], environment: Mapping[str, str], log_path: Path
    ) -> GuardedProcess:
        """Starts `command`; its output is appended to `log_path`.

        Raises ServeError when it cannot be executed.
        """
        lifeline_read, lifeline_write = os.pipe2(os.O_CLOEXEC)
        report_read, report_write = os.pipe2(os.O_CLOEXEC)
        try:
            try:
                with log_path.open("ab") as log:
                    popen = subprocess.Popen(
                        [sys.executable, "-I", "-S", guard.__file__, *command],
                        env=dict(environment),
                        stdin=lifeline_read,
                        stdout=report_write,
                        stderr=log,
                        start_new_session=True,
                    )
            finally:
                os.close(lifeline_read)
                os.close(report_write)
        except BaseException as error:
            os.close(lifeline_write)
            os.close(report_read)
            if isinstance(error, OSError):
                raise ServeError(f"{command[0]} cannot be started: {error}") from error
            raise
        process = cls(popen, lifeline_write)
        try:
            await anyio.wait_readable(report_read)
            report = os.read(report_read, 4096).decode(errors="replace").strip()
            if not report.isdecimal():
                raise ServeError(f"{command[0]} cannot be started: {report or 'its guard died'}")
            process.pid = int(report)
        except BaseException:
            await process.stop(0)
            raise
        finally:
            os.close(report_read)
        return process

    @property
    def ended(self) -> bool:
        """Whether nothing of the server is left."""
        return self._ended.is_set()

    async def wait(self) -> int:
        """Waits until nothing of the server is left; its exit status, 128 + n for signal n."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        """Asks the server, and it alone, to end."""
        if not self.ended:
            self._popen.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Has every process of the server killed, at once. `wait` tells when it is done."""
        fd, self._lifeline_fd = self._lifeline_fd, -1
        if fd >= 0:
            os.close(fd)

    async def stop(self, grace_s: float) -> None:
        """Ends the server: politely at first, by force after `grace_s` seconds.

        Nothing of it is left on return, also when the caller is cancelled.
        """
        try:
            if grace_s > 0:
                self.terminate()
                with anyio.move_on_after(grace_s):
                    await self.wait()
        finally:
            self.kill()
            with anyio.CancelScope(shield=True):
                with anyio.move_on_after(_GUARD_GRACE_S):
                    await self.wait()
                if not self.ended:
                    self._popen.kill()
                    await self.wait()

    def _on_end(self) -> None:
        status = self._popen.poll()
        if status is None:
            return
        asyncio.get_running_loop().remove_reader(self._guard_fd)
        os.close(self._guard_fd)
        if status < 0 and self.pid:
            # The guard itself was killed, and with it the server; what the server started is left.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
        self.kill()
        self.returncode = status if status >= 0 else 128 - status
        self._ended.set()


async def until_ended(pid: int) -> None:
    """The kernel tells at once, of any process."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        await anyio.wait_readable(fd)
    finally:
        os.close(fd)


def is_alive(pid: int) -> bool:
    """Whether there is a process `pid`."""
    return Path(f"/proc/{pid}").exists()


def free_port() -> int:
    """A port on 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
