"""What each model has of the pages of one budget, and how it changes what it has by itself."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from gpupool._core import PagePool
from gpupool.arbiter.leases import Lease
from gpupool.errors import DoesNotFitError, PoolFullError, UsageError
from gpupool.schedule.turns import Residency
from gpupool.sharing.contents import Contents


class Holdings:
    """Models and the pages that they hold. Not thread safe."""

    def __init__(self, pages: PagePool) -> None:
        self._pages = pages
        self._contents = Contents(pages)
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

    def declare(
        self,
        key: int,
        pages: int,
        detail: str = "",
        warmable: int = 0,
        contents: Mapping[int, bytes] | None = None,
    ) -> None:
        """How many pages the model needs to be resident; only while it is out.

        ``warmable`` of them can stay, or come ahead, while it is; of those some, by their places,
        have ``contents`` that may be on pages of others. Raises DoesNotFitError, with the
        bytes needed and the budget, if that can never be, and UsageError out of turn; nothing has
        changed then.
        """
        lease = self._leases[key]
        if lease.state is not Residency.OUT:
            raise UsageError(f"model {lease.name!r} declared a footprint while {lease.state.value}")
        if pages < 1:
            raise UsageError("a footprint has at least one page")
        if not lease.held <= warmable <= pages:
            raise UsageError(
                f"model {lease.name!r} says that {warmable} of its {pages} pages can be warm, and "
                f"{lease.held} are"
            )
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
        lease.warmable = warmable
        self._contents.declare(key, contents or {})

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
        granted = self._get(key, pages)
        lease.pages += pages
        lease.held += pages
        return granted

    def shrink(self, key: int, pages: list[int], *, leaving: bool = False) -> None:
        """Some of the model's pages are not mapped any more.

        It needs so many fewer, unless it is ``leaving``: then they only go ahead of the rest, or
        are warm. Raises UsageError unless it holds them all and, if it is there, one more at least.
        """
        lease = self._leases[key]
        warm = self.warm_of(lease)
        if not (leaving and warm >= len(pages)):
            self._require_held(lease)
            if len(pages) >= lease.held:
                raise UsageError(f"model {lease.name!r} cannot give up all pages and be resident")
        self._give_back(key, pages)
        lease.held -= len(pages)
        lease.cooling = max(0, lease.cooling - len(pages))
        if not leaving:
            lease.pages -= len(pages)

    def take_back(self, key: int, extended: list[int]) -> None:
        """Undo an ``extend``, of whose pages some may be withheld and so no longer the model's."""
        self._give_up(key, extended)
        self._leases[key].pages -= len(extended)

    def _give_up(self, key: int, pages: list[int]) -> None:
        held = set(self._pages.owned(key))
        self._give_back(key, [page for page in pages if page in held])
        self._leases[key].held -= len(pages)

    @staticmethod
    def _require_held(lease: Lease) -> None:
        held = lease.state in (Residency.RESIDENT, Residency.LEAVING)
        if lease.fenced or not held:
            raise UsageError(f"model {lease.name!r} changed its memory while {lease.state.value}")

    def remove(self, key: int) -> int:
        """Forget the model, whose process no longer touches its pages; how many it had."""
        del self._leases[key]
        self._contents.forget(key)
        return self._give_back_all(key)

    def has(self, key: int, pages: Mapping[int, int]) -> None:
        """Pages that the model holds have what it declared, by their places.

        Raises UsageError for one that it does not hold.
        """
        self._require_own(key, pages.values())
        self._contents.has(key, pages)

    def _require_own(self, key: int, pages: Iterable[int]) -> None:
        if not set(self._pages.owned(key)).issuperset(pages):
            raise UsageError(
                f"model {self._leases[key].name!r} told of pages that it does not hold"
            )

    def _get(self, key: int, count: int) -> list[int]:
        """Free pages, which may take long where they must be created; none if it is interrupted."""
        had = self._pages.owned(key)
        try:
            return self._pages.acquire(key, count)
        except BaseException:
            self._pages.give_back(key, list(set(self._pages.owned(key)).difference(had)))
            raise

    def _take(self, key: int, shared: Mapping[int, int]) -> None:
        if shared:
            self._pages.share(key, list(shared.values()))
            self._contents.took(key, shared.values())

    def _give_up_shared(self, key: int, shared: Mapping[int, int]) -> None:
        held = set(self._pages.owned(key))
        self._give_back(key, [page for page in shared.values() if page in held])

    def _unpin(self, lease: Lease) -> None:
        pinned, lease.pinned = lease.pinned, {}
        if pinned:
            self._give_up_shared(lease.key, pinned)

    def _pin_for_first(self) -> None:
        """What others have of what the first in line needs stays as they leave; of it alone."""
        waiting = [lease for lease in self._leases.values() if lease.state is Residency.WAITING]
        waiting.sort(key=lambda lease: (lease.ahead, lease.rank, lease.since_s, lease.key))
        for lease in waiting[1:]:
            self._unpin(lease)
        if waiting and self._contents.wants(waiting[0].key):
            first = waiting[0]
            matches = self._contents.matches(first.key, first.held)
            more = {place: page for place, page in matches.items() if place not in first.pinned}
            self._take(first.key, more)
            first.pinned.update(more)

    def _give_back(self, key: int, pages: list[int]) -> None:
        self._pages.give_back(key, pages)
        self._contents.gave_back(key, pages)

    def _give_back_all(self, key: int) -> int:
        pages = self._pages.give_back_all(key)
        self._contents.gave_back(key, pages)
        return len(pages)

    @staticmethod
    def warm_of(lease: Lease) -> int:
        """Pages of a model that is out, or waits without having begun."""
        out = lease.state in (Residency.OUT, Residency.WAITING) and not lease.fenced
        return lease.held if out and not lease.begun else 0
