"""Models of several processes that have the same weights, and clients that lie about theirs."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from daemon_bench import PAGE_BYTES, Daemon, StartDaemon, until
from parking_bench import HELD_BYTES, Members

from gpupool._core import Region
from gpupool.daemon import client, wire
from gpupool.daemon import protocol as p
from gpupool.daemon.link import Link, connect
from gpupool.errors import DaemonUnavailableError
from gpupool.model import Model
from gpupool.sharing.hashing import contents_of

PAGES = 5
TUNED = 3  # the page that each model has for itself


def fine_tune(socket_path: Path, tune: int) -> tuple[Model, Region]:
    model = Model(f"tune {tune}", client.DaemonSession(socket_path, f"tune {tune}"), shares=True)
    region = model.region("weights", PAGES * PAGE_BYTES)
    memoryview(region.image())[:] = weights(tune)  # type: ignore[arg-type]
    region.adopt_image()
    model.share()
    return model, region


def weights(tune: int) -> bytes:
    own = {TUNED: tune}
    pages = (b"%04d%04d" % (page, own.get(page, 0)) for page in range(PAGES))
    return b"".join(word * (PAGE_BYTES // 8) for word in pages)


def has(model: Model, region: Region, tune: int) -> bool:
    with model.resident():
        return ctypes.string_at(region.address, region.bytes) == weights(tune)


def test_a_pool_for_one_of_two(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(pages=PAGES)
    one, first = fine_tune(daemon.socket_path, 1)
    other, second = fine_tune(daemon.socket_path, 2)
    until(lambda: daemon.status().host_bytes == (PAGES + 1) * PAGE_BYTES)
    assert has(one, first, 1)
    for model, region, tune in 2 * ((other, second, 2), (one, first, 1)):
        assert has(model, region, tune)
        assert model.last_swap_in is not None
        assert model.last_swap_in.copied_bytes == PAGE_BYTES
    with other.resident(writes=True):
        ctypes.memset(second.address, 7, 3)
    until(lambda: daemon.status().host_bytes == 2 * PAGES * PAGE_BYTES)
    assert has(one, first, 1)
    one.close()
    with other.resident():
        assert ctypes.string_at(second.address, second.bytes) == b"\7\7\7" + weights(2)[3:]
    other.close()
    daemon.until_ledger(free=PAGES, host_bytes=0)


def test_both_beside_each_other(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(pages=PAGES + 1)
    models = [fine_tune(daemon.socket_path, tune) for tune in (1, 2)]
    for _ in range(2):
        assert [has(*models[0], 1), has(*models[1], 2)] == [True, True]
    assert [model.swap_ins for model, _ in models] == [1, 1]
    assert daemon.status().pages_free == 0
    for model, _ in models:
        model.close()
    daemon.until_ledger(free=PAGES + 1, host_bytes=0)


def test_a_grant_in_parts(start_daemon: StartDaemon) -> None:
    """Of own pages there are more than descriptors in a message; what is shared comes behind."""
    own = p.FDS_MAX + 2
    daemon = start_daemon(
        pages=2 * own + 1, options=("--host-budget-bytes", str(4 * own * PAGE_BYTES))
    )
    models: list[Model] = []
    for tune in (1, 2):
        model = Model(f"{tune}", client.DaemonSession(daemon.socket_path, f"{tune}"), shares=True)
        region = model.region("weights", (own + 1) * PAGE_BYTES)
        with memoryview(region.image()) as image:  # type: ignore[arg-type]
            image[:8] = b"the same"
            for page in range(1, own + 1):
                at = page * PAGE_BYTES
                image[at : at + 8] = b"%04d%04d" % (tune, page)
        region.adopt_image()
        model.share()
        models.append(model)
    with models[0].resident(), models[1].resident():
        report = models[1].last_swap_in
        assert report is not None and report.shared_bytes == PAGE_BYTES
    for model in models:
        model.close()
    daemon.until_ledger(free=2 * own + 1, host_bytes=0)


def test_who_only_waits_is_not_killed_for_what_is_kept_for_it(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(pages=PAGES)
    one, first = fine_tune(daemon.socket_path, 1)
    liar = Liar(daemon)
    fd = liar.memory(PAGE_BYTES)
    os.pwrite(fd, weights(1)[:PAGE_BYTES], 0)
    liar.say(p.ShareImage(PAGE_BYTES, contents_of(first, PAGE_BYTES)[:1]), (fd,))
    shared = liar.hear()
    assert isinstance(shared, p.SharedImage)
    liar.say(p.ImageSettled(shared.number, True, True))
    liar.say(p.Declare(3, 0, 0, 1, shared=[(shared.number, 0)]))
    assert isinstance(liar.hear(), p.Ok)
    with one.resident():
        liar.say(p.Acquire())
        daemon.until_state("liar", "waiting")
        liar.connection.close()  # of this very process
        # Its host memory stays on the account until it exits, and what was kept for it is free.
        daemon.until_state("liar", "out")
    assert has(one, first, 1)
    one.close()
    until(lambda: daemon.status().pages_free == PAGES)


def test_an_interrupt_while_the_answer_is_waited_for(
    start_daemon: StartDaemon, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the connection at once, and says so; the others' memory is as before."""
    daemon = start_daemon(pages=PAGES)
    one, first = fine_tune(daemon.socket_path, 1)
    model = Model("b", client.DaemonSession(daemon.socket_path, "b"), shares=True)
    region = model.region("weights", PAGES * PAGE_BYTES)
    region.adopt_image()

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Link, "reply", interrupted)
        with pytest.raises(KeyboardInterrupt):
            model.share()
    with pytest.raises(DaemonUnavailableError, match="interrupted"), model.resident():
        pass
    assert has(one, first, 1)
    one.close()


def test_who_is_killed_takes_nothing_along(start_daemon: StartDaemon) -> None:
    daemon = start_daemon(pages=PAGES + 1)
    with subprocess.Popen(
        [sys.executable, __file__, str(daemon.socket_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    ) as mortal:
        assert mortal.stdout is not None
        assert mortal.stdout.readline() == "in\n"
        other, second = fine_tune(daemon.socket_path, 2)
        assert has(other, second, 2)
        assert other.last_swap_in is not None
        assert other.last_swap_in.shared_bytes == (PAGES - 1) * PAGE_BYTES
        mortal.kill()
        assert mortal.wait() == -signal.SIGKILL
    until(lambda: daemon.status().pages_free == 1)
    assert daemon.status().host_bytes == PAGES * PAGE_BYTES
    other.swap_out()
    assert has(other, second, 2)
    third, region = fine_tune(daemon.socket_path, 3)
    assert has(third, region, 3) and has(other, second, 2)
    for model in (third, other):
        model.close()
    daemon.until_ledger(free=PAGES + 1, host_bytes=0)


def test_what_others_may_use_is_not_parked(start_daemon: StartDaemon, directory: Path) -> None:
    """Host memory for what is shared and for one of the two others, which take turns."""
    daemon = start_daemon(
        pages=PAGES + 4,
        options=(
            *("--host-budget-bytes", str(PAGES * PAGE_BYTES + HELD_BYTES), "--turn-ms", "1"),
            *("--parking-folder", str(directory / "parked")),
        ),
    )
    one, first = fine_tune(daemon.socket_path, 1)
    members = Members(daemon)
    others = [members("a"), members("b")]
    for _ in range(2):
        for other in others:
            other.check()
            assert has(one, first, 1)
            one.swap_out()
            assert one.parked_bytes == 0
    assert len(members.parked()) == 1
    for model in (one, *(other.model for other in others)):
        model.close()
    daemon.until_ledger(free=PAGES + 4, host_bytes=0)


class Liar:
    """A client that speaks for itself."""

    def __init__(self, daemon: Daemon, name: str = "liar") -> None:
        self.connection = connect(daemon.socket_path, 5.0)
        self.say(p.Hello(p.PROTOCOL_VERSION, name))
        self.hear()

    def say(self, message: object, fds: tuple[int, ...] = ()) -> None:
        wire.send(self.connection, wire.encode(message), list(fds))  # type: ignore[arg-type]

    def hear(self) -> object:
        packet, self.fds = wire.receive(self.connection, p.FDS_MAX)
        return wire.decode_daemon(packet)

    def memory(self, size_bytes: int) -> int:
        self.say(p.HostMemory(size_bytes))
        self.hear()
        return self.fds[0]


HASH = b"h" * 32
SIZE = 2 * PAGE_BYTES


@pytest.mark.parametrize(
    ("lie", "answer"),
    [
        ("no memfd", "sends the memfd"),
        ("another's memfd", "was not made for it"),
        ("a file", "was not made for it"),
        ("a size", "was not made for it"),
        ("more pages", "more pages than its image has"),
        ("two memfds", "a client sent descriptors"),
        ("a changed size", "changed its mind"),
        ("no such image", "does not share"),
        ("another's image", "does not share"),
        ("another's image declared", "does not share"),
        ("pages that it has not", "does not hold"),
        ("a short hash", "malformed"),
    ],
)
def test_lies_are_found_out(daemon: Daemon, lie: str, answer: str) -> None:
    honest, liar = Liar(daemon, "honest"), Liar(daemon)
    theirs, own = honest.memory(SIZE), liar.memory(SIZE)
    honest.say(p.ShareImage(SIZE, [HASH]), (theirs,))
    shared = honest.hear()
    assert isinstance(shared, p.SharedImage) and shared.last
    honest.say(p.ImageSettled(shared.number, True, True))
    more = p.ShareImage(SIZE, [HASH], last=False)
    match lie:
        case "no memfd":
            liar.say(p.ShareImage(SIZE, [HASH]))
        case "another's memfd":
            liar.say(p.ShareImage(SIZE, [HASH]), (theirs,))
        case "a file":
            with Path(__file__).open() as file:
                liar.say(p.ShareImage(SIZE, [HASH]), (file.fileno(),))
        case "a size":
            liar.say(p.ShareImage(PAGE_BYTES, [HASH]), (own,))
        case "more pages":
            liar.say(p.ShareImage(SIZE, 3 * [HASH]), (own,))
        case "two memfds":
            liar.say(p.ShareImage(SIZE, [HASH]), (own, own))
        case "a changed size":
            liar.say(more, (own,))
            liar.say(p.ShareImage(PAGE_BYTES, [HASH]))
        case "no such image":
            liar.say(p.ImageSettled(1000, True, True))
        case "another's image":
            liar.say(p.ImageUnshared(shared.number))
        case "another's image declared":
            liar.say(p.Declare(2, 0, 0, 2, shared=[(shared.number, 0)]))
        case "pages that it has not":
            liar.say(p.Holds(0, [0]))
        case "a short hash":
            liar.say(p.ShareImage(SIZE, [b"short"]), (own,))
    reply = liar.hear()
    assert isinstance(reply, p.Dismissed | p.Refused)
    assert answer in reply.message
    # What the honest one has is still there for others.
    third = Liar(daemon, "third")
    fd = third.memory(SIZE)
    third.say(p.ShareImage(SIZE, [HASH]), (fd,))
    shared = third.hear()
    assert isinstance(shared, p.SharedImage)
    assert len(shared.extents) == 2
    for one in (honest, liar, third):
        one.connection.close()


if __name__ == "__main__":
    mortal, region = fine_tune(Path(sys.argv[1]), 1)
    with mortal.resident():
        print("in", flush=True)
        sys.stdin.readline()
