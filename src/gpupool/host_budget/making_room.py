"""Whose images are to be parked so that there is host memory for the first who waits for some."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import NamedTuple, Protocol

from gpupool.arbiter import Arbiter
from gpupool.host_budget.images import Images
from gpupool.host_budget.ledger import HostLedger
from gpupool.host_budget.line import Waiter
from gpupool.host_budget.place import ParkingPlace
from gpupool.schedule.parking import ImagesView, Wishes, whom_to_park
from gpupool.schedule.turns import Residency

_AGAIN_S = 1.0  # until a model that was in use is asked again
_FAILED_S = 10.0  # and one that could not park
_BYTES_A_SECOND = 50 << 20  # that a disk is taken to write at least


class Member(Protocol):
    """What there is to know of a model beside its lease."""

    @property
    def images(self) -> Images:
        """Its images."""

    @property
    def lost(self) -> bool:
        """Nothing can be asked of it any more."""

    @property
    def lasts_s(self) -> float:
        """How long its steps may take, which it leaves behind."""

    @property
    def ends_until_s(self) -> float | None:
        """Until then its end, and what it has, is counted on."""


class ParkOrder(NamedTuple):
    """A model is to park within so many seconds, having left if it ``leaves``.

    Its file may have ``file_bytes``.
    """

    key: int
    leaves: bool
    deadline_s: float
    file_bytes: int


class Asked(NamedTuple):
    """Whom to tell now, and when to look again at the latest."""

    orders: list[ParkOrder]
    wake_at_s: float | None


class MakingRoom:
    """Decides, and knows what came of it."""

    def __init__(
        self,
        ledger: HostLedger,
        arbiter: Arbiter,
        members: Mapping[int, Member],
        where: ParkingPlace | None,
        park_timeout_s: float,
    ) -> None:
        """Nobody is asked to park without a place to."""
        self._ledger = ledger
        self._arbiter = arbiter
        self._members = members
        self._where = where
        self._timeout_s = park_timeout_s

    @property
    def folder(self) -> str:
        """Where images are parked; empty if they are not."""
        return "" if self._where is None else str(self._where.folder)

    def has_room_for_all_files(self) -> bool:
        """Whether what comes back from a file may stay there as well."""
        if self._where is None or self._where.limit_bytes is None:
            return self._where is not None
        every = sum(member.images.parkable_bytes for member in self._members.values())
        return every <= self._where.limit_bytes

    def is_here(self, key: int) -> bool:
        """Whether a model can be asked, or told, anything."""
        member = self._members.get(key)
        return member is not None and not member.lost

    def for_first(
        self,
        first: Waiter,
        now_s: float,
        waiting: Collection[int],
        stay: Collection[int] = (),
        why: str = "",
    ) -> Asked | None:
        """Whom to ask for what the first in line lacks; None if it lacks nothing.

        ``waiting`` are all in line. Some ``stay``, and ``why``. Raises RefusedError if that can
        never be enough.
        """
        missing_bytes = first.total_bytes - self._ledger.free_bytes
        if missing_bytes <= 0:
            return None
        if self._where is None or first.total_bytes > self._ledger.budget_bytes:
            raise self._ledger.refusal(first.total_bytes)
        missing_bytes -= self._coming_bytes(now_s)
        if missing_bytes <= 0:
            return Asked([], self._next_due_s(now_s))
        views = self._views({first.key, *stay}, now_s, waiting)
        wishes = self._whom(views, missing_bytes, now_s, idle_only=first.ahead)
        if not wishes.possible:
            raise self._ledger.refusal(first.total_bytes, self._why(views, why))
        orders = self._give(wishes, now_s)
        return Asked(orders, self._next_due_s(now_s, wishes.wake_at_s))

    def for_next_time(self, missing_bytes: int, key: int, now_s: float) -> list[ParkOrder]:
        """Whom to ask so that ``key``, which could not wait, gets so much when it asks again."""
        if missing_bytes <= 0 or self._where is None:
            return []
        missing_bytes -= self._coming_bytes(now_s)
        views = self._views({key}, now_s)
        return self._give(self._whom(views, missing_bytes, now_s, out_only=True), now_s)

    def parked(
        self,
        key: int,
        size_bytes: int,
        file_bytes: int,
        now_s: float,
        why: str = "",
        *,
        passes: bool = False,
    ) -> None:
        """What became of an order: 0 and why if nothing, or if the images are in use.

        It is asked again soon if that ``passes``, unless it would have to leave again for it.
        """
        images = self._members[key].images
        images.asked_until_s = None
        images.file_bytes = file_bytes
        if size_bytes > 0:
            images.parked_bytes, images.why = size_bytes, ""
            images.parks += 1
            return
        images.why, images.passes = why, passes
        if passes and images.parkable_bytes > images.file_limit_bytes:
            images.not_before_s = now_s  # it has grown, and its file may too if there is room
        elif passes and not images.leaves:
            images.not_before_s = now_s + _AGAIN_S
        elif why:
            images.not_before_s = now_s + _FAILED_S
        elif self._arbiter.lease(key).state is Residency.OUT:  # else it crossed an Acquire
            images.not_before_s = now_s + _AGAIN_S

    def stays(self, key: int, now_s: float, why: str = "") -> None:
        """A model did not leave: it is in use, or there is a reason why."""
        images = self._members[key].images
        if images.parked_bytes == 0:
            images.why, images.passes = why, False
            images.not_before_s = now_s + (_FAILED_S if why else _AGAIN_S)

    def take_back(self, key: int) -> None:
        """Nobody sees to an order any more."""
        self._members[key].images.asked_until_s = None

    def _whom(
        self,
        views: tuple[ImagesView, ...],
        missing_bytes: int,
        now_s: float,
        *,
        idle_only: bool = False,
        out_only: bool = False,
    ) -> Wishes:
        turn_s, room_bytes = self._arbiter.turn_s, self._file_room_bytes()
        return whom_to_park(
            views,
            missing_bytes,
            room_bytes,
            now_s,
            turn_s,
            idle_only=idle_only,
            out_only=out_only,
        )

    def _give(self, wishes: Wishes, now_s: float) -> list[ParkOrder]:
        orders: list[ParkOrder] = []
        for wish in wishes.asked:
            member = self._members[wish.key]
            images, leaves_s = member.images, max(self._timeout_s, member.lasts_s)
            deadline_s = self._timeout_s + images.parkable_bytes / _BYTES_A_SECOND
            images.asked_until_s = now_s + deadline_s + leaves_s
            images.leaves, images.file_limit_bytes = wish.leaves, images.parkable_bytes
            orders.append(ParkOrder(*wish, deadline_s, images.file_limit_bytes))
        return orders

    def _next_due_s(self, now_s: float, also_s: float | None = None) -> float | None:
        due_s = [also_s]
        for member in self._members.values():
            due_s += [member.images.asked_until_s, member.ends_until_s]
        return min((at_s for at_s in due_s if at_s is not None and at_s > now_s), default=None)

    def _views(
        self, besides: Collection[int], now_s: float, waiting: Collection[int] = ()
    ) -> tuple[ImagesView, ...]:
        return tuple(
            self._view(key, member, now_s, waits=key in waiting)
            for key, member in self._members.items()
            if key not in besides and self._has_images(key, member)
        )

    def _has_images(self, key: int, member: Member) -> bool:
        images = member.images
        if images.parkable_bytes == 0 or images.asked_until_s is not None:
            return False
        return self.is_here(key) and (images.returning or images.parked_bytes == 0)

    def _view(self, key: int, member: Member, now_s: float, *, waits: bool) -> ImagesView:
        lease, images = self._arbiter.lease(key), member.images
        # What one lacks that waits behind may be what it would fill its images with.
        stays = bool(images.why) and (waits or not images.passes)
        return ImagesView(
            key,
            min(images.parkable_bytes, self._ledger.held_bytes(key)),
            max(0, images.parkable_bytes - images.file_bytes),
            lease.state,
            lease.since_s,
            lease.used_s,
            lease.idle,
            max(images.not_before_s, lease.stays_until_s),
            comes=images.returning,
            never=stays and images.not_before_s > now_s,
        )

    def _coming_bytes(self, now_s: float) -> int:
        """Of those who were asked and may answer yet, and of processes that are about to end."""
        coming = 0
        for key, member in self._members.items():
            held_bytes = self._ledger.held_bytes(key)
            if member.lost:
                coming += held_bytes if (member.ends_until_s or 0.0) > now_s else 0
            elif (member.images.asked_until_s or 0.0) > now_s:
                coming += min(member.images.parkable_bytes, held_bytes)
        return coming

    def _file_room_bytes(self) -> int:
        limit_bytes = None if self._where is None else self._where.limit_bytes
        if limit_bytes is None:
            return 1 << 62
        of = [member.images for member in self._members.values()]
        taken = [
            images.file_bytes
            if images.asked_until_s is None
            else max(images.file_bytes, images.file_limit_bytes)
            for images in of
        ]
        return limit_bytes - sum(taken)

    def because(self, key: int) -> str:
        """Why images stay of which others than ``key`` said so last; empty if nobody did."""
        said = [m.images.why for k, m in self._members.items() if k != key and m.images.why]
        return f" ({said[0]})" if said else ""

    def _why(self, views: tuple[ImagesView, ...], why: str) -> str:
        said = [self._members[view.key].images.why for view in views if view.never]
        if why:
            said.insert(0, why)
        because = f" ({said[0]})" if said else ""
        return f", and no other model can park its images in {self.folder}{because}"
