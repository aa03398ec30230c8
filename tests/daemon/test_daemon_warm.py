"""Models keep pages that nobody needs while they are out, and come before they are used."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
from typing import Any

import pytest
from daemon_bench import PAGE_BYTES, Daemon, StartDaemon, until
from desk_bench import PAGES, REVOKE_S, Bench

from gpupool.daemon import client, queries
from gpupool.daemon import protocol as p
from gpupool.errors import ProtocolError, RefusedError
from gpupool.model import Model


def held(daemon: Daemon) -> dict[str, tuple[str, int]]:
    return {m.name: (m.state, m.held_bytes // PAGE_BYTES) for m in daemon.status().models}


def test_a_model_comes_back_to_what_nobody_needed(daemon: Daemon) -> None:
    """Four pages: a has three, b needs two."""
    a = daemon.model("a", weights=3 * PAGE_BYTES)
    b = daemon.model("b", kv_cache=2 * PAGE_BYTES)
    a.do("enter")
    a.do("fill", "weights", 7)
    a.do("leave")
    b.do("enter")
    assert held(daemon) == {"a": ("out", 2), "b": ("resident", 2)}
    assert a.do("warm_bytes") == 2 * PAGE_BYTES
    b.do("fill", "kv_cache", 9)
    b.do("leave")
    a.do("enter")
    assert a.do("values", "weights") == [7]
    assert a.do("last_copied_bytes") == PAGE_BYTES
    assert held(daemon) == {"a": ("resident", 3), "b": ("out", 1)}
    b.start("enter")  # is first in line and has a page: what it needs is one of a's
    daemon.until_state("b", "waiting")
    a.do("leave")
    b.answer()
    assert b.do("values", "kv_cache") == [9]
    assert held(daemon) == {"a": ("out", 2), "b": ("resident", 2)}


def test_what_was_put_right_is_counted(daemon: Daemon) -> None:
    a = Model("a", client.DaemonSession(daemon.socket_path, "a"))
    b = daemon.model("b", kv_cache=2 * PAGE_BYTES)
    weights = a.region("weights", 3 * PAGE_BYTES)
    with a.resident(writes=True):
        ctypes.memset(weights.address, 3, 3 * PAGE_BYTES)
    b.do("enter")
    b.do("leave")
    assert a.warm_bytes == 2 * PAGE_BYTES
    ctypes.memset(weights.address + PAGE_BYTES, 4, 1)  # by nobody who may
    with a.resident():
        assert ctypes.string_at(weights.address, 3 * PAGE_BYTES) == b"\x03" * 3 * PAGE_BYTES
    until(lambda: daemon.status().models[0].recopied_bytes == PAGE_BYTES)
    assert daemon.status().models[0].damaged == 0
    a.close()


@pytest.mark.parametrize("stays", [True, False])
def test_what_was_written_through_no_door_is_told_and_lost(
    daemon: Daemon, caplog: pytest.LogCaptureFixture, stays: bool
) -> None:
    a = Model("a", client.DaemonSession(daemon.socket_path, "a"))
    weights = a.region("weights", 3 * PAGE_BYTES)
    with a.resident(writes=True):
        ctypes.memset(weights.address, 3, 3 * PAGE_BYTES)
    a.swap_out()
    for _ in range(2):  # found in each, and nothing where there is nothing
        with a.resident():
            ctypes.memset(weights.address + PAGE_BYTES, 4, 1)
        if stays:
            b = daemon.model("b", kv_cache=2 * PAGE_BYTES)
            b.do("enter")
            b.do("leave")
            b.do("close")
            assert a.warm_bytes == 2 * PAGE_BYTES
        else:
            a.swap_out()
        with a.resident():
            assert ctypes.string_at(weights.address, 3 * PAGE_BYTES) == b"\x03" * 3 * PAGE_BYTES
        a.swap_out()
    assert a.last_swap_out is not None
    assert a.last_swap_out.audited_bytes == 3 * PAGE_BYTES
    until(lambda: daemon.status().models[0].unmarked_bytes == 2 * PAGE_BYTES)
    told = [r.getMessage() for r in caplog.records if "though nobody said" in r.getMessage()]
    assert len(told) == 2
    assert f"model 'a': {PAGE_BYTES} bytes" in told[0]
    a.close()


def test_an_interrupt_as_a_model_has_left_does_not_end_its_session(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = client.DaemonSession(daemon.socket_path, "a")
    a = Model("a", session)
    a.region("weights", 2 * PAGE_BYTES)
    with a.resident():
        pass
    give_back = session.give_back

    def interrupted(*told: Any) -> None:
        monkeypatch.undo()
        give_back(*told)
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "give_back", interrupted)
    with pytest.raises(KeyboardInterrupt):
        a.swap_out()
    with a.resident():
        assert held(daemon) == {"a": ("resident", 2)}
    a.swap_out()
    until(lambda: held(daemon) == {"a": ("out", 0)})
    a.close()


def test_warm_pages_are_given_up_before_a_model_is(daemon: Daemon) -> None:
    a = daemon.model("a", weights=2 * PAGE_BYTES)
    b = daemon.model("b", weights=3 * PAGE_BYTES)
    c = daemon.model("c", weights=PAGE_BYTES)
    for model, value in ((a, 1), (b, 2)):
        model.do("enter")
        model.do("fill", "weights", value)
        model.do("leave")
    assert held(daemon)["a"] == ("out", 1)
    c.do("enter")
    assert held(daemon) == {"a": ("out", 0), "b": ("resident", 3), "c": ("resident", 1)}
    c.do("leave")
    a.do("enter")
    assert a.do("values", "weights") == [1]
    assert a.do("last_copied_bytes") == 2 * PAGE_BYTES


def test_a_resident_model_grows_into_warm_pages_of_others(daemon: Daemon) -> None:
    a = daemon.model("a", weights=2 * PAGE_BYTES)
    b = daemon.puppet().join("b", kv_cache=3 * PAGE_BYTES)
    a.do("enter")
    a.do("fill", "weights", 5)
    a.do("leave")
    b.do("enter")
    assert held(daemon) == {"a": ("out", 1), "b": ("resident", 3)}
    bench = Bench()
    warm, grows = bench.worker("warm", 2, 2), bench.worker("grows", 3)
    (granted,) = bench.tell(warm, p.Acquire())
    assert bench.tell(grows, p.Acquire()) == []
    assert warm.take() == [p.Revoke(REVOKE_S, 1, lease=1)]
    bench.tell(warm, p.Release(granted.pages[1:], leaving=True), p.Yielded(None, 1))
    assert grows.take()[0].last
    assert bench.tell(grows, p.Extend(2))[0].kind == "pool_full"
    assert warm.take() == []  # not for what cannot be
    assert bench.tell(grows, p.Extend(1)) == []
    assert warm.take() == [p.Cool(REVOKE_S, 1)]
    bench.tell(warm, p.Release(granted.pages[:1], leaving=True))
    assert len(grows.take()[0].pages) == 1
    bench.tell(warm, p.Cooled())
    assert bench.ledger() == (0, PAGES, 0)
    assert bench.wake_at_s is None


def test_who_does_not_give_warm_pages_up_is_killed() -> None:
    bench = Bench()
    warm, other = bench.worker("warm", 4, 4), bench.worker("other", 3)
    (granted,) = bench.tell(warm, p.Acquire())
    bench.tell(other, p.Acquire())
    bench.tell(warm, p.Release(granted.pages[1:], leaving=True), p.Yielded(None, 1))
    bench.tell(other, p.Yielded(None))
    last = bench.worker("last", PAGES)
    bench.tell(last, p.Acquire())
    assert warm.take()[-1] == p.Cool(REVOKE_S, 1)
    with pytest.raises(ProtocolError, match="keeps 2 pages"):
        bench.tell(warm, p.Yielded(None, 2))
    assert bench.tell(warm, p.Acquire()) == []  # nothing before it has answered
    bench.now_s = REVOKE_S
    bench.settle()
    assert warm.kills == 1
    warm.connected, warm.exited = False, True
    assert bench.lose(warm)
    assert len(last.take()[0].pages) == PAGES


def test_who_is_not_asked_for_warm_pages_gives_none() -> None:
    bench = Bench()
    peer = bench.worker("a", 1, 1)
    with pytest.raises(ProtocolError, match="was not asked"):
        bench.tell(peer, p.Cooled())


def test_a_model_that_is_killed_with_warm_pages_gives_them_back(daemon: Daemon) -> None:
    a = daemon.model("a", weights=3 * PAGE_BYTES)
    b = daemon.model("b", kv_cache=2 * PAGE_BYTES)
    for model in (a, b):
        model.do("enter")
        model.do("leave")
    assert held(daemon)["a"] == ("out", 2)
    a.kill()
    until(lambda: held(daemon) == {"b": ("resident", 2)})
    b.do("swap_out")
    daemon.until_ledger(free=4, host_bytes=2 * PAGE_BYTES)


def test_a_model_that_closes_gives_its_warm_pages_back(daemon: Daemon) -> None:
    a = daemon.model("a", weights=3 * PAGE_BYTES)
    b = daemon.model("b", kv_cache=2 * PAGE_BYTES)
    for model in (a, b):
        model.do("enter")
        model.do("leave")
    a.do("close")
    assert a.process.poll() is None
    b.do("close")
    daemon.until_ledger(free=4, host_bytes=0)


def test_a_model_is_there_before_it_is_used(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(pages=4, options=("--turn-ms", "1000000"))
    models = {name: daemon.model(name, weights=2 * PAGE_BYTES) for name in "abc"}
    for value, model in enumerate(models.values()):
        model.do("enter")
        model.do("fill", "weights", value + 1)
        model.do("leave")
    until(lambda: held(daemon)["a"] == ("out", 0))
    command = [sys.executable, "-m", "gpupool", "prefetch", "--socket", str(daemon.socket_path)]
    models["c"].do("set_idle", False)  # has work, so b makes room
    subprocess.run([*command, "a", "--share", "0.5"], check=True)
    until(lambda: held(daemon) == {"a": ("resident", 2), "b": ("out", 0), "c": ("resident", 2)})
    models["a"].do("enter")
    assert models["a"].do("values", "weights") == [1]
    models["a"].do("set_idle", False)
    queries.prefetch(daemon.socket_path, "b")  # for which nobody leaves
    daemon.until_state("b", "waiting")
    models["a"].do("leave")
    models["a"].do("set_idle", True)
    # It is resident once it is granted its lease, and has told what it moved a little later.
    until(lambda: daemon.status().models[1].moved_ahead.bytes > 0)
    a_status, b_status = daemon.status().models[:2]
    assert b_status.state == "resident"
    assert a_status.moved_ahead.bytes == b_status.moved_ahead.bytes == 2 * PAGE_BYTES
    assert a_status.moved_out.bytes == 2 * PAGE_BYTES  # once: nobody wrote to it again
    assert a_status.moved_ahead.seconds > 0 and a_status.moved_out.seconds > 0
    found = subprocess.run([*command, "nobody"], capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert "no model named 'nobody' is in the pool" in found.stderr
    found = subprocess.run([*command, "a", "--share", "0"], capture_output=True, check=False)
    assert found.returncode == 2
    with pytest.raises(RefusedError, match="no model named"):
        queries.prefetch(daemon.socket_path, "lost")
    assert signal.SIGKILL not in {-(m.process.poll() or 0) for m in models.values()}
