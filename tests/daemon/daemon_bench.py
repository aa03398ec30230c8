"""Daemons and clients as processes, for tests."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from gpupool.daemon import protocol, wire
from gpupool.daemon.link import connect
from gpupool.daemon.protocol import ModelStatus, Status
from gpupool.daemon.queries import query_status

PAGE_BYTES = 2 << 20
DEADLINE_S = 60.0


def until(condition: Callable[[], object], what: str = "the condition") -> None:
    """Poll until it holds; fail at a deadline that only a broken program meets."""
    end_s = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end_s, f"{what} did not come true"
        time.sleep(0.002)


class PuppetError(Exception):
    """A command failed in the puppet's process."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind
        self.message = message


class Puppet:
    """A client process; see its script for the commands."""

    def __init__(self, socket_path: Path, script_name: str = "puppet.py") -> None:
        script = str(Path(__file__).with_name(script_name))
        self.process = subprocess.Popen(
            [sys.executable, script, str(socket_path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        self._unread = b""

    def start(self, command: str, *arguments: Any) -> None:
        """Give a command without waiting for its answer."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps([command, *arguments]).encode() + b"\n")

    def answer(self) -> Any:
        """The next answer. Raises PuppetError."""
        answer = json.loads(self._line())
        if "error" in answer:
            raise PuppetError(answer["error"], answer["message"])
        return answer.get("value")

    def stopped(self) -> bool:
        """Wait until it says that it has stopped."""
        return bool(json.loads(self._line())["stopped"])

    def do(self, command: str, *arguments: Any) -> Any:
        self.start(command, *arguments)
        return self.answer()

    def join(self, name: str, **regions: int) -> Puppet:
        """Join as a model with regions of that many bytes."""
        self.do("join", name)
        for tag, size_bytes in regions.items():
            self.do("region", tag, size_bytes)
        return self

    def cycle(self, tag: str, value: int) -> None:
        """Come in, write, go out, come in again and find what was written."""
        self.do("enter")
        self.do("fill", tag, value)
        self.do("leave")
        self.do("swap_out")
        self.do("enter")
        assert set(self.do("values", tag)) <= {0, value}  # 0 is padding
        self.do("leave")
        self.do("swap_out")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def ended_by(self) -> int:
        """The signal that ended the process."""
        return -self.process.wait(DEADLINE_S)

    def close(self) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream
            stream.close()

    def _line(self) -> bytes:
        assert self.process.stdout
        end_s = time.monotonic() + DEADLINE_S
        while b"\n" not in self._unread:
            ready, _, _ = select.select([self.process.stdout], [], [], end_s - time.monotonic())
            assert ready, "the puppet does not answer"
            piece = os.read(self.process.stdout.fileno(), 65536)
            assert piece, "the puppet has ended"
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line


class RawClient:
    """A client in this process, with nothing between it and the socket. It must hold no pages."""

    def __init__(self, socket_path: Path) -> None:
        self.socket = connect(socket_path, DEADLINE_S)

    def send(self, message: msgspec.Struct) -> None:
        self.socket.send(wire.encode(message))

    def send_bytes(self, packet: bytes) -> None:
        self.socket.send(packet)

    def receive(self) -> Any:
        packet, fds = wire.receive(self.socket, protocol.FDS_MAX)
        for fd in fds:
            os.close(fd)
        return wire.decode_daemon(packet)

    def ask(self, message: msgspec.Struct) -> Any:
        self.send(message)
        return self.receive()

    def dismissed_for(self) -> str:
        """Why the daemon ended the connection."""
        reply = self.receive()
        assert isinstance(reply, protocol.Dismissed)
        assert self.socket.recv(1) == b""
        return reply.message

    def close(self) -> None:
        self.socket.close()


class Daemon:
    """`gpupool daemon` in a process of its own."""

    def __init__(
        self, socket_path: Path, *, pages: int = 4, options: tuple[str, ...] = (), **popen: Any
    ) -> None:
        self.socket_path = socket_path
        self.pages = pages
        self._puppets: list[Puppet] = []
        self._raw: list[RawClient] = []
        command = [sys.executable, "-m", "gpupool", "daemon", "--socket", str(socket_path)]
        command += ["--device", "host", "--budget-bytes", str(pages * PAGE_BYTES)]
        command += ["--page-bytes", str(PAGE_BYTES), "--turn-ms", "0", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **popen
        )
        assert self.process.stdout
        line = self.process.stdout.readline()
        if line != f"gpupool daemon ready: {socket_path}\n":
            _, error = self.process.communicate()
            raise AssertionError(f"the daemon did not start: {line}{error}")

    def puppet(self) -> Puppet:
        self._puppets.append(Puppet(self.socket_path))
        return self._puppets[-1]

    def model(self, name: str, **regions: int) -> Puppet:
        return self.puppet().join(name, **regions)

    def raw(self) -> RawClient:
        self._raw.append(RawClient(self.socket_path))
        return self._raw[-1]

    def status(self) -> Status:
        return query_status(self.socket_path, DEADLINE_S)

    def model_status(self, name: str) -> ModelStatus | None:
        return next((model for model in self.status().models if model.name == name), None)

    def until_state(self, name: str, state: str) -> None:
        def reached() -> bool:
            model = self.model_status(name)
            return model is not None and model.state == state

        until(reached, f"{name} {state}")

    def until_ledger(self, *, free: int, host_bytes: int | None = None, fenced: int = 0) -> None:
        """Until the ledger says this, and no more pages than these are fenced."""

        def settled() -> bool:
            status = self.status()
            return (
                status.pages_free == free
                and status.pages_fenced == fenced
                and host_bytes in (None, status.host_bytes)
            )

        until(settled, f"{free} pages free, {fenced} fenced, {host_bytes} host bytes")

    def hang_up(self) -> None:
        """Close the clients of this process."""
        while self._raw:
            self._raw.pop().close()

    def stop(self) -> None:
        """End clients, then the daemon, which must have come this far in good order."""
        self.hang_up()
        for puppet in self._puppets:
            with contextlib.suppress(ProcessLookupError):
                puppet.close()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        _, error = self.process.communicate(timeout=DEADLINE_S)
        assert self.process.returncode == 0, error
        assert error == ""
        assert not self.socket_path.exists()

    def abandon(self) -> None:
        """After a test that ended the daemon, or failed."""
        self.process.kill()
        self.process.communicate()
        self.hang_up()
        for puppet in self._puppets:
            puppet.close()


StartDaemon = Callable[..., Daemon]


def fill_socket(connection: socket.socket, packet: bytes) -> int:
    """Send until nothing more goes; how many packets went."""
    connection.setblocking(False)
    sent = 0
    with contextlib.suppress(BlockingIOError):
        while True:
            connection.send(packet)
            sent += 1
    return sent
