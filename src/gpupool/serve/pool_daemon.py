"""The pool daemon as `serve` sees it: a process it starts, and a status it asks for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import anyio
import anyio.to_thread

from gpupool.errors import GpupoolError
from gpupool.serve import logs
from gpupool.serve.failures import DaemonFailedError
from gpupool.serve.process import GuardedProcess

if TYPE_CHECKING:
    from gpupool.daemon.protocol import ModelStatus, Refusal, Status

# A blocking question to the daemon that listens on the given socket. Raises GpupoolError or
# OSError when there is no answer.
QueryStatus = Callable[[Path], "Status"]

_START_TIMEOUT_S = 300.0
_START_POLL_S = 0.05
_WATCH_PERIOD_S = 1.0
# Each question has a limit of its own, of seconds; this many in vain and the daemon is stuck.
_MAX_SILENCES = 12


class PoolDaemon:
    """One daemon, from its start to its end."""

    def __init__(self, socket_path: Path, log_path: Path, query: QueryStatus) -> None:
        self.latest: Status | None = None
        self._socket_path = socket_path
        self._log_path = log_path
        self._query = query
        self._process: GuardedProcess | None = None
        self._asking = anyio.Lock()

    async def start(self, command: list[str], environment: Mapping[str, str]) -> None:
        """Starts the daemon and returns when it answers. Raises DaemonFailedError."""
        process = await GuardedProcess.start(command, environment, self._log_path)
        self._process = process
        silence: Exception | None = None
        with anyio.move_on_after(_START_TIMEOUT_S):
            while not process.ended:
                try:
                    await self.refresh()
                    return
                except (GpupoolError, OSError) as error:
                    silence = error
                with anyio.move_on_after(_START_POLL_S):
                    await process.wait()
        if process.ended:
            raise DaemonFailedError(f"the pool daemon cannot start: {self._last_words()}")
        raise DaemonFailedError(
            f"the pool daemon did not answer within {_START_TIMEOUT_S:.0f} s: {silence}"
        )

    async def refresh(self) -> Status:
        """Asks the daemon for its status. Raises GpupoolError or OSError when it has none."""
        async with self._asking:
            status = await anyio.to_thread.run_sync(
                self._query, self._socket_path, abandon_on_cancel=True
            )
            self.latest = status
        return status

    async def watch(self, on_status: Callable[[Status], None]) -> NoReturn:
        """Asks again and again; raises DaemonFailedError when the daemon has ended or is stuck."""
        assert self._process is not None
        silences = 0
        while not self._process.ended:
            try:
                on_status(await self.refresh())
                silences = 0
            except (GpupoolError, OSError) as error:
                silences += 1
                if silences > _MAX_SILENCES and not self._process.ended:
                    raise DaemonFailedError(
                        f"the pool daemon no longer answers: {error}"
                    ) from error
            with anyio.move_on_after(_WATCH_PERIOD_S):
                await self._process.wait()
        status = await self._process.wait()
        raise DaemonFailedError(
            f"the pool daemon ended unexpectedly (exit status {status}): {self._last_words()}"
        )

    async def stop(self, grace_s: float) -> None:
        """Ends the daemon; without effect when it never was started."""
        if self._process is not None:
            await self._process.stop(grace_s)

    def _last_words(self) -> str:
        words = logs.reason(logs.tail(self._log_path))
        return f"{words} (log: {logs.save(self._log_path, 'daemon')})"


def model_in(status: Status | None, name: str) -> ModelStatus | None:
    """What `status` says of the model `name`."""
    return next((m for m in status.models if m.name == name), None) if status else None


def refusals_of(status: Status | None, name: str) -> list[Refusal]:
    """Why workers of the model `name` were turned away, oldest first."""
    return [r for r in status.refusals if r.model == name] if status else []
