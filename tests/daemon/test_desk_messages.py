"""Any messages and any bytes, in any order: the ledger adds up."""

from __future__ import annotations

import contextlib
from typing import cast

import msgspec
import pytest
from desk_bench import OUT_OF_MEMORY, PAGE_BYTES, PAGES, REVOKE_S, SWAP, Bench, FakePeer
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gpupool.daemon import protocol as p
from gpupool.daemon import wire
from gpupool.daemon.live_policy import LivePolicy
from gpupool.daemon.peers import Peer
from gpupool.errors import ProtocolError

_names = st.sampled_from(["a", "b", "c", "d", "", "x\n"])
_ids = st.sampled_from(["1", "cmpl-1-0", "cmpl-22-0", "22"])
_numbers = st.integers(0, 3) | st.just(p.COUNT_MAX)
_figures = st.just(SWAP)
_PAGES_EDGE = [2**32 - 1, 2**32]  # the largest number there is, and one more
_messages = st.one_of(
    st.builds(p.Hello, st.sampled_from([p.PROTOCOL_VERSION] * 9 + [0]), _names),
    st.builds(p.HostMemory, st.sampled_from([0, 1, 4096, 300_000, 2**53])),
    st.builds(p.Declare, st.integers(0, PAGES + 1), st.just(1), st.just(1)),
    st.builds(p.HostMemoryUnused, st.sampled_from([0, 1, 4096, 2**53])),
    st.just(p.Acquire()),
    st.builds(p.Acquire, st.integers(0, PAGES)),
    st.builds(p.Acquire, st.integers(1, 2)),
    st.builds(p.Extend, st.sampled_from([0, 1, 1, 2, PAGES + 1, *_PAGES_EDGE])),
    st.builds(
        p.Release,
        st.lists(st.integers(0, PAGES) | st.sampled_from(_PAGES_EDGE), max_size=2),
        st.booleans(),
    ),
    st.builds(p.Cancel, st.booleans()),
    st.builds(p.WrongPages, st.lists(st.integers(0, PAGES), max_size=2)),
    st.just(p.Damaged("wrong")),
    st.builds(p.Arrived, _figures),
    st.builds(p.Yielded, st.none() | _figures),
    st.builds(p.Yielded, st.none() | _figures),
    st.just(p.BlocksMoved(5, 0.1, 6, 0.2, 1)),
    st.builds(p.Kept, st.just("no"), st.booleans()),
    st.builds(p.Lasting, st.sampled_from([0.0, 1.0, 2 * REVOKE_S])),
    st.builds(p.Idle, st.booleans()),
    st.builds(p.Announce, _names, _ids, st.integers(0, 9)),
    st.builds(p.Over, _ids),
    st.builds(p.WorkGoals, st.just(1.0), st.just(0.1)),
    st.builds(
        p.Working,
        st.lists(st.tuples(_numbers, _ids, _numbers), max_size=3),
        st.lists(st.tuples(_numbers, _numbers), max_size=3),
        st.lists(_numbers, max_size=3),
        _numbers,
        st.just(0.1),
        _numbers,
        st.just(0.1),
    ),
    st.just(p.WhyQuery()),
    st.just(p.StatusQuery()),
    st.just(p.Goodbye()),
)


class AnyMessagesInAnyOrder(RuleBasedStateMachine):
    """Peers say anything at any time, die, and linger; the ledger adds up all the same."""

    policy = "turns"

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(policy=LivePolicy(self.policy))
        self.peers = [FakePeer(pid) for pid in range(5)]
        self.host_bytes = dict.fromkeys(self.peers, 0)

    @rule(number=st.integers(0, 4), messages=st.lists(_messages, min_size=1, max_size=4))
    def say(self, number: int, messages: list[p.ClientMessage]) -> None:
        peer = self.peers[number]
        for message in messages:
            if peer.lost:
                return
            before = self.bench.ledger()
            heard = len(peer.heard)
            try:
                heard_as = wire.decode_client(wire.encode(message))
                stays = self.bench.desk.handle(cast(Peer, peer), heard_as, self.bench.now_s)
            except ProtocolError:
                assert self.bench.ledger() == before
                stays = False
            else:
                if isinstance(message, p.HostMemoryUnused):
                    self.host_bytes[peer] -= -(-message.size_bytes // 4096) * 4096
            for reply in peer.heard[heard:]:
                if isinstance(reply, p.HostMemory):
                    self.host_bytes[peer] += -(-reply.size_bytes // 4096) * 4096
            if not stays:
                self.lose(number)
        self.bench.settle()

    @rule(number=st.integers(0, 4))
    def exit(self, number: int) -> None:
        """The process ends, and with it the connection."""
        peer = self.peers[number]
        peer.exited, peer.connected = True, False
        self.lose(number)
        assert peer.key is None

    @rule(number=st.integers(0, 4))
    def exit_leaving_a_fork(self, number: int) -> None:
        self.peers[number].exited = True
        self.lose(number)

    @rule(number=st.integers(0, 4))
    def hang_up(self, number: int) -> None:
        self.peers[number].connected = False
        self.lose(number)

    def lose(self, number: int) -> None:
        peer = self.peers[number]
        if self.bench.lose(peer):
            self.peers[number] = FakePeer(peer.pid)
            del self.host_bytes[peer]
            self.host_bytes[self.peers[number]] = 0

    @rule(seconds=st.sampled_from([0.0, 1.0, REVOKE_S]))
    def wait(self, seconds: float) -> None:
        self.bench.now_s += seconds
        self.bench.settle()

    @rule(nth=st.integers(1, 3))
    def fail_a_driver_call(self, nth: int) -> None:
        self.bench.faults.arm(nth, OUT_OF_MEMORY)

    @invariant()
    def the_ledger_adds_up(self) -> None:
        status = self.bench.status()
        assert status.pages_free + status.pages_granted + status.pages_fenced == PAGES
        assert status.host_bytes == sum(self.host_bytes.values())
        assert len({m.name for m in status.models}) == len(status.models)
        held_bytes = sum(m.held_bytes for m in status.models)
        assert held_bytes == (status.pages_granted + status.pages_fenced) * PAGE_BYTES
        for m in status.models:
            owned = len(self.bench.pages.owned(self.bench.key_of(m.name)))
            assert m.held_bytes == owned * PAGE_BYTES <= m.footprint_bytes
            assert m.state in ("resident", "leaving", "waiting") or owned == 0
        for peer in self.peers:
            if peer.lost and self.bench.desk.holds_pages(cast(Peer, peer)):
                assert peer.kills >= 1

    def teardown(self) -> None:
        for number in range(len(self.peers)):
            self.exit(number)
        assert self.bench.ledger() == (PAGES, 0, 0)
        assert self.bench.status().host_bytes == 0
        assert self.bench.wake_at_s is None


TestAnyMessagesInAnyOrder = AnyMessagesInAnyOrder.TestCase
TestAnyMessagesInAnyOrder.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None
)


class AnyMessagesUnderAPolicyOfRequests(AnyMessagesInAnyOrder):
    policy = "deadlines"


TestAnyMessagesUnderAPolicyOfRequests = AnyMessagesUnderAPolicyOfRequests.TestCase
TestAnyMessagesUnderAPolicyOfRequests.settings = TestAnyMessagesInAnyOrder.settings


@pytest.mark.parametrize("page", _PAGES_EDGE)
def test_a_page_that_cannot_be_is_a_protocol_error(page: int) -> None:
    bench = Bench()
    peer = bench.worker("a", 3)
    bench.tell(peer, p.Acquire())
    before = bench.ledger()
    with pytest.raises(ProtocolError):
        bench.tell(peer, wire.decode_client(wire.encode(p.Release([page]))))
    assert bench.ledger() == before == (1, 3, 0)


_json = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)
_fields = st.dictionaries(
    st.sampled_from(["version", "model", "size_bytes", "pages", "weights_bytes", "swap", "idle"]),
    _json,
)
_tags = st.sampled_from([m.__struct_config__.tag for m in p.ClientMessage.__args__])


@settings(max_examples=400, deadline=None)
@given(
    st.binary(max_size=400)
    | st.builds(lambda t, f: msgspec.msgpack.encode({"type": t} | f), _tags, _fields)
)
def test_any_bytes_are_a_message_or_a_protocol_error(packet: bytes) -> None:
    try:
        message = wire.decode_client(packet)
    except ProtocolError as error:
        assert len(str(error)) < 1000
        return
    bench = Bench()
    peer = bench.worker("a", 1)
    with contextlib.suppress(ProtocolError):
        bench.tell(peer, message)
    assert sum(bench.ledger()) == PAGES
