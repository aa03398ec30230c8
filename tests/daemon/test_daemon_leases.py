"""Leases through the daemon: grants, refusals, cancels, the status, several processes at once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from daemon_bench import PAGE_BYTES, Daemon, PuppetError, StartDaemon, until

from gpupool.daemon import protocol as p
from gpupool.daemon.client import DaemonSession
from gpupool.errors import DoesNotFitError, LeaseTimeoutError, RefusedError, UsageError


def test_two_names_alike(daemon: Daemon) -> None:
    first = daemon.model("same", kv_cache=100)
    second = daemon.puppet()
    with pytest.raises(PuppetError, match="RefusedError: a model named 'same' is in the pool"):
        second.do("join", "same")
    refusal = daemon.status().refusals[-1]
    assert (refusal.model, refusal.pid) == ("same", second.process.pid)
    first.cycle("kv_cache", 4)
    first.do("close")
    second.join("same", kv_cache=100).cycle("kv_cache", 5)


@pytest.mark.parametrize("name", ["", "x" * 257, "two\nlines", "\x1b[31mred"])
def test_names_that_cannot_be_shown(daemon: Daemon, name: str) -> None:
    with pytest.raises(RefusedError, match="a model's name has 1 to 256 printable characters"):
        DaemonSession(daemon.socket_path, name)
    assert daemon.status().refusals[-1].model.isprintable()
    assert daemon.status().models == []


def test_another_version_of_the_protocol(daemon: Daemon) -> None:
    reply = daemon.raw().ask(p.Hello(p.PROTOCOL_VERSION + 1, "modern"))
    assert isinstance(reply, p.Refused)
    assert "run the same gpupool on both sides" in reply.message


def test_what_can_never_fit_is_refused_with_both_numbers(daemon: Daemon) -> None:
    big = daemon.model("big", weights=3 * PAGE_BYTES, kv_cache=2 * PAGE_BYTES)
    with pytest.raises(PuppetError) as caught:
        big.do("enter")
    assert caught.value.kind == "DoesNotFitError"
    assert f"needs {5 * PAGE_BYTES} bytes" in caught.value.message
    assert f"budget is {4 * PAGE_BYTES} bytes" in caught.value.message
    assert f"weights {3 * PAGE_BYTES}, KV cache {2 * PAGE_BYTES}" in caught.value.message
    refusal = daemon.status().refusals[-1]
    assert (refusal.model, refusal.message) == ("big", caught.value.message)
    session = DaemonSession(daemon.socket_path, "numbers")
    with pytest.raises(DoesNotFitError) as error:
        session.declare(2**32, 0, 0)
    assert error.value.needed_bytes == 2**32 * PAGE_BYTES
    assert error.value.budget_bytes == 4 * PAGE_BYTES
    session.declare(1, 0, 0)  # it can still ask for what fits
    session.close()


def test_host_memory_is_limited(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(options=("--host-budget-bytes", "10000"))
    model = daemon.model("a", weights=5000)
    with pytest.raises(PuppetError, match=r"8192 bytes of host memory .* and 1808 of the host bud"):
        model.do("region", "kv_cache", 5000)
    assert daemon.status().host_bytes == 8192
    session = DaemonSession(daemon.socket_path, "b")
    for size_bytes in (0, -1, 2**60):
        with pytest.raises(UsageError):
            session.host_memory(size_bytes)
    with pytest.raises(RefusedError):
        session.host_memory(4096)
    session.close()
    model.cycle("weights", 3)
    model.do("close")
    daemon.until_ledger(free=4, host_bytes=0)


def test_host_memory_cannot_be_made_larger_or_smaller(daemon: Daemon) -> None:
    session = DaemonSession(daemon.socket_path, "a")
    fd = session.host_memory(5000)
    for size_bytes in (4000, 6000):
        with pytest.raises(PermissionError):
            os.ftruncate(fd, size_bytes)
    os.close(fd)
    session.close()


def test_an_acquire_that_takes_too_long_is_cancelled(daemon: Daemon) -> None:
    holder = daemon.model("holder", kv_cache=3 * PAGE_BYTES)
    holder.do("enter")
    waiting = daemon.model("waiting", kv_cache=2 * PAGE_BYTES)
    for _ in range(3):
        with pytest.raises(PuppetError, match="LeaseTimeoutError: no memory within 0"):
            waiting.do("enter", 0.02)
        until(lambda: daemon.model_status("waiting").state == "out")  # type: ignore[union-attr]
    holder.do("leave")
    waiting.do("enter")
    assert waiting.do("values", "kv_cache") == [0]


def test_cancels_race_grants(daemon: Daemon) -> None:
    """However the race ends, both sides agree on who holds what."""
    sessions = [DaemonSession(daemon.socket_path, name) for name in "ab"]
    for session in sessions:
        session.declare(3, 0, 0)
    granted = 0
    for number in range(200):
        one, other = sessions[number % 2], sessions[1 - number % 2]
        assert len(one.acquire(60.0).pages) == 3
        with pytest.raises(LeaseTimeoutError):
            other.acquire(0.0)
        one.give_back(None)
        # Nobody is in the way, but no time is left: the Cancel meets the grant or precedes it.
        try:
            other.acquire(1e-4 * (number % 5))
        except LeaseTimeoutError:
            continue
        granted += 1
        other.give_back(None)
    assert granted > 0
    daemon.until_ledger(free=4)
    for session in sessions:
        assert len(session.acquire(60.0).pages) == 3
        session.give_back(None)
        session.close()


def test_more_pages_than_a_message_has_descriptors(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(pages=600)
    puppet = daemon.puppet()
    puppet.do("connect")
    puppet.do("send", "Hello", p.PROTOCOL_VERSION, "large")
    puppet.do("send", "Declare", 254, 0, 0)
    puppet.do("send", "Acquire")
    assert [puppet.do("receive") for _ in range(4)] == ["Welcome", "Ok", "Granted", "Granted"]
    puppet.kill()
    session = DaemonSession(daemon.socket_path, "larger")
    for pages in (600, 1, 600, 507):
        session.declare(pages, 0, 0)
        granted = session.acquire(60.0).pages
        assert len({id(page) for page in granted}) == pages
        assert daemon.status().pages_granted == pages
        session.give_back(None)
    session.close()
    daemon.until_ledger(free=600)


def test_a_status_of_many_models_with_long_histories(daemon: Daemon) -> None:
    swap = p.SwapFigures(123.456, 123.4, 2**53)
    name = "\N{GRINNING FACE}" * 250
    clients = []
    for number in range(40):
        clients.append(daemon.raw())
        clients[-1].ask(p.Hello(p.PROTOCOL_VERSION, f"{name}{number}"))
        assert clients[-1].ask(p.Declare(1, 2**53, 2**53)) == p.Ok()
    for client in clients[:2]:
        for _ in range(p.HISTORY + 10):
            assert isinstance(client.ask(p.Acquire()), p.Granted)
            client.send(p.Arrived(swap))
            client.send(p.Yielded(swap))
    for client in clients:  # as many and as long as they can be
        refused = client.ask(p.Declare(2**32, 2**53, 2**53))
        assert refused.kind == "does_not_fit"
    status = daemon.status()
    assert [m.name for m in status.models] == [f"{name}{number}" for number in range(40)]
    assert [len(m.swap_in_s) for m in status.models] == [p.HISTORY] * 2 + [0] * 38
    assert status.models[0].swap_ins == status.models[0].swap_outs == p.HISTORY + 10
    assert len(status.refusals) == 32
    clients[0].close()
    clients[20].close()
    until(lambda: len(daemon.status().models) == 38)


def test_the_daemon_loads_no_cuda(daemon: Daemon) -> None:
    daemon.model("a", kv_cache=100).cycle("kv_cache", 1)
    maps = Path(f"/proc/{daemon.process.pid}/maps").read_text()
    assert "_core" in maps
    for library in ("libcuda", "libnvidia", "libcudart", "libtorch"):
        assert library not in maps


_HAMMER = """
import ctypes, sys, threading
from pathlib import Path
from gpupool.daemon.client import DaemonSession
from gpupool.model import Model

SWAPS = 40
name = sys.argv[2]
model = Model(name, DaemonSession(Path(sys.argv[1]), name), lease_timeout_s=60.0)
model.gate.set_idle(False)
kv = model.region("kv_cache", 3_000_000)
words = (ctypes.c_uint64 * (kv.bytes // 8)).from_address(kv.address)
lock = threading.Lock()
count = swaps = 0
last = None
wrong = []

def work():
    global count, swaps, last
    while swaps < SWAPS and not wrong:
        with lock, model.resident():
            if model.last_swap_in is not last:
                last = model.last_swap_in
                swaps += 1
                for at in range(0, len(words), 1000):
                    if words[at] != count:
                        wrong.append(f"{name}: word {at} is {words[at]}, not {count}")
            count += 1
            for at in range(0, len(words), 1000):
                words[at] = count
                kv.mark_written([(8 * at, 8)])
        if count % 8 == 0:
            model.swap_out()  # unasked, which may cross a revoke

threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for thread in threads: thread.join()
model.close()
sys.exit("; ".join(wrong) or 0)
"""


def test_several_processes_hammer_the_pool(start_daemon: StartDaemon) -> None:
    """Each model needs half of the pool and a bit; none starves, and none reads another's data."""
    daemon = start_daemon(pages=3, options=("--turn-ms", "2"))
    command = [sys.executable, "-c", _HAMMER, str(daemon.socket_path)]
    clients = [
        subprocess.Popen([*command, name], stderr=subprocess.PIPE, text=True) for name in "abc"
    ]
    try:
        for client in clients:
            _, error = client.communicate(timeout=100)
            assert client.returncode == 0, error
    finally:
        for client in clients:
            client.kill()
            client.wait()
    daemon.until_ledger(free=3, host_bytes=0)
    assert daemon.status().refusals == []
