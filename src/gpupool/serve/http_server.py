"""uvicorn inside the supervisor's own event loop, on a socket that is bound before all else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from gpupool.serve.failures import ServeError


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, not yet listening; port 0 picks a free one. Raises ServeError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ServeError(
            f"server.host {host!r} is no address of this machine ({error.strerror});"
            " name one, such as 127.0.0.1"
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise ServeError(
            f"{host}:{port} cannot be bound ({os.strerror(error.errno or 0)}); choose another"
            " server.port, or 0 for a free one"
        ) from None
    return listener


def url_of(listener: socket.socket, host: str) -> str:
    """The address to reach `listener`, with its real port."""
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{listener.getsockname()[1]}"


class HttpServer:
    """The HTTP server of one run."""

    def __init__(self, app: Starlette, listener: socket.socket) -> None:
        self._listener = listener
        self._task: asyncio.Task[None] | None = None
        self._server = _Server(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_level="warning",
                access_log=False,
                log_config=None,
                timeout_graceful_shutdown=2,
            )
        )

    def start(self) -> None:
        """Begins to accept connections; without effect when it already does. Raises ServeError.

        Whoever connects from now on is answered, though the task may begin later.
        """
        if self._task is None:
            try:
                self._listener.listen(self._server.config.backlog)
            except OSError as error:
                raise ServeError(
                    f"port {self._listener.getsockname()[1]} was taken by another program while"
                    f" the models started ({os.strerror(error.errno or 0)}); choose another"
                    " server.port"
                ) from None
            self._task = asyncio.create_task(self._server.serve(sockets=[self._listener]))

    async def wait(self) -> None:
        """Until the server has ended; raises what it ended with."""
        if self._task is not None:
            await asyncio.shield(self._task)

    async def stop(self, grace_s: float) -> None:
        """Ends the server, without waiting for open requests when `grace_s` is 0."""
        if self._task is not None:
            self._server.should_exit = True
            self._server.force_exit = grace_s <= 0
            await asyncio.wait([self._task])


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves the signals to the supervisor."""
        yield
