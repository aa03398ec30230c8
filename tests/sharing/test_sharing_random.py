"""Models that share under random use: each has its own bytes, and nothing is held for nobody."""

from __future__ import annotations

import contextlib
import ctypes
import os
from dataclasses import dataclass

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import gpupool
from gpupool._core import Region
from gpupool.errors import LeaseTimeoutError, UsageError
from gpupool.sharing.contents import Contents
from gpupool.sharing.store import HostStore
from tests.sharing.test_fine_tunes import flip

PAGE_BYTES = 2 << 20
BUDGET_PAGES = 6
CONTENTS = st.lists(st.integers(0, 3), min_size=1, max_size=4)


@dataclass
class Sharer:
    model: gpupool.Model
    weights: Region
    content: list[bytes]
    """Of each page, four bytes that fill it."""

    def check(self) -> None:
        for page, word in enumerate(self.content):
            at = self.weights.address + page * PAGE_BYTES
            assert ctypes.string_at(at, PAGE_BYTES) == word * (PAGE_BYTES // 4)


class Sharing(RuleBasedStateMachine):
    """Models join, share, come, go, stay beside each other, are written to and leave."""

    def __init__(self) -> None:
        super().__init__()
        budget_bytes = BUDGET_PAGES * PAGE_BYTES
        self.pool = gpupool.Pool(device="host", budget_bytes=budget_bytes, page_bytes=PAGE_BYTES)
        self.models: list[Sharer] = []
        self.made = 0

    @precondition(lambda self: len(self.models) < 4)
    @rule(words=CONTENTS, shares=st.booleans())
    def join(self, words: list[int], shares: bool) -> None:
        self.made += 1
        model = self.pool.model(f"m{self.made}", shares=True, lease_timeout_s=0.0)
        weights = model.region("weights", len(words) * PAGE_BYTES)
        content = [b"%04d" % word for word in words]
        with memoryview(weights.image()) as image:  # type: ignore[arg-type]
            for page, word in enumerate(content):
                image[page * PAGE_BYTES : (page + 1) * PAGE_BYTES] = word * (PAGE_BYTES // 4)
        weights.adopt_image()
        if shares:
            model.share()
        self.models.append(Sharer(model, weights, content))

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def share(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.models)).model.share()

    @precondition(lambda self: self.models)
    @rule(data=st.data(), together=st.booleans())
    def enter(self, data: st.DataObject, together: bool) -> None:
        one, other = (data.draw(st.sampled_from(self.models)) for _ in range(2))
        with one.model.resident():
            if together:
                # Not where both do not fit: this thread cannot have the first one leave.
                with contextlib.suppress(LeaseTimeoutError, UsageError), other.model.resident():
                    other.check()
            one.check()

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def prefetch(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.models)).model.prefetch()

    @precondition(lambda self: self.models)
    @rule(data=st.data(), word=st.integers(4, 9))
    def write(self, data: st.DataObject, word: int) -> None:
        sharer = data.draw(st.sampled_from(self.models))
        with sharer.model.resident(writes=True):
            sharer.content[0] = b"%04d" % word
            ctypes.memmove(
                sharer.weights.address, sharer.content[0] * (PAGE_BYTES // 4), PAGE_BYTES
            )

    @precondition(lambda self: self.models)
    @rule(data=st.data(), page=st.integers(0, 3))
    def find_one_wrong(self, data: st.DataObject, page: int) -> None:
        """Whoever has it computes on it no more, once somebody else found out."""
        one, other = (data.draw(st.sampled_from(self.models)) for _ in range(2))
        page %= len(one.content)
        with one.model.resident():
            if one is other or other.model.gate.is_resident:
                return
            found = self.damaged()
            flip(self.pool, one.weights.page_handles[page], 5)
            with contextlib.suppress(LeaseTimeoutError, UsageError), other.model.resident():
                other.check()
            if self.damaged() == found:  # it had no use for that page
                flip(self.pool, one.weights.page_handles[page], 5)
        for sharer in self.models:
            with sharer.model.resident():
                sharer.check()

    def damaged(self) -> int:
        return sum(model.damaged for model in self.pool.statistics().models)

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.models)).model.swap_out()

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        sharer = data.draw(st.sampled_from(self.models))
        sharer.model.close()
        self.models.remove(sharer)

    @invariant()
    def what_is_held_is_mapped(self) -> None:
        mapped = {page for sharer in self.models for page in sharer.weights.page_handles}
        assert self.pool.free_bytes == (BUDGET_PAGES - len(mapped)) * PAGE_BYTES

    @invariant()
    def what_is_known_is_there(self) -> None:
        arbiter = self.pool._arbiter._arbiter
        contents: Contents = arbiter._contents
        owned = {lease.key: set(self.pool._pages.owned(lease.key)) for lease in arbiter.leases()}
        assert not any(lease.pinned for lease in arbiter.leases())
        for page, holders in contents._holders.items():
            assert holders == {key for key, pages in owned.items() if page in pages}
        assert set(contents._present.values()) <= set(contents._holders) == set(contents._content)

    def teardown(self) -> None:
        self.pool.close()
        assert self.pool._arbiter.images._store.held_bytes == 0
        assert not self.pool._arbiter.images._store._segments


TestSharing = Sharing.TestCase
TestSharing.settings = settings(max_examples=40, stateful_step_count=25)

UNIT_BYTES = 4096


class Storing(RuleBasedStateMachine):
    """Images that are offered what is there, settle for it or not, and go."""

    def __init__(self) -> None:
        super().__init__()
        self.store = HostStore()
        self.images: dict[int, bytes] = {}
        self.settled: dict[int, list[tuple[int, int, int]]] = {}

    @rule(
        words=st.lists(st.integers(0, 5), max_size=6), tail=st.booleans(), own=st.integers(0, 2**30)
    )
    def share(self, words: list[int], tail: bool, own: int) -> None:
        content = b"".join(b"%04d" % word * (UNIT_BYTES // 4) for word in words)
        content += (b"%08x" % own * (UNIT_BYTES // 8)) if tail or not words else b""
        fd = os.memfd_create("image")
        os.pwrite(fd, content, 0)
        names = [b"%032d" % word for word in words]
        number, extents = self.store.offer(
            number_key(len(self.images)), fd, len(content), UNIT_BYTES, names
        )
        os.close(fd)
        self.images[number] = content
        self.settled[number] = [tuple(extent) for extent in extents]
        self.check(number)
        self.last = number

    def check(self, number: int) -> None:
        parts = [os.pread(self.store.fd(s), size, at) for s, at, size in self.settled[number]]
        assert b"".join(parts) == self.images[number]

    @precondition(lambda self: getattr(self, "last", 0) in self.images)
    @rule(done=st.booleans(), gone=st.booleans())
    def settle(self, done: bool, gone: bool) -> None:
        number, self.last = self.last, 0
        moved = self.store.settle(number, done=done, gone=gone)
        assert moved == (len(self.images[number]) if done else 0)
        if not done:
            del self.images[number]

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(sorted(self.images)))
        self.store.release(number)
        del self.images[number]

    @invariant()
    def all_have_their_bytes(self) -> None:
        for number in self.images:
            self.check(number)

    @invariant()
    def no_more_is_held_than_is_used(self) -> None:
        if not self.images:
            assert self.store.held_bytes == 0
            assert not self.store._segments

    def teardown(self) -> None:
        for number in list(self.images):
            self.store.release(number)
        assert not self.store._segments


def number_key(count: int) -> int:
    """Some models have several images."""
    return count % 3


TestStoring = Storing.TestCase
TestStoring.settings = settings(max_examples=60, stateful_step_count=30)


def test_a_page_of_the_store_is_held_once() -> None:
    store = HostStore()
    numbers = []
    for index in range(3):
        fd = os.memfd_create("image")
        os.pwrite(fd, bytes(3 * UNIT_BYTES), 0)
        names = [b"a" * 32, b"b" * 32, bytes([index]) * 32]
        number, _ = store.offer(index, fd, 3 * UNIT_BYTES, UNIT_BYTES, names)
        os.close(fd)
        assert store.held_bytes == (0 if index == 0 else (2 + index) * UNIT_BYTES)
        assert store.settle(number, done=True, gone=True) == 3 * UNIT_BYTES
        numbers.append(number)
    assert store.held_bytes == 5 * UNIT_BYTES
    store.release_all(0)
    assert store.held_bytes == 4 * UNIT_BYTES  # what the others use of it stays
    store.release(numbers[2])
    store.release(numbers[1])
    assert store.held_bytes == 0
