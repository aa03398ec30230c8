"""Client and daemon processes forked from a warm one; see nursery.py."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

from daemon_bench import DEADLINE_S, Puppet


class Nursery:
    """A warm process that forks others."""

    def __init__(self) -> None:
        self._orders, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        script = str(Path(__file__).with_name("nursery.py"))
        command = [sys.executable, script, str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        theirs.close()
        self._orders.settimeout(DEADLINE_S)

    def fork(self, role: str, *arguments: Any) -> Fork:
        ours, theirs = socket.socketpair()
        with theirs:
            order = json.dumps([role, *arguments]).encode()
            socket.send_fds(self._orders, [order], [theirs.fileno()])
        return Fork(self, int(self._orders.recv(64)), ours)

    def wait(self, pid: int) -> int:
        """How a process ended: its exit status, or the negative number of a signal."""
        self._orders.send(json.dumps(["wait", pid]).encode())
        return int(self._orders.recv(64))

    def close(self) -> None:
        self._orders.close()
        self._process.wait(DEADLINE_S)


class Fork(Puppet):
    """A process of the nursery's, spoken to like any puppet."""

    def __init__(self, nursery: Nursery, pid: int, control: socket.socket) -> None:
        self._nursery = nursery
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)
        self._control = control
        self._control.settimeout(DEADLINE_S)
        self._unread = b""
        self._result: int | None = None
        self.value: Any = None
        """What it said last, in no stage."""

    @property
    def gone(self) -> bool:
        """Whether the process has ended, in all its threads."""
        return self._result is not None or bool(select.select([self._pidfd], [], [], 0)[0])

    def start(self, command: str, *arguments: Any) -> None:
        self._control.sendall(json.dumps([command, *arguments]).encode() + b"\n")

    def stage(self) -> str | None:
        """The stage it has come to, or None when it has ended."""
        try:
            line = self._line()
        except EOFError:
            return None
        answer = json.loads(line)
        if "value" in answer:
            self.value = answer["value"]
            return self.stage()
        assert "stage" in answer, answer["message"]
        return str(answer["stage"])

    def go_on(self) -> None:
        with contextlib.suppress(ConnectionError):  # it has been killed
            self._control.sendall(b"\n")

    def terminate(self) -> None:
        signal.pidfd_send_signal(self._pidfd, signal.SIGTERM)

    def result(self) -> int:
        """How it ended, after waiting for that."""
        if self._result is None:
            assert select.select([self._pidfd], [], [], DEADLINE_S)[0], "the process does not end"
            self._result = self._nursery.wait(self.pid)
        return self._result

    def close(self) -> None:
        if self._result is None:
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
            self.result()
        self._control.close()
        os.close(self._pidfd)

    def _line(self) -> bytes:
        while b"\n" not in self._unread:
            try:
                piece = self._control.recv(65536)
            except ConnectionResetError:
                piece = b""  # it had not read all that it was told
            if not piece:
                raise EOFError("the process has ended")
            self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        return line
