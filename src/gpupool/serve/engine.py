"""Keeps one stock vLLM server running: start, readiness, death, restart, stop."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import anyio
import httpx

from gpupool.errors import GpupoolError
from gpupool.serve import lifecycle, logs
from gpupool.serve.failures import EngineFailedError, ServeError
from gpupool.serve.launch import Launch
from gpupool.serve.lifecycle import Life, Phase, RestartPolicy
from gpupool.serve.pool_daemon import PoolDaemon, model_in, refusals_of
from gpupool.serve.process import GuardedProcess, free_port, is_alive, until_ended
from gpupool.serve.report import EngineReport

if TYPE_CHECKING:
    from gpupool.daemon.protocol import Refusal, Status

START_TIMEOUT_S = 3_600.0
_POLICY = RestartPolicy()
_START_POLL_S = 0.1
_JOIN_TIMEOUT_S = 10.0
_HEALTH_PERIOD_S = 1.0
_HEALTH_TIMEOUT_S = 10.0
# An API server that is busy may answer late; one that says nothing for so long is stuck.
_MAX_SILENCE_S = 120.0
_TAIL_LINES = 20


class _DeathError(Exception):
    """The engine is gone, and why."""


class Engine:
    """One supervised engine. Call `start` once, then `supervise` until it is cancelled."""

    def __init__(
        self,
        name: str,
        launch: Launch,
        *,
        client: httpx.AsyncClient,
        pool: PoolDaemon,
        turn: anyio.Lock,
        on_progress: Callable[[str, Phase, str], None],
        policy: RestartPolicy = _POLICY,
        start_timeout_s: float = START_TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = anyio.sleep,
    ) -> None:
        self.name = name
        self._launch = launch
        self._client = client
        self._pool = pool
        self._turn = turn
        self._on_progress = on_progress
        self._policy = policy
        self._start_timeout_s = start_timeout_s
        self._clock = clock
        self._sleep = sleep
        self._life = Life()
        self._process: GuardedProcess | None = None
        self._port = 0
        self._log_offset = 0
        self._worker_pid: int | None = None
        self._suspected = anyio.Event()
        self._cold_start_s: float | None = None
        self._detail = "waiting for its turn to start"

    @property
    def phase(self) -> Phase:
        """Where the engine is in its life."""
        return self._life.phase

    @property
    def base_url(self) -> str:
        """Where the server answers while it is ready."""
        return f"http://127.0.0.1:{self._port}"

    @property
    def detail(self) -> str:
        """Why the engine is not ready; empty when it is."""
        return self._detail

    @property
    def retry_after_s(self) -> float:
        """A fair guess of when to ask again, from the back-off and the last start."""
        return self._life.delay_s + (self._cold_start_s or 10.0)

    def report(self) -> EngineReport:
        """The engine's state."""
        return EngineReport(
            name=self.name,
            state=str(self.phase),
            pid=self._process.pid if self._process else None,
            worker_pid=self._worker_pid,
            cold_start_s=self._cold_start_s,
            restarts=self._life.restarts,
            retry_after_s=0.0 if self.phase is Phase.READY else self.retry_after_s,
            detail=self._detail,
        )

    async def is_sound(self) -> bool:
        """Whether the server says it is healthy; when not, it is restarted without delay.

        For a caller who has seen it fail: a server knows of its dead core before its processes
        have ended.
        """
        if self.phase is Phase.READY and await self._health() == 200:
            return True
        self._suspected.set()
        return False

    async def start(self) -> None:
        """Starts the engine for the first time; raises EngineFailedError, nothing left."""
        try:
            await self._bring_up()
        except _DeathError as death:
            self._bury(death)
            await self._clear()
            raise EngineFailedError(f"model {self.name!r} cannot start: {death}") from None

    async def supervise(self) -> None:
        """Restarts the engine whenever it dies; returns when it has failed for good."""
        while not self._life.is_over:
            try:
                if self.phase is Phase.BACKING_OFF:
                    await self._sleep(self._life.delay_s)
                    await self._bring_up()
                raise _DeathError(await self._until_dead())
            except _DeathError as death:
                # First of all, so that no further request is sent there.
                self._bury(death)
                await self._clear()

    async def stop(self, grace_s: float) -> None:
        """Ends the engine, by force after `grace_s` seconds; nothing of it is left on return."""
        self._life = lifecycle.stop(self._life)
        self._detail = "stopped"
        if self._process is not None:
            await self._process.stop(grace_s)
            self._process = None

    async def _bring_up(self) -> None:
        async with self._turn:
            self._life = lifecycle.start(self._life)
            self._tell("starting")
            refused = refusals_of(await self._status(), self.name)
            begun_s = self._clock()
            self._port = free_port()
            self._log_offset = logs.size_bytes(self._launch.log_path)
            try:
                self._process = await GuardedProcess.start(
                    self._launch.command(self._port),
                    self._launch.environment,
                    self._launch.log_path,
                )
            except ServeError as error:
                raise _DeathError(str(error)) from error
            await self._until_healthy(self._process, begun_s, refused)
            self._cold_start_s = self._clock() - begun_s
            await self._until_joined()
            self._suspected = anyio.Event()
            self._life = lifecycle.become_ready(self._life)
            self._tell("")

    async def _until_healthy(
        self, process: GuardedProcess, begun_s: float, refused: list[Refusal]
    ) -> None:
        while self._clock() - begun_s < self._start_timeout_s:
            if process.ended:
                raise _DeathError(await self._why(refused))
            if await self._health() == 200:
                return
            lines = self._log_lines()
            self._on_progress(self.name, Phase.STARTING, lines[-1] if lines else "")
            with anyio.move_on_after(_START_POLL_S):
                await process.wait()
        raise _DeathError(f"it did not answer within {self._start_timeout_s:.0f} s")

    async def _until_joined(self) -> None:
        """An engine outside the pool would take its memory from all others."""
        deadline_s = self._clock() + _JOIN_TIMEOUT_S
        while self._clock() < deadline_s:
            model = model_in(await self._status(), self.name)
            # The daemon may still show the worker of the engine's former life.
            if model is not None and is_alive(model.pid):
                self._worker_pid = model.pid
                return
            await anyio.sleep(_START_POLL_S)
        raise _DeathError("it answers, but its worker has not joined the pool")

    async def _until_dead(self) -> str:
        """Watches everything that can tell of the engine's death; the first sign of it."""
        assert self._process is not None and self._worker_pid is not None
        server_pid, worker_pid, signs = self._process.pid, self._worker_pid, list[str]()

        async with anyio.create_task_group() as watch:

            async def first(sign: Callable[[], Awaitable[str]]) -> None:
                signs.append(await sign())
                watch.cancel_scope.cancel()

            async def server_ended() -> str:
                await until_ended(server_pid)
                return f"its server has ended: {logs.reason(self._log_lines())}"

            async def worker_ended() -> str:
                # Its API server may not notice for long.
                await until_ended(worker_pid)
                return f"its worker, process {worker_pid}, has ended"

            async def suspected() -> str:
                await self._suspected.wait()
                return "it failed a request and its health check"

            watch.start_soon(first, server_ended)
            watch.start_soon(first, suspected)
            watch.start_soon(first, worker_ended)
            watch.start_soon(first, self._unhealthy)
        return signs[0]

    async def _unhealthy(self) -> str:
        answered_s = self._clock()
        while True:
            await anyio.sleep(_HEALTH_PERIOD_S)
            logs.bound(self._launch.log_path)
            model = model_in(self._pool.latest, self.name)
            if model is None or model.pid != self._worker_pid:
                return "its worker has left the pool"
            status = await self._health()
            if status is not None and status != 200:
                return f"its health check answers {status}"
            if status == 200:
                answered_s = self._clock()
            elif self._clock() - answered_s > _MAX_SILENCE_S:
                return f"its health check has not answered for {_MAX_SILENCE_S:.0f} s"

    async def _health(self) -> int | None:
        """The health check's HTTP status, None when there is no answer."""
        try:
            answer = await self._client.get(f"{self.base_url}/health", timeout=_HEALTH_TIMEOUT_S)
        except httpx.HTTPError:
            return None
        return answer.status_code

    async def _why(self, refused: list[Refusal]) -> str:
        """The daemon's refusal when it is not one of `refused` before, else what the log says."""
        for refusal in reversed(refusals_of(await self._status(), self.name)):
            if refusal not in refused:
                return refusal.message
        path = logs.save(self._launch.log_path, self.name)
        return f"{logs.reason(self._log_lines())} (log: {path})"

    async def _status(self) -> Status | None:
        try:
            return await self._pool.refresh()
        except (GpupoolError, OSError):
            return None

    def _bury(self, death: _DeathError) -> None:
        self._life = lifecycle.die(self._life, self._policy, self._clock())
        if self.phase is Phase.FAILED and self._life.was_ready:
            tail = "\n".join(self._log_lines()[-_TAIL_LINES:])
            self._tell(f"failed for good after {self._life.restarts} restarts: {death}\n{tail}")
        elif self._life.was_ready:
            path = logs.save(self._launch.log_path, self.name)
            self._tell(f"{death} (log: {path})")
        else:
            self._tell(str(death))

    async def _clear(self) -> None:
        """Kills what is left of the engine: its core may outlive its API server, or the reverse."""
        self._worker_pid = None
        if self._process is not None:
            await self._process.stop(0)
            self._process = None

    def _log_lines(self) -> list[str]:
        return logs.tail(self._launch.log_path, self._log_offset)

    def _tell(self, detail: str) -> None:
        self._detail = detail
        self._on_progress(self.name, self.phase, detail)
