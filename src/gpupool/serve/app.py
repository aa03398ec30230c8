"""`gpupool serve`: the daemon, the engines and the router, from the first to the last."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import httpx
import msgspec

from gpupool.errors import GpupoolError
from gpupool.serve import launch
from gpupool.serve.config import (
    Config,
    ImagesConfig,
    ModelConfig,
    ParkingConfig,
    PoolConfig,
    load_config,
)
from gpupool.serve.engine import START_TIMEOUT_S, Engine
from gpupool.serve.failures import ServeError
from gpupool.serve.http_server import HttpServer, listen, url_of
from gpupool.serve.launch import Launch
from gpupool.serve.lifecycle import RestartPolicy
from gpupool.serve.metrics import Metrics
from gpupool.serve.pool_daemon import PoolDaemon, QueryStatus
from gpupool.serve.progress import Reporter, choose_reporter
from gpupool.serve.router import Router
from gpupool.serve.run_directory import run_directory
from gpupool.serve.stopping import Stopping

if TYPE_CHECKING:
    from gpupool.daemon.announcing import Announcer
    from gpupool.daemon.protocol import Status

_CONNECT_TIMEOUT_S = 10.0
_KEEP_ALIVE_S = 60.0
_KILLED = 128 + signal.SIGINT


def _query_status(socket_path: Path) -> Status:
    from gpupool.daemon.queries import query_status

    return query_status(socket_path)


def _announcer(socket_path: Path, watch: Callable[[socket.socket, bool], None]) -> Announcer:
    from gpupool.daemon.announcing import Announcer

    return Announcer(socket_path, watch)


@dataclass(frozen=True)
class Parts:
    """What is started and asked; tests put their own in."""

    daemon_command: Callable[[PoolConfig, Path, ParkingConfig | None, int], list[str]] = (
        launch.daemon_command
    )
    engine_command: Callable[[ModelConfig, int, Sequence[Path], ImagesConfig | None], list[str]] = (
        launch.engine_command
    )
    query_status: QueryStatus = _query_status
    announcer: Callable[[Path, Callable[[socket.socket, bool], None]], Announcer] = _announcer
    policy: RestartPolicy = field(default_factory=RestartPolicy)
    stop_grace_s: float = 15.0


def run(
    config_path: Path, *, host: str | None, port: int | None, json_progress: bool = False
) -> int:
    """Serves what `config_path` says until SIGINT or SIGTERM; the process's exit status.

    `host` and `port` override the file's. 0: stopped as asked; 1: could not start or go on, with
    one sentence on standard error; 130: killed by a second signal. Nothing is left in any case.
    """
    reporter = choose_reporter(as_json=json_progress)
    try:
        config = load_config(config_path)
        server = msgspec.structs.replace(
            config.server,
            host=config.server.host if host is None else host,
            port=config.server.port if port is None else port,
        )
        return serve(msgspec.structs.replace(config, server=server), reporter, Parts())
    except GpupoolError as error:
        reporter.error(str(error))
        return 1
    finally:
        reporter.close()


def serve(config: Config, reporter: Reporter, parts: Parts) -> int:
    """Serves a checked configuration; as `run`, but raises GpupoolError where that returns 1."""
    with listen(config.server.host, config.server.port) as listener, run_directory() as directory:
        return anyio.run(_Run(config, reporter, parts, listener, directory).main)


class _Run:
    """One run: everything it started is ended when `main` returns or raises."""

    def __init__(
        self,
        config: Config,
        reporter: Reporter,
        parts: Parts,
        listener: socket.socket,
        directory: Path,
    ) -> None:
        self._config = config
        self._reporter = reporter
        self._parts = parts
        self._listener = listener
        self._directory = directory
        devices = config.pool.devices
        numbers = [""] if len(devices) == 1 else [f"{rank:02}" for rank in range(len(devices))]
        self._sockets = [directory / "pool" / f"daemon{number}.sock" for number in numbers]
        self._environment = {**os.environ, **launch.device_environment(devices, os.environ)}
        self._api_key = secrets.token_hex(32)
        self._announcer: Announcer | None = None

    async def main(self) -> int:
        async with _engine_client(self._api_key) as client:
            self._metrics = Metrics()
            self._daemons = [
                PoolDaemon(path, self._directory / f"{path.stem}.log", self._parts.query_status)
                for path in self._sockets
            ]
            self._engines = self._make_engines(client)
            if self._config.pool.policy != "turns":
                self._announcer = self._parts.announcer(self._sockets[0], self._watch)
            self._router = Router(
                self._engines,
                client=client,
                metrics=self._metrics,
                ask_statuses=self._ask_statuses,
                max_body_bytes=self._config.server.max_body_bytes,
                announcer=self._announcer,
            )
            self._http = HttpServer(self._router.app(), self._listener)
            with Stopping(self._reporter.stopping) as stopping:
                failure: GpupoolError | None = None
                try:
                    with stopping.until_first_signal():
                        await self._work()
                except* GpupoolError as group:
                    failure = _first(group)
                finally:
                    with anyio.CancelScope(shield=True):
                        with stopping.until_second_signal():
                            await self._end(self._parts.stop_grace_s)
                        if stopping.forced:
                            await self._end(0)
            if failure is not None:
                raise failure
            return _KILLED if stopping.forced else 0

    async def _work(self) -> None:
        """Starts everything and waits for something to fail."""
        pool, parking = self._config.pool, self._config.parking
        for rank, (daemon, path) in enumerate(zip(self._daemons, self._sockets, strict=True)):
            command = self._parts.daemon_command(pool, path, parking, rank)
            await daemon.start(command, self._environment)
        async with anyio.create_task_group() as tasks:
            for rank, daemon in enumerate(self._daemons):
                tasks.start_soon(daemon.watch, partial(self._metrics.take_status, rank=rank))
            for engine in self._engines:
                await engine.start()
                tasks.start_soon(engine.supervise)
                self._http.start()
            self._reporter.ready(url_of(self._listener, self._config.server.host))
            await self._http.wait()
            raise ServeError("the HTTP server ended by itself; see the messages above")

    async def _end(self, grace_s: float) -> None:
        """Ends the engines, then the daemon under them, then the server: its requests are over."""
        async with anyio.create_task_group() as tasks:
            for engine in self._engines:
                tasks.start_soon(engine.stop, grace_s)
        if self._announcer is not None:
            self._announcer.close()
        for daemon in self._daemons:
            await daemon.stop(grace_s)
        await self._http.stop(grace_s)

    def _watch(self, connection: socket.socket, comes: bool) -> None:
        """Hear what the daemon says of requests that were announced to it."""
        loop = asyncio.get_running_loop()
        if comes:
            loop.add_reader(connection, self._hear)
        else:
            loop.remove_reader(connection)

    def _hear(self) -> None:
        if self._announcer is not None:
            for request_id in self._announcer.hear():
                self._router.give_up(request_id)

    async def _ask_statuses(self) -> list[Status | None]:
        found: list[Status | None] = []
        for daemon in self._daemons:
            try:
                found.append(await daemon.refresh())
            except (GpupoolError, OSError):
                found.append(None)
        return found

    def _make_engines(self, client: httpx.AsyncClient) -> list[Engine]:
        turn = anyio.Lock()
        engines = []
        for index, model in enumerate(self._config.models):
            private_dir = self._directory / f"e{index}"
            private_dir.mkdir(mode=0o700)
            engines.append(
                Engine(
                    model.name,
                    Launch(
                        command=self._command_of(model),
                        environment=launch.engine_environment(
                            model, self._environment, private_dir, START_TIMEOUT_S, self._api_key
                        ),
                        log_path=self._directory / f"e{index}.log",
                    ),
                    client=client,
                    pool=self._daemons[0],
                    turn=turn,
                    on_progress=self._reporter.engine,
                    policy=self._parts.policy,
                )
            )
        return engines

    def _command_of(self, model: ModelConfig) -> Callable[[int], list[str]]:
        images = self._config.images
        return lambda port: self._parts.engine_command(model, port, self._sockets, images)


def _first(group: BaseExceptionGroup[GpupoolError]) -> GpupoolError:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


@asynccontextmanager
async def _engine_client(api_key: str) -> AsyncIterator[httpx.AsyncClient]:
    """A client for all engines: no read timeout, for a model may wait for its turn."""
    async with httpx.AsyncClient(
        headers={"Authorization": f"Bearer {api_key}"},
        timeout=httpx.Timeout(None, connect=_CONNECT_TIMEOUT_S),
        limits=httpx.Limits(
            max_connections=None, max_keepalive_connections=256, keepalive_expiry=_KEEP_ALIVE_S
        ),
        trust_env=False,  # engines are on this machine: no proxy
        follow_redirects=False,
    ) as client:
        yield client
