"""Who is resident: pages, leases and the policy's decisions, without any I/O or clock of its own.

The daemon and the embedded pool drive the same object; it is not thread safe.
"""

from __future__ import annotations

from collections.abc import Iterator

from gpupool._core import PagePool
from gpupool.errors import DoesNotFitError, DriverError, PoolFullError, UsageError
from gpupool.leases import Granted, Lease, Outcome
from gpupool.schedule.turns import Decision, ModelView, PoolView, Residency, decide

_STAYS_S = 1.0  # until a model that cannot leave is asked again


class Arbiter:
    """Grants and revokes leases over the pages of one budget."""

    def __init__(self, pages: PagePool, turn_s: float) -> None:
        self._pages = pages
        self._turn_s = turn_s
        self._leases: dict[int, Lease] = {}
        self._next_key = 1

    @property
    def budget_bytes(self) -> int:
        """The budget in whole pages."""
        return self._pages.total_pages * self._pages.page_bytes

    @property
    def fenced_pages(self) -> int:
        """Pages held for models whose process has not yet ended."""
        return sum(len(self._pages.owned(k)) for k, lease in self._leases.items() if lease.fenced)

    def lease(self, key: int) -> Lease:
        """The standing of one model."""
        return self._leases[key]

    def leases(self) -> Iterator[Lease]:
        """All models, in the order they were added."""
        return iter(self._leases.values())

    def add(self, name: str, now_s: float) -> int:
        """A new model, out and without footprint. Raises UsageError if the name is taken."""
        for lease in self._leases.values():
            if lease.name == name:
                until = " until its process ends" if lease.fenced else " already"
                raise UsageError(f"a model named {name!r} is in the pool{until}")
        key = self._next_key
        self._next_key += 1
        self._leases[key] = Lease(key, name, since_s=now_s, used_s=now_s)
        return key

    def declare(self, key: int, pages: int, detail: str = "") -> None:
        """How many pages the model needs to be resident; only while it is out.

        Raises DoesNotFitError, with the bytes needed and the budget, if that can never be, and
        UsageError out of turn; nothing has changed then.
        """
        lease = self._leases[key]
        if lease.state is not Residency.OUT:
            raise UsageError(f"model {lease.name!r} declared a footprint while {lease.state.value}")
        if pages < 1:
            raise UsageError("a footprint has at least one page")
        if pages > self._pages.total_pages:
            needed_bytes = pages * self._pages.page_bytes
            raise DoesNotFitError(
                f"model {lease.name!r} needs {needed_bytes} bytes{f' ({detail})' if detail else ''}"
                f" to be resident, but the pool's budget is {self.budget_bytes} bytes: raise the "
                "budget or give the model a smaller KV cache",
                needed_bytes,
                self.budget_bytes,
            )
        lease.pages = pages

    def request(self, key: int, now_s: float, begins_with: int = 0) -> None:
        """The model wants to be resident, and can begin with so many of its pages."""
        lease = self._leases[key]
        if lease.state is not Residency.OUT or lease.pages == 0:
            raise UsageError(f"model {lease.name!r} asked for memory while {lease.state.value}")
        if not 0 <= begins_with < lease.pages:
            raise UsageError(f"model {lease.name!r} cannot begin with all of its pages or more")
        lease.begins_with = begins_with
        lease.asked_s = now_s
        self._enter(lease, Residency.WAITING, now_s)

    def cancel(self, key: int, now_s: float, *, mapped: bool = False) -> bool:
        """Take a request back; False if it was granted already.

        What it began with comes back, or with ``yielded`` if it is still ``mapped``.
        """
        lease = self._leases[key]
        if lease.state is not Residency.WAITING:
            return False
        if not mapped:
            self._pages.give_back_all(key)
            lease.held = 0
        self._enter(lease, Residency.LEAVING if lease.held else Residency.OUT, now_s)
        return True

    def undo(self, granted: Granted, now_s: float) -> None:
        """Pages that were granted cannot be had after all: they are free again.

        The model is out, or leaving if it has begun.
        """
        lease = self._leases[granted.key]
        self._pages.give_back(granted.key, granted.pages)
        lease.held -= len(granted.pages)
        self._enter(lease, Residency.LEAVING if lease.held else Residency.OUT, now_s)

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

    def yielded(self, key: int, now_s: float) -> None:
        """The model has unmapped all its pages."""
        lease = self._leases[key]
        if lease.state not in (Residency.LEAVING, Residency.RESIDENT):
            raise UsageError(f"model {lease.name!r} gave memory back while {lease.state.value}")
        self._pages.give_back_all(key)
        lease.held = 0
        lease.stays, lease.stays_until_s = "", 0.0
        lease.used_s = now_s
        self._enter(lease, Residency.OUT, now_s)

    def extend(self, key: int, pages: int) -> list[int]:
        """More pages for a model that holds its memory, which may be about to leave.

        Raises PoolFullError if they are not free now (a model inside a step cannot wait for
        others, which may wait for it), DriverError, or UsageError; nothing has changed then.
        """
        lease = self._leases[key]
        self._require_held(lease)
        if pages < 1:
            raise UsageError("a lease is extended by at least one page")
        if lease.held < lease.pages:
            raise UsageError(f"model {lease.name!r} asked for pages while it gave others back")
        if pages > self._pages.free_pages:
            raise PoolFullError(
                f"model {lease.name!r} asked for {pages} pages more and {self._pages.free_pages} "
                "are free: resize its regions while it is out, so that others make room"
            )
        granted = self._pages.acquire(key, pages)
        lease.pages += pages
        lease.held += pages
        return granted

    def shrink(self, key: int, pages: list[int], *, leaving: bool = False) -> None:
        """Some of the model's pages are not mapped any more.

        It needs so many fewer, unless it is ``leaving``: then they only go ahead of the rest.
        Raises UsageError unless it holds them all and at least one more.
        """
        lease = self._leases[key]
        self._require_held(lease)
        if len(pages) >= lease.held:
            raise UsageError(f"model {lease.name!r} cannot give up all pages and be resident")
        self._pages.give_back(key, pages)
        lease.held -= len(pages)
        if not leaving:
            lease.pages -= len(pages)

    def take_back(self, key: int, extended: list[int]) -> None:
        """Undo an ``extend``, of whose pages some may be withheld and so no longer the model's."""
        held = set(self._pages.owned(key))
        self._pages.give_back(key, [page for page in extended if page in held])
        self._leases[key].pages -= len(extended)
        self._leases[key].held -= len(extended)

    @staticmethod
    def _require_held(lease: Lease) -> None:
        held = lease.state in (Residency.RESIDENT, Residency.LEAVING)
        if lease.fenced or not held:
            raise UsageError(f"model {lease.name!r} changed its memory while {lease.state.value}")

    def keep(self, key: int, now_s: float, stays: str = "") -> None:
        """The model could not give its memory up and is resident as before.

        With a reason why it ``stays`` others are asked first, for a while.
        """
        lease = self._leases[key]
        if lease.state is Residency.LEAVING and not lease.fenced:
            self._enter(lease, Residency.RESIDENT, now_s)
            lease.stays = stays
            lease.stays_until_s = now_s + _STAYS_S if stays else 0.0

    def fence(self, key: int, now_s: float) -> None:
        """The model's process is lost; its pages stay out of use until ``remove``."""
        lease = self._leases[key]
        lease.fenced = True
        # Its pages are sure to come back, so the policy may count on them like on any leaver's.
        state = Residency.LEAVING if self._pages.owned(key) else Residency.OUT
        self._enter(lease, state, now_s)

    def remove(self, key: int) -> int:
        """Forget the model, whose process no longer touches its pages; how many came back."""
        del self._leases[key]
        return len(self._pages.give_back_all(key))

    def decide(self, now_s: float) -> Outcome:
        """Apply the policy to the present state."""
        decision = decide(self._view(), now_s, self._turn_s)
        outcome = Outcome(wake_at_s=decision.wake_at_s)
        self._apply(decision, outcome, now_s)
        return outcome

    def _apply(self, decision: Decision, outcome: Outcome, now_s: float) -> None:
        for key in decision.grant:
            if granted := self._acquire(key, self._leases[key].pages, outcome, now_s):
                self._enter(self._leases[key], Residency.RESIDENT, now_s)
                self._leases[key].used_s = now_s
                outcome.granted.append(granted)
        if decision.begin is not None:
            begins_with = self._leases[decision.begin].begins_with
            if begun := self._acquire(decision.begin, begins_with, outcome, now_s):
                outcome.begun.append(begun)
        for key in decision.revoke:
            self._enter(self._leases[key], Residency.LEAVING, now_s)
            outcome.revoked.append(key)

    def _acquire(self, key: int, until: int, outcome: Outcome, now_s: float) -> Granted | None:
        """So many pages for a model, counting those that it has."""
        lease = self._leases[key]
        try:
            pages = self._pages.acquire(key, until - lease.held)
        except DriverError as error:
            self._enter(lease, Residency.LEAVING if lease.held else Residency.OUT, now_s)
            outcome.failed.append((key, error))
            return None
        except UsageError:
            return None  # slabs took some since the policy looked; it waits on
        lease.held = until
        return Granted(key, pages, now_s - lease.asked_s)

    def _view(self) -> PoolView:
        return PoolView(self._pages.free_pages, tuple(map(self._seen, self._leases.values())))

    @staticmethod
    def _seen(lease: Lease) -> ModelView:
        waits = lease.state is Residency.WAITING
        return ModelView(
            lease.key,
            lease.pages - lease.held if waits else lease.held,
            lease.state,
            lease.since_s,
            lease.used_s,
            lease.idle,
            lease.stays_until_s,
            lease.begins_with if waits and lease.held == 0 else 0,
        )

    @staticmethod
    def _enter(lease: Lease, state: Residency, now_s: float) -> None:
        lease.state = state
        lease.since_s = now_s
