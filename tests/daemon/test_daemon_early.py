"""Weights that come in while the model before still saves its KV blocks, in a pool of one."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from daemon_bench import PAGE_BYTES, Daemon, until

from gpupool._core import Driver, FaultPlan, Region, open_host_driver, with_faults
from gpupool.daemon import client
from gpupool.daemon.protocol import Cancel
from gpupool.errors import (
    DaemonUnavailableError,
    DamagedMemoryError,
    DriverError,
    LeaseTimeoutError,
    UsageError,
)
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.paged import PagedKv
from gpupool.model import Model
from gpupool.session import PageGrant

BLOCKS = 16
BLOCK_BYTES = 64 << 10
LAYOUT = BlockLayout.of([(0, BLOCK_BYTES, BLOCK_BYTES)], blocks=BLOCKS)


class Paged:
    """A model of three pages of weights and one of KV: as much as the pool has."""

    def __init__(self, daemon: Daemon, name: str, byte: int) -> None:
        self.model = Model(name, client.DaemonSession(daemon.socket_path, name))
        self.weights: Region = self.model.region("weights", 3 * PAGE_BYTES)
        self.byte = byte
        ctypes.memset(ctypes.addressof(ctypes.c_char.from_buffer(self.weights.image())), byte, 100)
        self.weights.adopt_image()
        self.kv = PagedKv(self.model, LAYOUT, region_bytes=PAGE_BYTES, dtype="int8")
        self.block = b""

    def step(self, timeout_s: float = 30.0) -> None:
        """Check what is there, and write a block anew."""
        gate, at = self.model.gate, self.kv.region.address
        gate.open_step(timeout_s)
        try:
            assert ctypes.string_at(self.weights.address, 100) == bytes([self.byte]) * 100
            self.kv.require([3])
            assert ctypes.string_at(at + 3 * BLOCK_BYTES, len(self.block)) == self.block
            self.kv.write([3])
            self.block = bytes([self.byte + len(self.block) % 7]) * 500
            ctypes.memmove(at + 3 * BLOCK_BYTES, self.block, 500)
        finally:
            gate.close_step()

    @property
    def begun(self) -> bool:
        """Whether all its weights are there before it is."""
        return self.model.warm_bytes == 3 * PAGE_BYTES


def held(daemon: Daemon) -> dict[str, int]:
    return {m.name: m.held_bytes // PAGE_BYTES for m in daemon.status().models}


def save_later(paged: Paged, monkeypatch: pytest.MonkeyPatch, wait: Callable[[], object]) -> None:
    save = paged.kv.save

    def late() -> None:
        wait()
        save()

    monkeypatch.setattr(paged.kv, "save", late)


def test_weights_are_there_before_the_other_has_saved(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = Paged(daemon, "a", 0x33), Paged(daemon, "b", 0x44)
    a.step()
    with monkeypatch.context() as patched:
        save_later(a, patched, lambda: until(lambda: b.begun))
        b.step()
        assert held(daemon) == {"a": 0, "b": 4}
    report = b.model.last_swap_in
    assert report is not None and report.copied_bytes == 3 * PAGE_BYTES
    for one in (a, b, a, b):
        one.step()
    until(lambda: held(daemon) == {"a": 0, "b": 4})
    a.model.close()
    b.model.close()


def test_a_bit_that_flips_in_what_came_early_is_put_right_before_a_step(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = Paged(daemon, "a", 0x33), Paged(daemon, "b", 0x44)
    a.step()

    def flips() -> None:
        until(lambda: b.begun)
        ctypes.memset(b.weights.address + 99, 0x45, 1)

    with monkeypatch.context() as patched:
        save_later(a, patched, flips)
        b.step()
    report = b.model.last_swap_in
    assert report is not None and report.recopied_bytes > 0
    for one in (a, b):
        one.step()
    a.model.close()
    b.model.close()


def test_damage_that_is_found_early_has_the_name_of_the_model(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = Paged(daemon, "a", 0x33), Paged(daemon, "b", 0x44)
    a.step()
    flipped = ctypes.c_char.from_buffer(b.weights.image(), PAGE_BYTES + 1)
    flipped.value = b"\x01"
    refused = threading.Event()
    with monkeypatch.context() as patched:
        save_later(a, patched, refused.wait)
        with ThreadPoolExecutor(1) as thread:
            stepping = thread.submit(b.step)
            until(stepping.done)  # with the weights of the other as they were
            refused.set()
            with pytest.raises(DamagedMemoryError, match=r"^model 'b': bytes 2097152 to 4194304 "):
                stepping.result()
    until(lambda: daemon.status().models[1].damaged == 1)
    refusals = daemon.status().refusals
    assert any(r.model == "b" and "bytes 2097152 to 4194304" in r.message for r in refusals)
    flipped.value = b"\x00"
    del flipped
    for one in (b, a, b):
        one.step()
    a.model.close()
    b.model.close()


def test_who_waits_no_longer_lets_go_of_what_it_began_with(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = Paged(daemon, "a", 0x33), Paged(daemon, "b", 0x44)
    a.step()
    b_gave_up = threading.Event()
    with monkeypatch.context() as patched:
        save_later(a, patched, lambda: b_gave_up.wait(30))
        acquire = b.model._session.acquire

        def impatient(timeout_s: float, early: client.Early, ahead: client.Wanted) -> object:
            with ThreadPoolExecutor(1) as thread:
                waiting = thread.submit(acquire, 2.0, early, ahead)
                until(lambda: b.begun)
                return waiting.result()

        patched.setattr(b.model._session, "acquire", impatient)
        with pytest.raises(LeaseTimeoutError):
            b.step()
        assert b.model.warm_bytes == 0
        assert held(daemon) == {"a": 1, "b": 0}
        b_gave_up.set()
        until(lambda: held(daemon) == {"a": 0, "b": 0})
    for one in (b, a, b):
        one.step()
    a.model.close()
    b.model.close()


@pytest.mark.parametrize("persistent", [False, True])
def test_whatever_call_fails_both_models_go_on(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, persistent: bool
) -> None:
    plan = FaultPlan()

    def faulty(device: str) -> Driver:
        assert device == "host"
        return with_faults(open_host_driver(), plan)

    a = Paged(daemon, "a", 0x33)
    monkeypatch.setattr(client, "open_driver", faulty)
    b = Paged(daemon, "b", 0x44)
    b.step()
    failed = early = 0
    answered = threading.Event()
    save_later(a, monkeypatch, lambda: until(lambda: b.begun or answered.is_set()))
    for nth in range(1, 200):
        a.step()
        answered.clear()
        plan.arm(nth, 2, persistent)
        try:
            b.step()
        except DriverError:
            failed += 1
            early += held(daemon)["a"] > 0
        injected = plan.injected
        plan.disarm()
        answered.set()
        b.step()
        if injected == 0:
            break
    else:
        pytest.fail("a swap-in makes no end of driver calls")
    assert failed >= 8
    assert early >= 3  # of them before the other had left
    a.step()
    until(lambda: held(daemon) == {"a": 4, "b": 0})
    a.model.close()
    b.model.close()


def test_a_grant_of_another_length_is_refused_before_a_page_is_mapped(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    a = Paged(daemon, "a", 0x33)
    acquire = a.model._session.acquire
    with monkeypatch.context() as patched:
        patched.setattr(
            a.model._session,
            "acquire",
            lambda *asked: PageGrant(acquire(*asked).pages[1:]),
        )
        with pytest.raises(UsageError, match="3 pages were granted and 4 asked"):
            a.step()
    until(lambda: held(daemon) == {"a": 0})
    a.step()
    a.model.close()


def test_an_interrupt_while_a_request_is_taken_back_ends_the_connection(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the answer to it would be taken for that to the next question."""
    a, b = Paged(daemon, "a", 0x33), Paged(daemon, "b", 0x44)
    with a.model.resident():
        b.model.declare()
        session = b.model._session
        assert isinstance(session, client.DaemonSession)
        send = session._link.send

        def interrupted(message: object) -> None:
            if isinstance(message, Cancel):
                raise KeyboardInterrupt
            send(message)  # type: ignore[arg-type]

        monkeypatch.setattr(session._link, "send", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.acquire(0.01)
        monkeypatch.undo()
        with pytest.raises(DaemonUnavailableError, match="was interrupted"):
            session.acquire(0.01)
        assert held(daemon)["a"] == 4
    a.model.close()
