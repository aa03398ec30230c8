"""A defect of the daemon's own, met by one peer, is no matter of the others."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_bench import PAGE_BYTES, RawClient

from gpupool.daemon import protocol as p
from gpupool.daemon.server import Server

HELLO = p.Hello(p.PROTOCOL_VERSION, "unlucky")


@pytest.fixture
def server(directory: Path) -> Iterator[Server]:
    server = Server(
        directory / "daemon.sock",
        device="host",
        budget_bytes=4 * PAGE_BYTES,
        page_bytes=PAGE_BYTES,
        host_budget_bytes=1 << 20,
        turn_s=0.0,
        min_tokens=1,
        revoke_timeout_s=30.0,
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    yield server
    server.stop()
    thread.join(60.0)
    assert not thread.is_alive()


def test_an_exception_over_a_message_loses_that_peer_alone(
    server: Server,
    directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    handle = server._desk.handle

    def broken(peer: Any, message: Any, now_s: float) -> bool:
        if isinstance(message, p.Idle):
            raise TypeError("planted")
        return handle(peer, message, now_s)

    monkeypatch.setattr(server._desk, "handle", broken)
    unlucky, other = (RawClient(directory / "daemon.sock") for _ in range(2))
    assert isinstance(unlucky.ask(HELLO), p.Welcome)
    unlucky.send(p.Idle(True))
    assert "its log says how" in unlucky.dismissed_for()
    assert isinstance(other.ask(HELLO), p.Welcome)  # and the name is free again
    assert "planted" in caplog.text
    unlucky.close()
    other.close()
