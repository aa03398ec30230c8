"""Clients that die or hang up: what they held comes back, and to nobody else."""

from __future__ import annotations

import os
import signal
from typing import Any, get_args

import pytest
from daemon_bench import PAGE_BYTES, Daemon, PuppetError, StartDaemon, until

from gpupool.daemon.protocol import PROTOCOL_VERSION, ClientMessage

SIGKILL = signal.SIGKILL


# What a client says in its life, with the answers it waits for, that it may die after each.
LIFE: list[tuple[list[Any], str | None]] = [
    (["Hello", PROTOCOL_VERSION, "mortal"], "Welcome"),
    (["HostMemory", 5000], "HostMemory"),
    (["Declare", 2, 100, 200], "Ok"),
    (["Acquire"], "Granted"),
    (["Holds"], None),
    (["Parkable", 4096], None),
    (["Arrived", [0.1, 0.1, 5]], None),
    (["HostMemory", PAGE_BYTES], "HostMemory"),
    (["ShareImage", PAGE_BYTES, "5a" * 32], "SharedImage"),
    (["ImageSettled", True, True], None),
    (["Extend", 1], "Granted"),
    (["WrongPages", "what was granted last"], None),
    (["Release", "what was granted last"], None),
    (["Kept", "it cannot leave"], None),
    (["Damaged", "bytes 0 to 5"], None),
    (["Lasting", 60.0], None),
    (["Idle", False], None),
    (["Idle", True], None),
    (["BlocksMoved", 5, 0.1, 5, 0.1, 0], None),
    (["Yielded", [0.1, 0.1, 5]], None),
    (["ImageUnshared"], None),
    (["HostMemory", 1], "HostMemory"),
    (["HostMemoryUnused", 1], None),
    (["HostMemories", [5000, 1], True], "HostGranted"),
    (["Unparked", 0, 0], None),
    (["Declare", 4, 100, 200], "Ok"),
    (["Acquire"], None),  # waits for the other model
    (["Cancel"], "Ok"),
    (["Acquire", False, True], None),  # ahead
    (["Hurry"], None),
    (["Cancel"], "Ok"),
    (["WorkGoals", 1.0, 0.1], None),
    (["Working", [[1, "cmpl-x", 5]], [[1, 2]], [1], 2, 0.1], None),
    (["Announce", "mortal", "y", 7], None),
    (["Over", "y"], None),
    (["WhyQuery"], "Why"),
    (["StatusQuery"], "StatusReply"),
    (["Prefetch", "other"], "Ok"),
    (["Goodbye"], None),
]


def test_killed_after_each_message(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(options=("--policy", "deadlines"))
    kinds = {kind.__name__ for kind in get_args(ClientMessage)}
    assert {message[0] for message, _ in LIFE} | {"Cooled", "Parked"} == kinds  # which only answer
    other = daemon.model("other", kv_cache=100)
    other.do("enter")
    other.do("fill", "kv_cache", 9)
    for length in range(len(LIFE) + 1):
        mortal = daemon.puppet()
        mortal.do("connect")
        for number, (message, answer) in enumerate(LIFE[:length]):
            mortal.do("send", *message)
            if answer and number < length - 1:
                assert mortal.do("receive") == answer
        mortal.kill()
        daemon.until_ledger(free=3, host_bytes=4096)
        assert [m.name for m in daemon.status().models] == ["other"]
        assert other.do("values", "kv_cache") == [0, 9]
        other.do("leave")
        other.do("swap_out")
        other.do("enter")


def test_killed_while_holding_pages(daemon: Daemon) -> None:
    mortal = daemon.model("mortal", kv_cache=2 * PAGE_BYTES)
    mortal.do("enter")
    mortal.do("fill", "kv_cache", 1)
    waiting = daemon.model("waiting", kv_cache=4 * PAGE_BYTES)
    waiting.start("enter")
    daemon.until_state("waiting", "waiting")
    mortal.kill()
    waiting.answer()  # granted what the dead one held
    assert waiting.do("values", "kv_cache") == [0]
    assert daemon.model_status("mortal") is None
    waiting.kill()
    daemon.until_ledger(free=4, host_bytes=0)


def test_killed_while_waiting(daemon: Daemon) -> None:
    holder = daemon.model("holder", kv_cache=3 * PAGE_BYTES)
    holder.do("enter")
    mortal = daemon.model("mortal", kv_cache=2 * PAGE_BYTES)
    third = daemon.model("third", kv_cache=2 * PAGE_BYTES)
    mortal.start("enter")
    daemon.until_state("mortal", "waiting")
    third.start("enter")
    daemon.until_state("third", "waiting")
    mortal.kill()
    until(lambda: daemon.model_status("mortal") is None)
    holder.do("leave")  # revoked for the first in line; the next gets the room
    third.answer()
    third.do("leave")
    third.do("close")
    holder.do("close")
    daemon.until_ledger(free=4, host_bytes=0)


@pytest.mark.parametrize("moment", ["stop_before_swap_in", "stop_before_swap_out"])
def test_killed_in_the_middle_of_a_swap(start_daemon: StartDaemon, moment: str) -> None:
    daemon = start_daemon(pages=16)
    other = daemon.model("other", kv_cache=100)
    mortal = daemon.model("mortal", kv_cache=15 * PAGE_BYTES)
    mortal.do("enter")
    mortal.do("fill", "kv_cache", 3)
    mortal.do("leave")
    if moment == "stop_before_swap_in":
        mortal.do("swap_out")
        mortal.do(moment)
        mortal.start("enter")
    else:
        mortal.do(moment)
        mortal.start("swap_out")
    assert mortal.stopped()
    mortal.kill()
    daemon.until_ledger(free=16, host_bytes=4096)
    other.cycle("kv_cache", 0)
    successor = daemon.model("mortal", workspace=16 * PAGE_BYTES)
    successor.do("enter")
    assert successor.do("values", "workspace") == [0]


def test_a_secret_is_not_read_by_the_next_owner(daemon: Daemon) -> None:
    secretive = daemon.model("secretive", weights=100, workspace=3 * PAGE_BYTES)
    secretive.do("enter")
    secretive.do("fill", "workspace", 0x5E)
    secretive.do("fill", "weights", 0x5E)
    secretive.kill()
    daemon.until_ledger(free=4, host_bytes=0)
    curious = daemon.model("curious", weights=100, kv_cache=100, workspace=2 * PAGE_BYTES)
    curious.do("enter")  # on all four pages
    for tag in ("weights", "kv_cache", "workspace"):
        assert curious.do("values", tag) == [0]


@pytest.mark.parametrize("farewell", ["hang_up", "Goodbye", "out of turn", "malformed"])
def test_a_connection_that_ends_with_pages_in_hand_ends_its_process(
    daemon: Daemon, farewell: str
) -> None:
    mortal = daemon.puppet()
    mortal.do("connect")
    for message, answer in LIFE[:4]:
        mortal.do("send", *message)
        assert mortal.do("receive") == answer
    assert daemon.status().pages_granted == 2
    if farewell == "hang_up":
        mortal.start("hang_up")
    elif farewell == "Goodbye":
        mortal.start("send", "Goodbye")
    elif farewell == "out of turn":
        mortal.start("send", "Hello", PROTOCOL_VERSION, "again")
    else:
        mortal.start("send_bytes", "c1")
    assert mortal.ended_by() == SIGKILL
    daemon.until_ledger(free=4, host_bytes=0)


@pytest.mark.parametrize("farewell", ["hang_up", "Goodbye"])
def test_a_connection_that_ends_with_host_memory_in_hand_is_accounted_until_exit(
    daemon: Daemon, farewell: str
) -> None:
    client = daemon.puppet()
    client.do("connect")
    for message, answer in LIFE[:3]:
        client.do("send", *message)
        assert client.do("receive") == answer
    if farewell == "Goodbye":
        client.do("send", "Goodbye")
    client.do("hang_up")
    until(lambda: daemon.model_status("mortal").state == "out")
    daemon.until_ledger(free=4, host_bytes=8192)
    client.do("connect")  # it lives, but its name is taken while it holds what it was given
    client.do("send", *LIFE[0][0])
    assert client.do("receive") == "Refused"
    client.kill()
    daemon.until_ledger(free=4, host_bytes=0)


def test_leaving_in_good_order_while_a_revoke_is_on_its_way(daemon: Daemon) -> None:
    client = daemon.puppet()
    client.do("connect")
    for message, answer in LIFE[:4]:
        client.do("send", *message)
        assert client.do("receive") == answer
    other = daemon.model("other", kv_cache=4 * PAGE_BYTES)
    other.start("enter")
    daemon.until_state("mortal", "leaving")  # so the Revoke lies unread in its socket
    os.kill(daemon.process.pid, signal.SIGSTOP)
    client.do("send", "Yielded", None)
    client.do("send", "HostMemoryUnused", 5000)
    client.do("send", "Goodbye")
    client.do("hang_up")  # which resets the connection, the Revoke being unread
    os.kill(daemon.process.pid, signal.SIGCONT)
    other.answer()
    until(lambda: daemon.model_status("mortal") is None)
    assert client.process.poll() is None


def test_a_fork_that_shares_the_pages_keeps_them_fenced(daemon: Daemon) -> None:
    parent = daemon.model("parent", kv_cache=2 * PAGE_BYTES)
    parent.do("enter")
    child = parent.do("fork")
    try:
        parent.kill()
        daemon.until_ledger(free=2, fenced=2)
        other = daemon.model("other", kv_cache=2 * PAGE_BYTES)
        other.cycle("kv_cache", 5)  # on the free pages; the others stay fenced
        third = daemon.model("third", kv_cache=3 * PAGE_BYTES)
        with pytest.raises(PuppetError, match=r"no memory within 0[.]1 s"):
            third.do("enter", 0.1)
        assert daemon.status().pages_fenced == 2
        third.start("enter")
    finally:
        os.kill(child, SIGKILL)
    third.answer()
    assert third.do("values", "kv_cache") == [0]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_daemon_ends(start_daemon: StartDaemon, number: int) -> None:
    daemon = start_daemon()
    holder = daemon.model("holder", kv_cache=3 * PAGE_BYTES)
    holder.do("enter")
    holder.do("fill", "kv_cache", 8)
    waiting = daemon.model("waiting", kv_cache=2 * PAGE_BYTES)
    waiting.start("enter")
    daemon.until_state("waiting", "waiting")
    daemon.process.send_signal(number)
    with pytest.raises(PuppetError, match="DaemonUnavailableError: the pool daemon went away"):
        waiting.answer()  # at once, not at the end of its time
    assert holder.do("values", "kv_cache") == [8]  # what is resident stays usable
    holder.do("leave")
    holder.do("swap_out")
    with pytest.raises(PuppetError, match="DaemonUnavailableError"):
        holder.do("enter")
    with pytest.raises(PuppetError, match="DaemonUnavailableError"):
        holder.do("region", "weights", 100)
    holder.do("close")
    late = daemon.puppet()
    with pytest.raises(PuppetError, match=r"no pool daemon answers on .*: start one with"):
        late.do("join", "late")
    daemon.abandon()
