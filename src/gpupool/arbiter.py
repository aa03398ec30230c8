"""Who is resident: pages, leases and the policy's decisions, without any I/O or clock of its own.

The daemon and the embedded pool drive the same object; it is not thread safe.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from gpupool._core import PagePool
from gpupool.errors import DoesNotFitError, DriverError, PoolFullError, UsageError
from gpupool.schedule.turns import Decision, ModelView, PoolView, Residency, decide

_STAYS_S = 1.0  # until a model that cannot leave is asked again


@dataclass
class Lease:
    """One model's standing with the arbiter."""

    key: int
    name: str
    pages: int = 0
    """What it needs to be resident."""
    ahead: int = 0
    """Pages of it that have come back already while the model leaves."""
    state: Residency = Residency.OUT
    since_s: float = 0.0
    used_s: float = 0.0
    idle: bool = True
    asked_s: float = 0.0
    fenced: bool = False
    """Its process is gone or going; its pages come back with ``remove``."""
    stays: str = ""
    """Why it could not leave when it was asked last; empty if it could."""
    stays_until_s: float = 0.0
    """When it will be asked again."""


@dataclass(frozen=True)
class Granted:
    """The model may swap in, on these pages."""

    key: int
    pages: list[int]
    waited_s: float


@dataclass(frozen=True)
class Outcome:
    """What follows from one look at the state."""

    granted: list[Granted] = field(default_factory=list)
    revoked: list[int] = field(default_factory=list)
    failed: list[tuple[int, DriverError]] = field(default_factory=list)
    """Models whose pages the device could not create; they are out again."""
    wake_at_s: float | None = None


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

    def request(self, key: int, now_s: float) -> None:
        """The model wants to be resident."""
        lease = self._leases[key]
        if lease.state is not Residency.OUT or lease.pages == 0:
            raise UsageError(f"model {lease.name!r} asked for memory while {lease.state.value}")
        lease.asked_s = now_s
        self._enter(lease, Residency.WAITING, now_s)

    def cancel(self, key: int, now_s: float) -> bool:
        """Take a request back; False if it was granted already."""
        lease = self._leases[key]
        if lease.state is not Residency.WAITING:
            return False
        self._enter(lease, Residency.OUT, now_s)
        return True

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
        lease.ahead = 0
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
        if lease.ahead:
            raise UsageError(f"model {lease.name!r} asked for pages while it gave others back")
        if pages > self._pages.free_pages:
            raise PoolFullError(
                f"model {lease.name!r} asked for {pages} pages more and {self._pages.free_pages} "
                "are free: resize its regions while it is out, so that others make room"
            )
        granted = self._pages.acquire(key, pages)
        lease.pages += pages
        return granted

    def shrink(self, key: int, pages: list[int], *, leaving: bool = False) -> None:
        """Some of the model's pages are not mapped any more.

        It needs so many fewer, unless it is ``leaving``: then they only go ahead of the rest.
        Raises UsageError unless it holds them all and at least one more.
        """
        lease = self._leases[key]
        self._require_held(lease)
        if len(pages) >= lease.pages - lease.ahead:
            raise UsageError(f"model {lease.name!r} cannot give up all pages and be resident")
        self._pages.give_back(key, pages)
        if leaving:
            lease.ahead += len(pages)
        else:
            lease.pages -= len(pages)

    def take_back(self, key: int, extended: list[int]) -> None:
        """Undo an ``extend``, of whose pages some may be withheld and so no longer the model's."""
        held = set(self._pages.owned(key))
        self._pages.give_back(key, [page for page in extended if page in held])
        self._leases[key].pages -= len(extended)

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
            lease = self._leases[key]
            try:
                pages = self._pages.acquire(key, lease.pages)
            except DriverError as error:
                self._enter(lease, Residency.OUT, now_s)
                outcome.failed.append((key, error))
                continue
            except UsageError:
                continue  # slabs took some since the policy looked; it waits on
            self._enter(lease, Residency.RESIDENT, now_s)
            lease.used_s = now_s
            outcome.granted.append(Granted(key, pages, now_s - lease.asked_s))
        for key in decision.revoke:
            self._enter(self._leases[key], Residency.LEAVING, now_s)
            outcome.revoked.append(key)

    def _view(self) -> PoolView:
        models = tuple(
            ModelView(
                m.key, m.pages - m.ahead, m.state, m.since_s, m.used_s, m.idle, m.stays_until_s
            )
            for m in self._leases.values()
        )
        return PoolView(self._pages.free_pages, models)

    @staticmethod
    def _enter(lease: Lease, state: Residency, now_s: float) -> None:
        lease.state = state
        lease.since_s = now_s
