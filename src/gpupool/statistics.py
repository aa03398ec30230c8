"""What a pool and its driver did so far, in figures."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

from gpupool._core import Driver, PagePool, SwapReport


@dataclass(frozen=True)
class CallStatistics:
    """One driver call: how often it was made, how often it failed, and the time spent inside."""

    calls: int
    failures: int
    seconds: float


@dataclass(frozen=True)
class DriverStatistics:
    """A driver since it was opened, and what there is of everything now."""

    to_device_bytes: int
    to_host_bytes: int
    filled_bytes: int
    digested_bytes: int
    """Of device memory, most of it as it was copied there."""
    pages: int
    """Handles of physical memory, created or imported."""
    reserved_bytes: int
    """Addresses."""
    mapped_bytes: int
    """Addresses with a page behind them."""
    registered_bytes: int
    """Pinned host memory."""
    streams: int
    events: int
    calls: dict[str, CallStatistics] = field(hash=False)
    """By the name of the call; all of them."""

    @classmethod
    def of(cls, driver: Driver) -> DriverStatistics:
        """Those of an observed driver, as ``open_driver`` gives."""
        assert driver.observer is not None
        calls = {
            name: CallStatistics(count.calls, count.failures, count.ns * 1e-9)
            for name, count in driver.observer.calls().items()
        }
        return cls(calls=calls, **driver.observer.amounts())


@dataclass(frozen=True)
class SwapStatistics:
    """All swaps of a model in one direction."""

    swaps: int
    seconds: float
    copied_bytes: int
    filled_bytes: int
    recopied_bytes: int = 0
    """Of the copied, what did not arrive as it should at first, and did at a second attempt."""
    audited_bytes: int = 0
    """What swap-outs looked at although nobody said that it was written."""
    unmarked_bytes: int = 0
    """Of it, what had been written all the same."""
    moving_seconds: float = 0.0
    """While bytes went over the link: with ``copied_bytes`` how fast."""
    ahead_bytes: int = 0
    """Of the copied, what nobody waited for."""
    ahead_seconds: float = 0.0
    """Of the time in which bytes went over the link, what those took."""


class SwapCount:
    """Adds swaps up."""

    def __init__(self) -> None:
        self._total = SwapStatistics(0, 0.0, 0, 0)

    def add(self, report: SwapReport) -> None:
        """One more."""
        total = self._total
        self._total = SwapStatistics(
            swaps=total.swaps + 1,
            seconds=total.seconds + report.total_s,
            copied_bytes=total.copied_bytes + report.copied_bytes,
            filled_bytes=total.filled_bytes + report.filled_bytes,
            recopied_bytes=total.recopied_bytes + report.recopied_bytes,
            audited_bytes=total.audited_bytes + report.audited_bytes,
            unmarked_bytes=total.unmarked_bytes + report.unmarked_bytes,
            moving_seconds=total.moving_seconds + report.moving_s,
            ahead_bytes=total.ahead_bytes + report.ahead_bytes,
            ahead_seconds=total.ahead_seconds + report.ahead_s,
        )

    def statistics(self) -> SwapStatistics:
        """Those so far."""
        return self._total


@dataclass(frozen=True)
class ModelStatistics:
    """One model of a pool."""

    name: str
    held_bytes: int
    """Pages it has now; while it is out those that are warm."""
    needed_bytes: int
    """Pages it needs to be resident; 0 until it first asked."""
    swap_ins: SwapStatistics
    swap_outs: SwapStatistics
    damaged: int
    """How often memory was not what was saved: as it came in, on a page that others have too, or
    as its image was to be written to a file."""
    parked_bytes: int
    """Of its images, what is in a file and not in host memory."""
    parked_file_bytes: int
    """What that file takes, also of images that have come back and are as they were."""
    parks: int
    """How often they were parked."""
    read_backs: int
    """How often they came back."""
    read_back_bytes: int
    """What was read then, of all times together."""
    read_back_s: float
    """How long that took."""


@dataclass(frozen=True)
class PagesStatistics:
    """The pages of a budget."""

    total: int
    created: int
    free: int
    """Not yet created, clean, dirty or being scrubbed."""
    clean: int
    """Free, and reading as zeros throughout."""
    dirty: int
    scrubbing: int
    withheld: int
    """Kept from everybody after a failure."""
    owned: int

    @classmethod
    def of(cls, pages: PagePool) -> PagesStatistics:
        """Those of a pool at one moment."""
        now = pages.statistics()
        return cls(
            total=now.total,
            created=now.created,
            free=now.total - now.withheld - now.owned,
            clean=now.clean,
            dirty=now.dirty,
            scrubbing=now.scrubbing,
            withheld=now.withheld,
            owned=now.owned,
        )


@dataclass(frozen=True)
class PoolStatistics:
    """A pool, its models in the order they came, and its driver."""

    page_bytes: int
    pages: PagesStatistics
    host_bytes: int
    """Host memory that models have for images and KV blocks, what they share of it once."""
    models: tuple[ModelStatistics, ...]
    driver: DriverStatistics

    def as_json(self) -> dict[str, object]:
        """The same for ``json.dumps``."""
        return asdict(self)
