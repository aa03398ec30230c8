"""Host memory inside one process: threads that want some wait here, and have other models park.

Everything is decided under the arbiter's lock, and seen to outside of it: by the thread that waits,
which holds no gate and no pages then.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gpupool.arbiter import Arbiter
from gpupool.embedded.park_orders import ParkOrders
from gpupool.errors import (
    LeaseTimeoutError,
    RefusedError,
    SwapCancelledError,
    UsageError,
)
from gpupool.host_budget.images import Images
from gpupool.host_budget.ledger import HostLedger
from gpupool.host_budget.line import HostLine, Waiter
from gpupool.host_budget.making_room import MakingRoom, ParkOrder
from gpupool.host_budget.place import HostBudget
from gpupool.host_images import in_system_pages
from gpupool.schedule.turns import Residency
from gpupool.session import HostGrant, Revocable, Wanted

_PARK_S = 60.0  # that a model may take to park, beside the time for its bytes
_POLL_S = 0.02  # nobody tells that a model is not wanted any more
_NO_LIMIT_BYTES = 1 << 62


@dataclass
class _Member:
    images: Images = field(default_factory=Images)
    lost: bool = False
    lasts_s: float = 0.0
    ends_until_s: float | None = None


class EmbeddedHost:
    """Who has host memory, who waits for some, and whose images are in files. Thread safe."""

    def __init__(
        self,
        budget: HostBudget,
        arbiter: Arbiter,
        changed: threading.Condition,
        holders: Mapping[int, Revocable],
    ) -> None:
        """Nothing is handed out; ``changed`` guards the last two, and what is here."""
        limit_bytes = _NO_LIMIT_BYTES if budget.limit_bytes is None else budget.limit_bytes
        self.place = budget.place
        self.ledger = HostLedger(limit_bytes)
        self._arbiter = arbiter
        self._changed = changed
        self._holders = holders
        self._members: dict[int, _Member] = {}
        self._line = HostLine()
        self._room = MakingRoom(self.ledger, arbiter, self._members, budget.place, _PARK_S)
        self._orders = ParkOrders(arbiter, self._room, changed, holders)

    @property
    def bytes(self) -> int:
        """Handed out to all."""
        with self._changed:
            return self.ledger.bytes

    def add(self, key: int) -> None:
        """A model joins; with the lock held."""
        self._members[key] = _Member()

    def remove(self, key: int) -> None:
        """A model has left, with the lock held. What it has not given back stays on the account."""
        self._members.pop(key, None)
        self._line.leave(key)
        self._forget_if_gone(key)

    def images(self, key: int) -> Images:
        """What is known of a model's; with the lock held."""
        return self._members[key].images

    def parkable(self, key: int, size_bytes: int) -> None:
        """How much of a model's images may go to a file."""
        with self._changed:
            if key in self._members:
                self._members[key].images.parkable_bytes = size_bytes
                self._changed.notify_all()

    def file_limit_bytes(self, key: int) -> int:
        """How large the file of a model may be that was asked to park."""
        with self._changed:
            return self._members[key].images.file_limit_bytes if key in self._members else 0

    def comes(self, key: int) -> None:
        """A model is about to be in use."""
        with self._changed:
            self._members[key].images.come()

    def hurry(self, key: int) -> None:
        """What a model asked for ahead it waits for now."""
        with self._changed:
            self._line.hurry(key)
            self._changed.notify_all()

    def hand_out_now(self, key: int, size_bytes: int) -> int:
        """A memfd for one that must not wait: it may have pages. Raises RefusedError.

        Others are asked for the next time then, by a thread that holds nothing.
        """
        with self._changed:
            missing_bytes = in_system_pages(size_bytes) - self.ledger.free_bytes
            try:
                return self.ledger.hand_out(key, size_bytes)
            except RefusedError:
                self._note_use()
                orders = self._room.for_next_time(missing_bytes, key, time.monotonic())
                self._orders.obey_later(orders)
                raise

    def hand_out(
        self,
        key: int,
        sizes_bytes: Sequence[int],
        timeout_s: float,
        wanted: Wanted | None,
        *,
        returns: bool,
    ) -> HostGrant:
        """A memfd of each of these sizes, as ``Session.host_memories``."""
        waiter = Waiter(key, list(sizes_bytes), ahead=wanted is not None, returns=returns)
        deadline_s = time.monotonic() + timeout_s
        stay: dict[int, str] = {}  # whom this thread cannot have leave, and why
        with self._changed:
            self._enter(waiter)
        try:
            while True:
                with self._changed:
                    grant, orders = self._look(waiter, timeout_s, deadline_s, wanted, stay)
                if grant is not None:
                    return grant
                # Outside the lock, since parking writes to a disk, and leaving may wait for a step.
                stay |= self._orders.obey(orders, deadline_s)
        except BaseException:
            with self._changed:
                self._line.leave(key)
                self._changed.notify_all()
            raise

    def returned(self, key: int, size_bytes: int) -> None:
        """So much of a model's is closed and nowhere mapped any more."""
        with self._changed:
            self.ledger.returned(key, size_bytes)
            self._forget_if_gone(key)
            self._changed.notify_all()

    def settle_image(self, key: int, number: int, *, done: bool, gone: bool) -> None:
        """An image is shared from now on, or is not."""
        with self._changed:
            self.ledger.settle(key, number, done=done, gone=gone)
            self._changed.notify_all()

    def unshare_image(self, key: int, number: int) -> None:
        """Nothing of a shared image is mapped any more."""
        with self._changed:
            self.ledger.unshare(key, number)
            self._forget_if_gone(key)
            self._changed.notify_all()

    def parked(self, key: int, size_bytes: int, file_bytes: int, why: str, *, passes: bool) -> None:
        """What came of the wish that a model's images be parked."""
        with self._changed:
            if key in self._members:
                now_s = time.monotonic()
                self._room.parked(key, size_bytes, file_bytes, now_s, why, passes=passes)
                self._changed.notify_all()

    def unparked(self, key: int, size_bytes: int, file_bytes: int, read_s: float) -> None:
        """What was read back of a model's images."""
        with self._changed:
            if key in self._members:
                self._members[key].images.unparked(size_bytes, file_bytes, read_s)
                self._changed.notify_all()

    def _enter(self, waiter: Waiter) -> None:
        self._require_here(waiter.key)
        if 0 in waiter.sizes_bytes:
            raise RefusedError("host memory has at least one byte")
        self._line.add(waiter)

    def _look(
        self,
        waiter: Waiter,
        timeout_s: float,
        deadline_s: float,
        wanted: Wanted | None,
        stay: Mapping[int, str],
    ) -> tuple[HostGrant | None, list[ParkOrder]]:
        """What is granted, or what to see to; waits once if there is neither."""
        now_s = time.monotonic()
        self._require_here(waiter.key)
        if wanted is not None and not wanted():
            raise SwapCancelledError("what was to come ahead is not wanted any more")
        limits_s = [deadline_s]
        # Others may wait for the pages of one that is there.
        there = (Residency.RESIDENT, Residency.LEAVING)
        if self._arbiter.lease(waiter.key).state in there:
            return self._grant(waiter), []
        if self._line.first is waiter:
            self._note_use()
            why = next(iter(stay.values()), "")
            asked = self._room.for_first(waiter, now_s, self._line.keys, stay, why)
            if asked is None:
                return self._grant(waiter), []
            for order in asked.orders:
                if order.leaves:
                    self._arbiter.revoke(order.key, now_s)
            if asked.orders:
                return None, asked.orders
            limits_s += [] if asked.wake_at_s is None else [asked.wake_at_s]
        if now_s >= deadline_s:
            raise LeaseTimeoutError(
                f"no host memory within {timeout_s:g} s: other models have all of it"
                f"{self._room.because(waiter.key)}"
            )
        if wanted is not None:
            limits_s.append(now_s + _POLL_S)
        self._changed.wait(max(0.0, min(limits_s) - now_s))
        return None, []

    def _grant(self, waiter: Waiter) -> HostGrant:
        fds = self.ledger.hand_out_all(waiter.key, waiter.sizes_bytes)
        self._members[waiter.key].images.granted(waiter.total_bytes, returns=waiter.returns)
        self._line.leave(waiter.key)
        self._changed.notify_all()
        return HostGrant(fds, self._room.has_room_for_all_files())

    def _note_use(self) -> None:
        for key, holder in self._holders.items():
            self._arbiter.used(key, holder.used_s)

    def _require_here(self, key: int) -> None:
        if key not in self._members:
            raise UsageError("a closed model cannot be used")

    def _forget_if_gone(self, key: int) -> None:
        if key not in self._members and not self.ledger.holds(key):
            self.ledger.forget(key)
