"""Who is resident: pages, leases and the policy's decisions, without any I/O or clock of its own.

The daemon and the embedded pool drive the same object; it is not thread safe.
"""

from __future__ import annotations

from collections import Counter

from gpupool._core import PagePool
from gpupool.arbiter.distrust import Distrust
from gpupool.arbiter.leases import Granted, Lease, Outcome
from gpupool.errors import DriverError, UsageError
from gpupool.schedule.turns import (
    Cool,
    Decision,
    ModelView,
    PoolView,
    Residency,
    decide,
    order_of_leaving,
    warm_pages,
)

_STAYS_S = 1.0  # until a model that cannot leave is asked again


class Arbiter(Distrust):
    """Grants and revokes leases over the pages of one budget."""

    def __init__(self, pages: PagePool, turn_s: float) -> None:
        super().__init__(pages)
        self._turn_s = turn_s
        self._keeps_warm = True

    def request(self, key: int, now_s: float, *, early: bool = False, ahead: bool = False) -> None:
        """The model wants to be resident, and can use some pages ``early``, before the rest.

        What it asks for ``ahead``, of use, it gets after all others and from idle models alone.
        """
        lease = self._leases[key]
        if lease.state is not Residency.OUT or lease.pages == 0:
            raise UsageError(f"model {lease.name!r} asked for memory while {lease.state.value}")
        # What comes early lies one behind the other, and what others have may lie anywhere.
        early = early and not self._contents.wants(key)
        lease.early, lease.begun, lease.ahead = early, 0, ahead and not lease.hurried
        lease.hurried = False
        lease.asked_s = now_s
        self._enter(lease, Residency.WAITING, now_s)

    def hurry(self, key: int, now_s: float) -> None:
        """What a model asked for ahead, or is about to, it waits for from now on."""
        lease = self._leases[key]
        lease.hurried = lease.state is Residency.OUT
        if lease.state is Residency.WAITING and lease.ahead:
            lease.ahead = False
            lease.asked_s = lease.since_s = now_s

    def cancel(self, key: int, now_s: float, *, mapped: bool = False) -> bool:
        """Take a request back; False if it was granted already.

        What it has comes back, or with ``yielded`` if it is still ``mapped`` and not merely warm.
        """
        lease = self._leases[key]
        if lease.state is not Residency.WAITING:
            return False
        self._unpin(lease)
        if not mapped:
            self._give_back_all(key)
            lease.held = 0
        self._enter(lease, self._without_grant(lease), now_s)
        return True

    @staticmethod
    def _without_grant(lease: Lease) -> Residency:
        """Where a model is that gets no more pages: warm ones are no reason to leave."""
        return Residency.LEAVING if lease.begun and lease.held else Residency.OUT

    def undo(self, granted: Granted, now_s: float) -> None:
        """Pages that were granted cannot be had after all: they are free again, or withheld.

        The model is out, or leaving if it has begun.
        """
        lease = self._leases[granted.key]
        self._give_up(granted.key, [*granted.pages, *granted.shared.values()])
        if lease.state is Residency.WAITING:  # it never heard of these
            lease.begun -= len(granted.pages)
        self._enter(lease, self._without_grant(lease), now_s)

    def set_idle(self, key: int, idle: bool, now_s: float) -> None:
        """Whether the model has unfinished requests."""
        lease = self._leases[key]
        lease.idle = idle
        lease.used_s = now_s

    def used(self, key: int, used_s: float) -> None:
        """The model's memory was in use at that time."""
        lease = self._leases[key]
        lease.used_s = max(lease.used_s, used_s)

    def is_leaving(self, key: int) -> bool:
        """Whether the model was revoked and still holds its pages."""
        return self._leases[key].state is Residency.LEAVING

    def yielded(self, key: int, now_s: float, keeps: int = 0) -> None:
        """The model has unmapped all its pages, but for those that it ``keeps``, warm.

        Those that went came back with ``shrink`` then. It may keep others than it was told: a
        revoke can cross with a model that has left by itself. Raises UsageError.
        """
        lease = self._leases[key]
        warm = lease.state is Residency.OUT and lease.held > 0
        if lease.state not in (Residency.LEAVING, Residency.RESIDENT) and not warm:
            raise UsageError(f"model {lease.name!r} gave memory back while {lease.state.value}")
        if keeps > 0 and keeps != lease.held:
            raise UsageError(f"model {lease.name!r} keeps {keeps} pages and holds {lease.held}")
        if keeps == 0:
            self._give_back_all(key)
            lease.held = 0
        lease.stays, lease.stays_until_s = "", 0.0
        lease.used_s = now_s
        self._enter(lease, Residency.OUT, now_s)

    def cooled(self, key: int, now_s: float) -> None:
        """The model has given back the warm pages that it was asked for, as far as it could.

        Raises UsageError if it was not asked.
        """
        lease = self._leases[key]
        if not lease.asked_to_cool:
            raise UsageError(f"model {lease.name!r} was not asked for warm pages")
        if lease.cooling > 0 and lease.held > 0:
            lease.stays_until_s = now_s + _STAYS_S
        lease.asked_to_cool, lease.cooling = False, 0

    def keep(self, key: int, now_s: float, stays: str = "") -> None:
        """The model could not give its memory up and is resident as before.

        With a reason why it ``stays`` others are asked first, for a while.
        """
        lease = self._leases[key]
        if lease.state is Residency.LEAVING and not lease.fenced:
            self._enter(lease, Residency.RESIDENT, now_s)
            lease.keep = 0
            lease.stays = stays
            lease.stays_until_s = now_s + _STAYS_S if stays else 0.0

    def fence(self, key: int, now_s: float) -> None:
        """The model's process is lost; its pages stay out of use until ``remove``."""
        lease = self._leases[key]
        self._unpin(lease)
        lease.fenced = True
        lease.keep = lease.cooling = 0
        lease.asked_to_cool = False
        # Its pages are sure to come back, so the policy may count on them like on any leaver's.
        state = Residency.LEAVING if self._pages.owned(key) else Residency.OUT
        self._enter(lease, state, now_s)

    def decide(self, now_s: float) -> Outcome:
        """Apply the policy to the present state."""
        self._pin_for_first()
        cooled = [self._cool(cool) for cool in self._warm_and_wrong(now_s)]
        decision = decide(self._view(), now_s, self._turn_s)
        outcome = Outcome(cooled=cooled, wake_at_s=decision.wake_at_s)
        self._apply(decision, outcome, now_s)
        return outcome

    @property
    def turn_s(self) -> float:
        """How long a busy model keeps its memory while others wait."""
        return self._turn_s

    def revoke(self, key: int, now_s: float) -> None:
        """Have a resident model leave, with all its pages, for another reason than pages."""
        lease = self._leases[key]
        if lease.state is Residency.RESIDENT and not lease.fenced:
            self._enter(lease, Residency.LEAVING, now_s)

    def make_room(self, key: int, pages: int, now_s: float) -> list[Cool]:
        """Ask for warm pages of others that an ``extend`` by so many needs beside free ones.

        Empty if there is no need, or there are not enough. Raises UsageError as ``extend`` does.
        """
        self._require_held(self._leases[key])
        view = self._view()
        missing = pages - view.free_pages - sum(model.cooling for model in view.models)
        asked = warm_pages(view, missing, now_s)
        if sum(cool.pages for cool in asked) < missing:
            return []
        return [self._cool(cool) for cool in asked]

    def keep_nothing_warm(self, now_s: float) -> list[Cool]:
        """Ask for all warm pages; no model that leaves is to keep any from now on."""
        self._keeps_warm = False
        return [
            self._cool(cool) for cool in warm_pages(self._view(), self._pages.total_pages, now_s)
        ]

    def gives_warm_pages(self) -> bool:
        """Whether some that were asked for are on their way."""
        return any(lease.asked_to_cool for lease in self._leases.values())

    def _apply(self, decision: Decision, outcome: Outcome, now_s: float) -> None:
        for key in decision.grant:
            if granted := self._acquire(key, self._leases[key].pages, outcome, now_s):
                self._enter(self._leases[key], Residency.RESIDENT, now_s)
                self._leases[key].used_s = now_s
                outcome.granted.append(granted)
        if decision.begin is not None:
            key, more = decision.begin
            if begun := self._acquire(key, self._leases[key].held + more, outcome, now_s):
                self._leases[key].begun += len(begun.pages)
                outcome.begun.append(begun)
        for revoke in decision.revoke:
            self._enter(self._leases[revoke.key], Residency.LEAVING, now_s)
            self._leases[revoke.key].keep = revoke.keep
            outcome.revoked.append(revoke)
        outcome.cooled.extend(map(self._cool, decision.cool))

    def _cool(self, cool: Cool) -> Cool:
        lease = self._leases[cool.key]
        lease.asked_to_cool, lease.cooling = True, cool.pages
        # Of what it leaves to others nothing comes free.
        return Cool(cool.key, min(lease.held, cool.pages + self._left_to_others()[cool.key]))

    def _acquire(self, key: int, until: int, outcome: Outcome, now_s: float) -> Granted | None:
        """So many pages for a model, counting those that it has."""
        lease = self._leases[key]
        shared = lease.pinned or self._contents.matches(key, lease.held)
        try:
            if not lease.pinned:
                self._take(key, shared)
            pages = self._get(key, until - lease.held - len(shared))
        except BaseException as error:
            if not lease.pinned:
                self._give_up_shared(key, shared)
            if not isinstance(error, DriverError | UsageError):
                raise
            if isinstance(error, DriverError):
                self._unpin(lease)
                self._enter(lease, self._without_grant(lease), now_s)
                outcome.failed.append((key, error))
            return None  # or slabs took some since the policy looked: it waits on
        lease.held, lease.pinned = until, {}
        return Granted(key, pages, now_s - lease.asked_s, shared)

    def _view(self) -> PoolView:
        left = self._left_to_others()
        models = tuple(self._seen(lease, left[lease.key]) for lease in self._leases.values())
        return PoolView(self._pages.free_pages, models)

    def _left_to_others(self) -> Counter[int]:
        """Pages by model that others go on to have as it leaves: who stays, or leaves after it."""

        def last(key: int) -> tuple[float, ...]:
            lease = self._leases[key]
            if lease.pinned:
                return (3,)
            if lease.state is Residency.RESIDENT:
                idle = lease.idle and not lease.expected
                return (2, *order_of_leaving(idle, lease.rank, lease.used_s, lease.since_s, key))
            if self.warm_of(lease) > 0:
                return (1, lease.state is Residency.WAITING, lease.used_s, key)
            return (0,)

        return self._contents.left_to_others(last)

    def _seen(self, lease: Lease, left: int) -> ModelView:
        waits = lease.state is Residency.WAITING
        if waits:  # what it can have of others it does not need
            others = lease.pinned or self._contents.matches(lease.key, lease.held)
            pages = lease.pages - lease.held - len(others)
        else:
            pages = max(0, lease.held - lease.keep - left)
        return ModelView(
            lease.key,
            pages,
            lease.state,
            lease.since_s,
            lease.used_s,
            lease.idle and not lease.expected,
            lease.stays_until_s,
            max(0, lease.warmable - lease.held) if waits and lease.early else 0,
            warmable=lease.warmable if self._keeps_warm else 0,
            warm=max(0, self.warm_of(lease) - left),
            cooling=lease.cooling,
            answers=not lease.asked_to_cool,
            ahead=waits and lease.ahead,
            rank=lease.rank,
            turn_ends_s=lease.turn_ends_s,
        )

    @staticmethod
    def _enter(lease: Lease, state: Residency, now_s: float) -> None:
        lease.state = state
        lease.since_s = now_s
        if state is Residency.OUT:
            lease.begun = 0
        if state is not Residency.LEAVING:
            lease.keep = 0
