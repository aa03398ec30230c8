"""
The C++ core of gpupool: pages, mappings, images and swaps.
"""

from __future__ import annotations

import collections.abc
import enum
import typing

import typing_extensions

__all__: list[str] = [
    "DIGEST_PIECE_BYTES",
    "ArenaStatistics",
    "BlockCopier",
    "CallCount",
    "Cancellation",
    "CopyMark",
    "Driver",
    "FaultPlan",
    "ImageBuffer",
    "ModelMemory",
    "Observer",
    "Page",
    "PagePool",
    "PoolStatistics",
    "Region",
    "RegionArena",
    "RunDigester",
    "Scrubber",
    "ShapeStatistics",
    "SlabAllocator",
    "SlabStatistics",
    "SuppliedSlabs",
    "SwapReport",
    "Tag",
    "Trace",
    "Verify",
    "copy_with_digest",
    "digest",
    "open_cuda_driver",
    "open_host_driver",
    "with_faults",
    "with_observer",
]

class CallCount:
    """
    What became of one driver call.
    """
    @property
    def calls(self) -> int: ...
    @property
    def failures(self) -> int: ...
    @property
    def ns(self) -> int:
        """
        Nanoseconds spent inside, of all of them.
        """

class Trace:
    """
    What happened when, in bounded memory.
    """
    def __init__(self, max_events: typing.SupportsInt | typing.SupportsIndex = 1000000) -> None: ...
    def close(self) -> None:
        """
        Nothing is recorded from now on.
        """
    def write(self, sink: collections.abc.Callable[[bytes], typing.Any]) -> None:
        """
        Closes it and hands it to `sink` as JSON, piece by piece.
        """
    @property
    def dropped(self) -> int:
        """
        Events for which there was no room.
        """

class Observer:
    """
    Counts the calls of a driver, and traces them.
    """
    def amounts(self) -> dict[str, int]:
        """
        What was moved, and what there is of everything now.
        """
    def calls(self) -> dict[str, CallCount]:
        """
        Of each driver call, by its name.
        """
    def span(
        self,
        name: str,
        begin_ns: typing.SupportsInt | typing.SupportsIndex,
        end_ns: typing.SupportsInt | typing.SupportsIndex,
        values: collections.abc.Mapping[
            str,
            typing.SupportsInt
            | typing.SupportsIndex
            | typing.SupportsFloat
            | typing.SupportsIndex
            | str,
        ],
    ) -> None:
        """
        Something of this thread that a reader of the trace should see.
        """
    def start(self, trace: Trace) -> None:
        """
        Record to `trace` until stop().
        """
    def stop(self) -> None: ...
    @property
    def tracing(self) -> bool: ...

class Driver:
    """
    Device work behind one interface.
    """
    def now_ns(self) -> int:
        """
        The monotonic clock of traces, in nanoseconds.
        """
    def page_granularity(self) -> int:
        """
        Smallest page size in bytes; every page size is a multiple of it.
        """
    @property
    def kind(self) -> str:
        """
        'cuda' or 'host'.
        """
    @property
    def observer(self) -> Observer:
        """
        Who counts its calls, if somebody does.
        """
    @property
    def ordinal(self) -> int:
        """
        Index of the device.
        """

class FaultPlan:
    """
    Fails chosen driver calls, for tests.
    """
    def __init__(self) -> None: ...
    def arm(
        self,
        nth: typing.SupportsInt | typing.SupportsIndex,
        code: typing.SupportsInt | typing.SupportsIndex,
        persistent: bool = False,
        releases: bool = False,
    ) -> None:
        """
        The nth call from now answers `code`; with `persistent` so do all after it.

        Calls that only give something back count and fail with `releases` alone.
        """
    def arm_kill(self, nth: typing.SupportsInt | typing.SupportsIndex, after: bool = False) -> None:
        """
        This process is killed before the nth call from now, or with `after` once the nth has
        succeeded.
        """
    def disarm(self) -> None: ...
    @property
    def injected(self) -> int:
        """
        Calls failed since arm().
        """

class Page:
    """
    Physical device memory of one fixed size.
    """
    @staticmethod
    def import_fd(
        driver: Driver,
        fd: typing.SupportsInt | typing.SupportsIndex,
        bytes: typing.SupportsInt | typing.SupportsIndex,
    ) -> Page:
        """
        A page another process exported; `fd` stays the caller's.
        """
    def export_fd(self) -> int:
        """
        A new descriptor, owned by the caller.
        """
    @property
    def bytes(self) -> int: ...
    @property
    def handle(self) -> int:
        """
        The driver's, unique while the page lives.
        """

class PoolStatistics:
    """
    What of a budget is where, in pages.
    """
    @property
    def clean(self) -> int: ...
    @property
    def created(self) -> int: ...
    @property
    def dirty(self) -> int: ...
    @property
    def owned(self) -> int: ...
    @property
    def scrubbing(self) -> int: ...
    @property
    def total(self) -> int: ...
    @property
    def withheld(self) -> int: ...

class PagePool:
    """
    The pages of one budget and who has them.
    """
    def __init__(
        self,
        driver: Driver,
        budget_bytes: typing.SupportsInt | typing.SupportsIndex,
        page_bytes: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def acquire(
        self,
        owner: typing.SupportsInt | typing.SupportsIndex,
        count: typing.SupportsInt | typing.SupportsIndex,
    ) -> list[int]:
        """
        `count` pages for `owner`, all or none, clean ones first.
        """
    def create_ahead(self, count: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Makes pages now rather than at their first use, until there are `count`.
        """
    def give_back(
        self,
        owner: typing.SupportsInt | typing.SupportsIndex,
        pages: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    ) -> None:
        """
        Pages their owner no longer maps.
        """
    def give_back_all(self, owner: typing.SupportsInt | typing.SupportsIndex) -> list[int]: ...
    def is_clean(self, id: typing.SupportsInt | typing.SupportsIndex) -> bool:
        """
        Whether it read as zeros when it was acquired, or does now if it is free.
        """
    def owned(self, owner: typing.SupportsInt | typing.SupportsIndex) -> list[int]: ...
    def page(self, id: typing.SupportsInt | typing.SupportsIndex) -> Page: ...
    def share(
        self,
        owner: typing.SupportsInt | typing.SupportsIndex,
        pages: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    ) -> None:
        """
        Gives `owner` pages that others hold and go on to hold.
        """
    def statistics(self) -> PoolStatistics: ...
    @property
    def created_pages(self) -> int: ...
    @property
    def free_pages(self) -> int: ...
    @property
    def page_bytes(self) -> int: ...
    @property
    def total_pages(self) -> int: ...

class Scrubber:
    """
    Zeroes pages of a pool on a stream of its own.
    """
    def __init__(
        self,
        driver: Driver,
        pool: PagePool,
        pages_at_once: typing.SupportsInt | typing.SupportsIndex,
    ) -> None: ...
    def scrub_free(self) -> int:
        """
        Scrubs dirty free pages, at most as many as it takes at a time; returns how many.
        """
    def scrub_owned(
        self,
        owner: typing.SupportsInt | typing.SupportsIndex,
        pages: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    ) -> None:
        """
        Scrubs pages that `owner` holds and has not mapped.
        """
    def settle(self) -> None:
        """
        Gives the pool what an earlier failure withheld from it.
        """

class CopyMark:
    """
    A point among the copies of one stream.
    """
    def done(self) -> bool:
        """
        Whether all copies before it have arrived. Raises DriverError.
        """
    def wait(self) -> None:
        """
        Returns when they have. Raises DriverError.
        """

class BlockCopier:
    """
    Copies blocks between device and registered host memory on a stream of its own.

    Addresses and sizes are integers of 64 bits, in a buffer such as array('Q') or numpy's, or in
    a sequence. 'batch' makes one driver call for many blocks, which it copies in no order: what
    is written must not overlap. 'each' makes one for each block. The memory must stay as it is
    until synchronize(), also after a DriverError, whose status is 801 if the driver has no call
    for batches; nothing is in flight of that one.
    """
    def __init__(
        self, driver: Driver, chunk_bytes: typing.SupportsInt | typing.SupportsIndex = 33554432
    ) -> None: ...
    def mark(self) -> CopyMark:
        """
        A mark behind the copies so far. Raises DriverError.
        """
    def synchronize(self) -> None:
        """
        Waits for all copies. Raises DriverError.
        """
    def to_device(
        self,
        device_addresses: typing_extensions.Buffer
        | collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        host_addresses: typing_extensions.Buffer
        | collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        sizes: typing_extensions.Buffer
        | collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        method: str = "batch",
    ) -> None:
        """
        Returns when the copies are enqueued. Raises UsageError or DriverError.
        """
    def to_host(
        self,
        device_addresses: typing_extensions.Buffer
        | collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        host_addresses: typing_extensions.Buffer
        | collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        sizes: typing_extensions.Buffer
        | collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        method: str = "batch",
    ) -> None:
        """
        Returns when the copies are enqueued. Raises UsageError or DriverError.
        """
    @property
    def stream(self) -> int:
        """
        The driver's handle of its stream.
        """

class RunDigester:
    """
    Digests runs of device memory behind what a stream does; for one thread at a time.
    """
    def __init__(self, driver: Driver) -> None: ...
    def enqueue(
        self,
        addresses: typing_extensions.Buffer
        | collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        sizes: typing_extensions.Buffer
        | collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        stream: typing.SupportsInt | typing.SupportsIndex,
    ) -> int:
        """
        Puts the digests of these runs, of a byte or more, on the stream of that handle; what to
        take them by. Raises UsageError, DriverError or OSError; nothing is in flight then.
        """
    def take(self, number: typing.SupportsInt | typing.SupportsIndex) -> bytes:
        """
        The digests, of 8 bytes each, once the stream is known to be past that point.

        What was enqueued before must have ended as well, and is forgotten. Raises UsageError for
        what was taken already.
        """

class Tag(enum.Enum):
    """
    What a region holds.
    """

    cudagraph = 2
    kv_cache = 3
    runtime = 1
    weights = 0
    workspace = 4

class Verify(enum.Enum):
    """
    Which copies of a swap-in are verified.
    """

    always = 2
    off = 0
    sample = 1

class SwapReport:
    """
    What one swap took and moved.
    """
    def __add__(self, arg0: SwapReport) -> SwapReport:
        """
        Of one after the other.
        """
    def __init__(self) -> None:
        """
        Of nothing.
        """
    def as_ahead(self) -> SwapReport:
        """
        The same, of copies that nobody waited for.
        """
    @property
    def ahead_bytes(self) -> int:
        """
        Of the copied, what nobody waited for.
        """
    @property
    def ahead_s(self) -> float:
        """
        Of moving_s, what took copies that nobody waited for.
        """
    @property
    def audited_bytes(self) -> int:
        """
        That nobody said were written, and a swap-out looked at.
        """
    @property
    def copied_bytes(self) -> int: ...
    @property
    def copy_s(self) -> float: ...
    @property
    def filled_bytes(self) -> int: ...
    @property
    def map_s(self) -> float: ...
    @property
    def moving_s(self) -> float:
        """
        Of copy_s, the part in which bytes went over the link.
        """
    @property
    def pages(self) -> int: ...
    @property
    def recopied_bytes(self) -> int: ...
    @property
    def shared_bytes(self) -> int: ...
    @property
    def total_s(self) -> float: ...
    @property
    def unmarked_bytes(self) -> int:
        """
        Of those, in pieces that were written all the same.
        """
    @property
    def verified_bytes(self) -> int: ...

class ImageBuffer:
    """
    A region's host image.
    """

class Region:
    """
    A range of device addresses of one tag.
    """
    def __dlpack__(
        self,
        *,
        stream: typing.SupportsInt | typing.SupportsIndex | None = None,
        max_version: tuple[
            typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
        ]
        | None = None,
        dl_device: tuple[
            typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
        ]
        | None = None,
        copy: bool | None = None,
    ) -> typing_extensions.CapsuleType:
        """
        A uint8 tensor over the addresses, which stay reserved while it lives; there is memory
        behind them only while the model is resident.
        """
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def adopt_image(
        self, digests: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex] = []
    ) -> None:
        """
        The caller filled the image: a swap-in restores all of it.

        Whoever digested it meanwhile gives the digest of every DIGEST_PIECE_BYTES of it, and
        of what is behind the last of them, which are not made again. Raises UsageError for
        another number of them.
        """
    def image(self) -> ImageBuffer:
        """
        The host image as a writable buffer of `bytes`, which stays for as long as it is held.

        Raises UsageError for a region that has none, as once it is removed or its model closed,
        and for one that is parked.
        """
    def known_digests(self) -> list[tuple[int, int, int]]:
        """
        What its image should digest to, piece by piece: begin and end in bytes, and the digest.

        Of bytes that were not saved there is none, nor of any where nothing is verified.
        Raises UsageError for a region without an image, as a parked one.
        """
    def mark_written(
        self,
        runs: collections.abc.Sequence[
            tuple[
                typing.SupportsInt | typing.SupportsIndex, typing.SupportsInt | typing.SupportsIndex
            ]
        ],
    ) -> None:
        """
        Runs (offset, bytes) that the device has changed.
        """
    def missing_image_bytes(self, bytes: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        What its image lacks to be as long as that.
        """
    def replace_image(
        self,
        extents: collections.abc.Sequence[
            tuple[
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsInt | typing.SupportsIndex,
                typing.SupportsInt | typing.SupportsIndex,
            ]
        ],
        is_shared: bool,
    ) -> bool:
        """
        Puts other memory with the same bytes behind its image, as (fd, offset, bytes).

        False if the driver did not let go of what was there.
        """
    def resize(
        self,
        bytes: typing.SupportsInt | typing.SupportsIndex,
        pages: collections.abc.Sequence[Page],
        clean: typing.SupportsInt | typing.SupportsIndex,
        image_fd: typing.SupportsInt | typing.SupportsIndex,
    ) -> list[int]:
        """
        Makes it `bytes` long; the handles of the pages that it no longer maps.
        """
    def seal(self) -> None:
        """
        Has it mapped for reading alone from now on, so that other models can have its pages.
        """
    def unseal(self) -> None:
        """
        It can be written to again.
        """
    @property
    def __array_interface__(self) -> dict[str, typing.Any]:
        """
        The bytes for numpy, as DLPack shows them; on the host alone.
        """
    @property
    def __cuda_array_interface__(self) -> dict[str, typing.Any]:
        """
        The bytes for CuPy, Numba and others; on a GPU alone.
        """
    @property
    def address(self) -> int: ...
    @property
    def bytes(self) -> int: ...
    @property
    def capacity_bytes(self) -> int:
        """
        How long it can become, in whole pages.
        """
    @property
    def image_bytes(self) -> int:
        """
        Host memory behind it, in whole pages of the system.
        """
    @property
    def image_changes(self) -> int:
        """
        Counts what may have changed its image.
        """
    @property
    def image_is_shared(self) -> bool:
        """
        Whether its image is counted as memory that others share.
        """
    @property
    def mapped_pages(self) -> int:
        """
        Pages behind it now; none while the model is out.
        """
    @property
    def page_handles(self) -> list[int]:
        """
        Page.handle of each of them, in order.
        """
    @property
    def parked(self) -> bool:
        """
        Whether its image was let go, see ModelMemory.park.
        """
    @property
    def saved_bytes(self) -> int:
        """
        Bytes of the host image that a swap-in copies.
        """
    @property
    def span_bytes(self) -> int:
        """
        Size in whole pages.
        """
    @property
    def tag(self) -> Tag: ...

class Cancellation:
    """
    Stops the swap-in that it is given to.
    """
    def __init__(self) -> None: ...
    def cancel(self) -> None:
        """
        From any thread; the swap-in raises SwapCancelledError unless it is done by then.
        """

class ModelMemory:
    """
    Residency of one model.
    """
    def __init__(
        self,
        driver: Driver,
        page_bytes: typing.SupportsInt | typing.SupportsIndex,
        chunk_bytes: typing.SupportsInt | typing.SupportsIndex = 33554432,
        streams: typing.SupportsInt | typing.SupportsIndex = 2,
        verify: Verify = ...,
    ) -> None: ...
    def add_region(
        self,
        tag: Tag,
        bytes: typing.SupportsInt | typing.SupportsIndex,
        image_fd: typing.SupportsInt | typing.SupportsIndex | None = -1,
        capacity_bytes: typing.SupportsInt | typing.SupportsIndex = 0,
    ) -> Region: ...
    def close(self) -> None:
        """
        Lets the images of a model that is out go; it cannot be changed any more.
        """
    def cool(self, count: typing.SupportsInt | typing.SupportsIndex) -> list[int]:
        """
        Unmaps the last so many warm pages; the handles of those that went.
        """
    def drain(self, keep: typing.SupportsInt | typing.SupportsIndex = 0) -> list[int]:
        """
        The next part of a swap-out: the handles of the pages that went, which swap_out ends.

        None once all that is left goes together. The model is torn from the first part on.
        """
    def make_image(
        self, region: Region, fd: typing.SupportsInt | typing.SupportsIndex
    ) -> ImageBuffer:
        """
        Memory for what a parked region had.
        """
    def park(
        self,
        regions: collections.abc.Sequence[Region],
        changes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
    ) -> None:
        """
        Lets the images of these regions go, of which the caller has a copy that was begun when
        `image_changes` of each was this.
        """
    def remove_region(self, region: Region) -> None:
        """
        Forgets a region of a model that is out.
        """
    def swap_in(
        self,
        pages: collections.abc.Sequence[Page],
        clean: typing.SupportsInt | typing.SupportsIndex = 0,
        cancellation: Cancellation | None = None,
        shared: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, Page]
        ] = [],
    ) -> SwapReport:
        """
        Maps the pages, of which the first `clean` read as zeros, and restores every region.

        Where it verifies, only KV caches and workspaces have clean pages as they are.
        `shared` pages of other models have the bytes of some of the pages that can be warm,
        of sealed regions, whose places in the order of those come with them.
        """
    def swap_out(self, keep: typing.SupportsInt | typing.SupportsIndex = 0) -> SwapReport:
        """
        Saves what the images lack and unmaps all but the first `keep` warmable pages.
        """
    def take_gone_image_bytes(self) -> int:
        """
        Bytes of images that have gone since the last call: no longer pinned nor mapped.
        """
    def take_gone_shared_bytes(self) -> int:
        """
        The same of images that others share.
        """
    def unpark(
        self,
        regions: collections.abc.Sequence[Region],
        images: collections.abc.Sequence[ImageBuffer],
    ) -> None:
        """
        Each of these regions has its image again, filled with what was parked.
        """
    def warm(
        self,
        pages: collections.abc.Sequence[Page],
        clean: typing.SupportsInt | typing.SupportsIndex = 0,
        cancellation: Cancellation | None = None,
        shared: collections.abc.Sequence[
            tuple[typing.SupportsInt | typing.SupportsIndex, Page]
        ] = [],
    ) -> SwapReport:
        """
        Fills so many more pages of a model that is out; swap_in verifies them once more.

        `shared` ones are as `swap_in` has them, at places of those that come.
        """
    @property
    def pages_needed(self) -> int: ...
    @property
    def resident(self) -> bool: ...
    @property
    def torn(self) -> bool:
        """
        Pages are still mapped after a failure or a drain; swap_out unmaps them.
        """
    @property
    def warm_pages(self) -> int:
        """
        How many do.
        """
    @property
    def warmable_pages(self) -> int:
        """
        How many pages can stay, or come ahead, while the model is out.
        """

class ArenaStatistics:
    """
    What of a region's room is in use, in bytes.
    """
    @property
    def free_blocks(self) -> int: ...
    @property
    def largest_free_bytes(self) -> int: ...
    @property
    def limit_bytes(self) -> int: ...
    @property
    def live_blocks(self) -> int: ...
    @property
    def live_bytes(self) -> int: ...
    @property
    def peak_bytes(self) -> int: ...
    @property
    def refused(self) -> int:
        """
        Allocations for which there was no room.
        """

class RegionArena:
    """
    Blocks of a region, for the allocators of torch and CuPy.
    """
    @staticmethod
    def slots_taken() -> int:
        """
        How many of the extension's pairs of functions are in use.
        """
    def __init__(
        self, region: Region, alignment: typing.SupportsInt | typing.SupportsIndex = 512
    ) -> None: ...
    def statistics(self) -> ArenaStatistics: ...
    @property
    def cupy_functions(self) -> tuple[int, int, int]:
        """
        Addresses: what to pass first, malloc and free.
        """
    @property
    def refused_frees(self) -> int:
        """
        Frees of what is no block in use, or when the device had failed.
        """
    @property
    def slot(self) -> int:
        """
        Which of the extension's pairs of functions it has.
        """
    @property
    def torch_symbols(self) -> tuple[str, str]:
        """
        Names of the two functions in the extension that torch is to call.
        """

class SuppliedSlabs:
    """
    Slabs of pinned host memory that somebody else grants. Thread safe.
    """
    def __init__(
        self, driver: Driver, slab_bytes: typing.SupportsInt | typing.SupportsIndex
    ) -> None: ...
    def drop_idle(self) -> int:
        """
        Lets go of the slabs that are not in use and says how many are gone, no longer mapped.
        What the driver does not let go counts as `lost`.
        """
    def supply(self, fd: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        One more slab, over a file that has room for it; the descriptor stays the caller's.

        Raises UsageError, DriverError or HostMemoryError; nothing has changed then.
        """
    @property
    def idle(self) -> int: ...
    @property
    def in_use(self) -> int: ...
    @property
    def lost(self) -> int: ...
    @property
    def slab_bytes(self) -> int: ...

class ShapeStatistics:
    """
    The blocks of one size.
    """
    @property
    def block_bytes(self) -> int: ...
    @property
    def blocks(self) -> int:
        """
        In these slabs, in use or not.
        """
    @property
    def blocks_live(self) -> int: ...
    @property
    def slabs(self) -> int: ...

class SlabStatistics:
    """
    What a slab allocator holds.
    """
    @property
    def bytes_held(self) -> int: ...
    @property
    def bytes_live(self) -> int: ...
    @property
    def fragmentation(self) -> float:
        """
        Share of the bytes held that no block in use covers.
        """
    @property
    def return_failures(self) -> int: ...
    @property
    def shapes(self) -> list[ShapeStatistics]: ...
    @property
    def slabs(self) -> int: ...
    @property
    def slabs_made(self) -> int: ...
    @property
    def slabs_returned(self) -> int: ...
    @property
    def slabs_taken(self) -> int:
        """
        From the thread that owned them.
        """

class SlabAllocator:
    """
    Blocks of fixed sizes, carved from slabs. Thread safe.
    """
    @staticmethod
    def on_host(
        driver: Driver,
        slab_bytes: typing.SupportsInt | typing.SupportsIndex,
        block_bytes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        slabs_max: typing.SupportsInt | typing.SupportsIndex,
    ) -> SlabAllocator:
        """
        Slabs of pinned host memory.
        """
    @staticmethod
    def on_pages(
        driver: Driver,
        pages: PagePool,
        owner: typing.SupportsInt | typing.SupportsIndex,
        pages_per_slab: typing.SupportsInt | typing.SupportsIndex,
        block_bytes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        slabs_max: typing.SupportsInt | typing.SupportsIndex,
    ) -> SlabAllocator:
        """
        Slabs of device memory: pages of a pool, as `owner` of them.
        """
    @staticmethod
    def on_supplied(
        source: SuppliedSlabs,
        block_bytes: collections.abc.Sequence[typing.SupportsInt | typing.SupportsIndex],
        slabs_max: typing.SupportsInt | typing.SupportsIndex,
    ) -> SlabAllocator:
        """
        Slabs that are supplied to `source`; without one left, NoSlabSuppliedError is raised.
        """
    def address_of(self, handle: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        Where the block is. Raises StaleBlockError.
        """
    def addresses_of(
        self, handles: typing_extensions.Buffer, addresses: typing_extensions.Buffer
    ) -> None:
        """
        Fills a writable buffer as long as that of the handles with the addresses of their blocks.

        Raises StaleBlockError or UsageError; the buffer is as before then.
        """
    def allocate(self, bytes: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        A handle of a block of the smallest size that holds `bytes`, which are whatever was
        there.

        Raises UsageError if no block is as large or the pool has no page free,
        OutOfBlocksError at the limit on slabs, DriverError or HostMemoryError.
        """
    def allocate_many(
        self, bytes: typing.SupportsInt | typing.SupportsIndex, handles: typing_extensions.Buffer
    ) -> None:
        """
        Fills a writable buffer of 64-bit words with handles, as `allocate` does: all or none.

        After an error nothing is allocated, and what is in the buffer means nothing.
        """
    def allocate_shape(self, shape: typing.SupportsInt | typing.SupportsIndex) -> int:
        """
        The same for one of the sizes, by its index in `block_bytes`.
        """
    def free(self, handle: typing.SupportsInt | typing.SupportsIndex) -> None:
        """
        Ends one use of a block, by any thread; nothing in flight may touch it any more.

        Raises StaleBlockError if the handle's block is not in use under it; nothing has
        changed then.
        """
    def free_many(self, handles: typing_extensions.Buffer) -> None:
        """
        Frees the blocks of a buffer of handles: all, or none if StaleBlockError is raised, as
        also for a handle named twice.
        """
    def statistics(self) -> SlabStatistics:
        """
        Exact while no other thread is calling.
        """
    def trim(self) -> None:
        """
        Gives every slab back that has no block in use. Raises DriverError.
        """
    @property
    def block_bytes(self) -> list[int]:
        """
        The sizes of blocks, in bytes.
        """

def copy_with_digest(
    destination: typing_extensions.Buffer, source: typing_extensions.Buffer, first_word: int = 0
) -> int:
    """
    Copies, and returns the digest of what was copied; each byte is read once.

    Raises UsageError if the sizes differ or the two overlap, BufferError for a destination that
    is read-only or bytes that are not contiguous; nothing is copied then.
    """

def digest(buffer: typing_extensions.Buffer, first_word: int = 0) -> int:
    """
    A 64-bit digest of the bytes, which must be contiguous; csrc/digest/digest.h defines it.

    It finds accidents, not forgeries. A run's digest is the sum, modulo 2**64, of those of its
    parts, each with the number of its first word of 8 bytes. Raises UsageError or BufferError.
    """

def open_cuda_driver(ordinal: typing.SupportsInt | typing.SupportsIndex) -> Driver:
    """
    The CUDA driver of this machine. Raises RuntimeError where there is none.
    """

def open_host_driver(
    stepped_seed: typing.SupportsInt | typing.SupportsIndex | None = None,
) -> Driver:
    """
    An emulation in host memory: pages are memfds, streams are threads.

    With a seed, for tests, what is on streams runs inside driver calls, as early or as late as
    CUDA allows.
    """

def with_faults(driver: Driver, plan: FaultPlan) -> Driver:
    """
    The same driver, failing as the plan says.
    """

def with_observer(driver: Driver) -> Driver:
    """
    The same driver, observed; itself if it is already.
    """

DIGEST_PIECE_BYTES: int = 2097152
