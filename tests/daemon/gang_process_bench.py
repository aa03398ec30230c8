"""Engines of two ranks, each a process of its own, on a daemon for each device."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from daemon_bench import PAGE_BYTES, Daemon, Puppet, PuppetError

PAGES = 2

MakeProcesses = Callable[..., "Processes"]


class Processes:
    """The ranks of one engine."""

    def __init__(self, daemons: Sequence[Daemon], name: str) -> None:
        self.name = name
        self.ranks = [Puppet(daemon.socket_path, "rank_puppet.py") for daemon in daemons]
        sockets = [str(daemon.socket_path) for daemon in daemons]
        for rank, puppet in enumerate(self.ranks):
            puppet.start("join_gang", sockets, name, rank, PAGES * PAGE_BYTES)
        self.answers()

    def start(self, command: str, *arguments: Any) -> None:
        """In all ranks."""
        for rank in self.ranks:
            rank.start(command, *arguments)

    def answers(self) -> list[Any]:
        return [rank.answer() for rank in self.ranks]

    def do(self, command: str, *arguments: Any) -> list[Any]:
        self.start(command, *arguments)
        return self.answers()

    def error(self, rank: int) -> str:
        """What a rank says instead of an answer."""
        try:
            answer = self.ranks[rank].answer()
        except PuppetError as error:
            return str(error)
        raise AssertionError(f"rank {rank} did as it was told: {answer}")

    def signal(self, rank: int, number: signal.Signals) -> None:
        os.kill(self.ranks[rank].process.pid, number)

    def close(self) -> None:
        for rank in self.ranks:
            rank.close()


@contextmanager
def processes_of() -> Iterator[MakeProcesses]:
    """Make engines, whose processes end with the block."""
    made: list[Processes] = []

    def make(daemons: Sequence[Daemon], name: str) -> Processes:
        made.append(Processes(daemons, name))
        return made[-1]

    try:
        yield make
    finally:
        for processes in made:
            processes.close()
