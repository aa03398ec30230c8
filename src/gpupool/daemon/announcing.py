"""News of requests for the daemon, from whoever puts them to engines."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from pathlib import Path

from gpupool.daemon import protocol as p
from gpupool.daemon import wire
from gpupool.daemon.link import connect
from gpupool.errors import GpupoolError

log = logging.getLogger("gpupool")

_CONNECT_S = 0.1  # which a daemon that accepts does not take
_NAME_MAX = 128  # the engine's own name, with more before and behind it, fits a message too
_AGAIN_S = 5.0


class Announcer:
    """Tells which requests are on their way. What cannot be told at once is not: nobody waits.

    The daemon then learns of a request from its engine.
    """

    def __init__(
        self,
        socket_path: Path,
        watch: Callable[[socket.socket, bool], None] = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Connect when there is something to tell.

        ``watch`` is told of a connection that has come, and is to be read with ``hear``, or goes.
        """
        self._socket_path = socket_path
        self._watch = watch
        self._clock = clock
        self._connection: socket.socket | None = None
        self._not_before_s = 0.0
        self._told: set[str] = set()

    @property
    def told(self) -> frozenset[str]:
        """Requests that the daemon takes to be on their way, or unfinished."""
        return frozenset(self._told)

    def announce(self, model: str, request_id: str, prompt_tokens: int) -> None:
        """A request has come for a model."""
        request_id = request_id[:_NAME_MAX]
        if not request_id or request_id in self._told:
            return  # somebody else gave his the same name
        message = p.Announce(model, request_id, min(prompt_tokens, p.COUNT_MAX))
        if self._say(message):
            self._told.add(request_id)

    def over(self, request_id: str) -> None:
        """It has its answer, or wants none any more."""
        request_id = request_id[:_NAME_MAX]
        if request_id in self._told:
            self._told.discard(request_id)
            self._say(p.Over(request_id))

    def close(self) -> None:
        """Everything that was announced is over; idempotent."""
        self._told.clear()
        if self._connection is not None:
            self._watch(self._connection, False)
            self._connection.close()
            self._connection = None

    def hear(self) -> list[str]:
        """Requests that the daemon has given up on since it was asked last."""
        found: list[str] = []
        while self._connection is not None:
            try:
                packet, fds = wire.receive(self._connection, 0)
                message = wire.decode_daemon(packet)
            except BlockingIOError:
                break
            except (GpupoolError, OSError):  # it is told of nothing more, and so tells nothing
                self.close()
                break
            assert not fds
            if isinstance(message, p.GiveUp):
                found.append(message.request_id)
        return found

    def _say(self, message: p.Announce | p.Over) -> bool:
        try:
            if self._connection is None:
                if self._clock() < self._not_before_s:
                    return False
                try:
                    self._connection = connect(self._socket_path, _CONNECT_S)
                finally:
                    self._not_before_s = self._clock() + _AGAIN_S
                self._connection.setblocking(False)
                self._watch(self._connection, True)
            self._connection.send(wire.encode(message))
        except BlockingIOError:
            # The daemon is busy. It must not go by what is over for good, so that ends it all.
            if isinstance(message, p.Over):
                self.close()
            return False
        except (GpupoolError, OSError) as error:
            log.info("gpupool: a request was not announced: %s", error)
            # What the daemon was told is over with the connection.
            self.close()
            return False
        return True
