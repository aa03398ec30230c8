"""Images of a model that is out go to a file, for others to have the host memory, and come back."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

from gpupool._core import ImageBuffer, ModelMemory, Region, Tag
from gpupool.errors import (
    DaemonUnavailableError,
    GpupoolError,
    ImageWriteError,
    LeaseTimeoutError,
    SwapCancelledError,
    UsageError,
)
from gpupool.host_images import give_back, in_system_pages
from gpupool.residency.parked_file import ParkedFile
from gpupool.residency.parked_slots import Slot, parts_of, slots_for
from gpupool.session import Session, Wanted
from gpupool.trace import Values, span

_TAGS = (Tag.weights, Tag.runtime, Tag.cudagraph)
_REGIONS_MAX = 253  # host memory for all comes back in one message


class Parking:
    """The images of one model, which are in host memory, or parked. Thread safe."""

    def __init__(self, name: str, session: Session, return_images: Callable[[], None]) -> None:
        """Without a file; ``return_images`` takes off the account what has gone of them."""
        self._name = name
        self._session = session
        self._return_images = return_images
        self._lock = threading.Lock()  # of whoever parks them or brings them back
        self._reading = threading.Lock()  # of whoever reads them, which is not waited for long
        self._ended = False
        self._pins = 0
        self._file: ParkedFile | None = None
        self._slots: list[Slot] = []

    @property
    def parked_bytes(self) -> int:
        """What is in a file, and not in host memory."""
        return sum(slot.size_bytes for slot in self._slots if slot.region.parked)

    @staticmethod
    def parkable_bytes(regions: list[Region]) -> int:
        """Host memory that these may let go."""
        return sum(in_system_pages(region.bytes) for region in _parkable(regions))

    def park(self, memory: ModelMemory, regions: list[Region], deadline_s: float) -> None:
        """Write the images of regions of a model that is out, let them go, and say so.

        What cannot be parked within ``deadline_s`` stays as it was.
        """
        size_bytes, why, passes = 0, "", False
        if self.is_in_use() or not self._lock.acquire(blocking=False):
            self.answer()
            return
        try:
            if self._pins == 0:
                size_bytes = self._park(memory, regions, time.monotonic() + deadline_s)
        except Exception as error:  # whatever it is, others wait for an answer
            why = str(error) or type(error).__name__
            passes = isinstance(error, UsageError)  # it is looked at, changed, or not filled yet
        finally:
            try:
                # Not after the lock: that they are back again would be heard of first.
                self._return_images()
                self.answer(size_bytes, why, passes=passes)
            finally:
                self._lock.release()

    def park_cold(
        self,
        memory: ModelMemory,
        regions: list[Region],
        deadline_s: float | None,
        cold: AbstractContextManager[None],
    ) -> None:
        """The same, without warm pages, which go for as long as ``cold``; not with no deadline."""
        if deadline_s is None:
            self.answer()
            return
        try:
            with cold:
                pass
        except GpupoolError as error:
            self.answer(0, str(error))
        else:
            self.park(memory, regions, deadline_s)

    def is_in_use(self) -> bool:
        """Whether somebody wants the images to stay where they are."""
        return self._pins > 0

    def answer(self, size_bytes: int = 0, why: str = "", *, passes: bool = False) -> None:
        """Say what became of the wish that they be parked."""
        with contextlib.suppress(DaemonUnavailableError):  # nobody wishes it any more
            self._session.parked(size_bytes, self._file_bytes, why, passes=passes)

    @contextlib.contextmanager
    def pinned(self, memory: Callable[[], ModelMemory], timeout_s: float) -> Iterator[None]:
        """Keep the images in host memory for the length of a ``with`` block."""
        deadline_s = time.monotonic() + timeout_s
        with self._held(timeout_s):
            self._pins += 1
        try:
            self.bring_back(memory(), max(0.0, deadline_s - time.monotonic()))
            yield
        finally:
            with self._lock:
                self._pins -= 1

    def bring_back(
        self, memory: ModelMemory, timeout_s: float, wanted: Wanted | None = None
    ) -> None:
        """Have the images in host memory, within ``timeout_s`` of waiting for some.

        ``wanted`` is as ``Session.acquire`` has it. Raises LeaseTimeoutError, RefusedError if
        nobody can make room, DamagedMemoryError, SwapCancelledError, HostMemoryError, DriverError,
        DaemonUnavailableError, or UsageError for a model that is closed meanwhile; they are parked
        still then.
        """
        deadline_s = time.monotonic() + timeout_s
        with self._held(timeout_s):
            parked = [slot for slot in self._slots if slot.region.parked]
            if not parked:
                return
            sizes = [in_system_pages(slot.size_bytes) for slot in parked]
            with span(self._session.driver, f"host memory wait {self._name}", {}):
                limit_s = max(0.0, deadline_s - time.monotonic())
                try:
                    granted = self._session.host_memories(sizes, limit_s, wanted, returns=True)
                except DaemonUnavailableError:
                    self._require_open()  # the session has ended with the model
                    raise
            with self._reading:
                self._read_back(memory, parked, sizes, granted.fds, wanted, keep=granted.keeps_file)

    @contextlib.contextmanager
    def _held(self, timeout_s: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=min(max(0.0, timeout_s), threading.TIMEOUT_MAX)):
            raise LeaseTimeoutError("another thread parks or awaits the images of this model")
        try:
            yield
        finally:
            self._lock.release()

    def forget(self, region: Region) -> None:
        """It is removed."""
        with self._lock:
            self._slots = [slot for slot in self._slots if slot.region is not region]
            self._drop_unless_needed()

    def end(self) -> None:
        """The model is closed: nobody reads anything back any more on return, nor later."""
        self._ended = True
        with self._reading:
            pass

    def close(self) -> None:
        """The model has left for good; what is in the file goes."""
        with self._lock:
            self._slots = []
            self._drop_unless_needed()

    @property
    def _file_bytes(self) -> int:
        file = self._file  # which another thread may drop
        return 0 if file is None else file.size_bytes

    def _park(self, memory: ModelMemory, regions: list[Region], deadline_s: float) -> int:
        if self._session.parking is None:
            raise ImageWriteError("no folder for parked images is configured")
        some = [r for r in _parkable(regions) if r.image_bytes > 0]
        which = [r for r in some if r.saved_bytes == r.bytes]  # as it was filled
        if not which:
            why = f"model {self._name!r} has no image that could be parked"
            # What has grown is saved as it leaves the next time, for which nobody need wait.
            if some and all(region.saved_bytes > 0 for region in some):
                raise ImageWriteError(why)
            raise UsageError(why)
        values: Values = {}
        with span(self._session.driver, f"park {self._name}", values):
            values.update(bytes=self._write(which, deadline_s))
            memory.park(which, [slot.changes for slot in self._slots])
        return sum(slot.size_bytes for slot in self._slots)

    def _write(self, regions: list[Region], deadline_s: float) -> int:
        """To the file, but for what is in it already."""
        known = {slot.region: slot.size_bytes for slot in self._slots}
        if self._file is None or known != {region: region.bytes for region in regions}:
            self._start_file(regions)
        assert self._file is not None
        changed = [slot for slot in self._slots if slot.changes != slot.region.image_changes]

        def go_on() -> None:
            if time.monotonic() > deadline_s:
                raise ImageWriteError("images were not parked in time: the disk is too slow")

        with contextlib.ExitStack() as stack:
            begun = [slot.region.image_changes for slot in changed]
            for slot in changed:
                slot.changes = -1
            self._file.write(parts_of(stack, changed, [s.region.image() for s in changed]), go_on)
        for slot, changes in zip(changed, begun, strict=True):
            slot.changes = changes
        return sum(slot.size_bytes for slot in changed)

    def _start_file(self, regions: list[Region]) -> None:
        assert self._session.parking is not None
        slots, end = slots_for(regions)
        if end > self._session.file_limit_bytes:
            raise UsageError(
                f"model {self._name!r} has grown since it was asked to park its images"
            )
        self._slots = []
        if self._file is not None:
            self._file.close()
            self._file = None
        file = ParkedFile(self._session.parking)
        try:
            file.reserve(end)
        except BaseException:
            file.close()
            raise
        self._file, self._slots = file, slots

    def _read_back(
        self,
        memory: ModelMemory,
        parked: list[Slot],
        sizes: list[int],
        fds: list[int],
        wanted: Wanted | None,
        *,
        keep: bool,
    ) -> None:
        images: list[ImageBuffer] = []
        read_bytes = 0
        begun_s = time.monotonic()
        values: Values = {}
        try:
            with span(self._session.driver, f"read back {self._name}", values):
                self._require_open()
                for slot, fd in zip(parked, fds, strict=True):
                    images.append(memory.make_image(slot.region, fd))
                self._read(parked, images, wanted)
                memory.unpark([slot.region for slot in parked], images)
                read_bytes = sum(slot.size_bytes for slot in parked)
                values.update(bytes=read_bytes)
        finally:
            for fd in fds:
                os.close(fd)
            unused_bytes = sum(sizes[len(images) :])
            images.clear()  # what is no image now has gone with that
            if read_bytes and not keep:
                self._slots = []
                self._drop_unless_needed()
            with contextlib.suppress(DaemonUnavailableError):
                give_back(self._session, unused_bytes)
                if not self._ended:  # else who closes the model does, once this is over
                    self._return_images()
                took_s = time.monotonic() - begun_s
                self._session.unparked(read_bytes, self._file_bytes, took_s)

    def _read(self, parked: list[Slot], images: list[ImageBuffer], wanted: Wanted | None) -> None:
        assert self._file is not None

        def go_on() -> None:
            self._require_open()
            if wanted is not None and not wanted():
                raise SwapCancelledError("what was fetched ahead is not wanted any more")

        with contextlib.ExitStack() as stack:
            self._file.read(parts_of(stack, parked, images), go_on)

    def _require_open(self) -> None:
        if self._ended:
            raise UsageError("a closed model cannot be used")

    def _drop_unless_needed(self) -> None:
        if not self._slots and self._file is not None:
            self._file.close()
            self._file = None


def _parkable(regions: list[Region]) -> list[Region]:
    return [region for region in regions if region.tag in _TAGS][:_REGIONS_MAX]
