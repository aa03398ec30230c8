"""In which order a daemon hears processes that speak on several connections."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_bench import RawClient
from server_bench import server_of

from gpupool.daemon import protocol as p
from gpupool.daemon import server as server_module

IDLES = 40


class Heard:
    """A daemon that begins to listen when all has been said; the words that it heard, in order."""

    def __init__(self, socket_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.words: list[str] = []
        self.path = socket_path
        self._server = server_of(socket_path, "host", pages=4)
        self._thread = threading.Thread(target=self._server.run)
        handle = self._server._desk.handle

        def listen(peer: Any, message: Any, *more: Any) -> bool:
            self.words.append(type(message).__name__)
            return handle(peer, message, *more)

        monkeypatch.setattr(self._server._desk, "handle", listen)

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._server.stop()
            self._thread.join(60.0)
            assert not self._thread.is_alive()


@pytest.fixture
def daemon(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(directory / "daemon.sock", monkeypatch)


def talkative(daemon: Heard) -> RawClient:
    client = RawClient(daemon.path)
    client.send(p.Hello(p.PROTOCOL_VERSION, "a"))
    for turn in range(IDLES):
        client.send(p.Idle(turn % 2 == 0))
    client.send(p.Goodbye())
    return client


def test_who_leaves_and_comes_again_is_not_in_its_own_way(daemon: Heard) -> None:
    before, again = talkative(daemon), RawClient(daemon.path)
    again.send(p.Hello(p.PROTOCOL_VERSION, "a"))
    with daemon.running():
        assert isinstance(again.receive(), p.Welcome)
    assert daemon.words == ["Hello", *["Idle"] * IDLES, "Goodbye", "Hello"]
    before.close()
    again.close()


def test_who_asks_hears_what_follows_from_all_that_was_said(daemon: Heard) -> None:
    before, asks = talkative(daemon), RawClient(daemon.path)
    asks.send(p.StatusQuery(0))
    with daemon.running():
        reply = asks.receive()
    assert isinstance(reply, p.StatusReply)
    assert reply.status.models == []
    before.close()
    asks.close()


def test_who_never_stops_talking_keeps_nobody_from_being_heard(
    daemon: Heard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "_TURNS_PUT_OFF_MAX", 3)
    before, other = talkative(daemon), RawClient(daemon.path)
    other.send(p.Hello(p.PROTOCOL_VERSION, "b"))
    with daemon.running():
        assert isinstance(other.receive(), p.Welcome)
    assert 4 <= daemon.words.index("Hello", 1) <= 5 < IDLES
    before.close()
    other.close()
