"""Forks clients and daemons from a process that has done its imports and runs no threads.

An order is one packet: the role and its arguments as JSON, with the socket by which the child is
spoken to; the answer is the child's process. ``["wait", pid]`` is answered by how it ended.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import death
import life
import parking_life
import puppet
from server_bench import server_of


def run_puppet(socket_path: str) -> None:
    """See puppet.py."""
    puppet.obey(puppet.Puppet(Path(socket_path)))


def run_mortal(socket_path: str, moment: str, nth: int, owner: str) -> None:
    """See life.py; dies at ``moment``, or says in the end what it did if that is "never"."""
    _run_life(life.live, socket_path, moment, nth, owner)


def run_parker(socket_path: str, moment: str, nth: int, owner: str) -> None:
    """The same, of parking_life.py."""
    _run_life(parking_life.live, socket_path, moment, nth, owner)


def _run_life(
    live: Callable[[Path, Callable[[str], None], str], None],
    socket_path: str,
    moment: str,
    nth: int,
    owner: str,
) -> None:
    def stage(name: str) -> None:
        puppet.say({"stage": name})
        if not sys.stdin.readline():
            raise EOFError("the test has ended")

    census = death.Census() if moment == "never" else None
    if census is None:
        death.arm(moment, nth)
    live(Path(socket_path), stage, owner)
    gc.collect()  # it may die as it gives back what a closed model has left, too
    if census is not None:
        puppet.say({"value": census.found})


def run_daemon(socket_path: str, pages: int, moment: str, nth: int) -> None:
    """A daemon that dies at ``moment``, unless ``nth`` is 0."""
    if nth:
        death.arm(moment, nth)
    server = server_of(Path(socket_path), "host", pages)
    server.stop_on_signals()
    puppet.say({"value": None})
    server.run()


ROLES: dict[str, Callable[..., None]] = {
    "puppet": run_puppet,
    "mortal": run_mortal,
    "parker": run_parker,
    "daemon": run_daemon,
}


def main() -> None:
    """Obey until the test hangs up."""
    orders = socket.socket(fileno=int(sys.argv[1]))
    gc.collect()
    gc.freeze()
    while True:
        order, fds, _, _ = socket.recv_fds(orders, 65536, 1)
        if not order:
            return
        role, *arguments = json.loads(order)
        if role == "wait":
            _, status = os.waitpid(arguments[0], 0)
            orders.send(b"%d" % os.waitstatus_to_exitcode(status))
            continue
        child = os.fork()
        if child == 0:
            orders.close()
            os._exit(_live(fds[0], role, arguments))
        os.close(fds[0])
        orders.send(b"%d" % child)


def _live(control: int, role: str, arguments: list[str | int]) -> int:
    for standard in (0, 1):
        os.dup2(control, standard)
    os.close(control)
    # Left open, so that the test sees the end of this process and not less.
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    try:
        ROLES[role](*arguments)
    except BaseException:
        puppet.say({"error": role, "message": traceback.format_exc()})
        return 1
    return 0


if __name__ == "__main__":
    main()
