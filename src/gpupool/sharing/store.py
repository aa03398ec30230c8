"""Host memory that several images are made of, by what is in it.

An image that is shared is a row of *units*, one for each of its whole pages, and what is behind the
last. A unit lies in the memfd of the first image that had its bytes; it goes, by a hole in that
memfd, with the last image that uses it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # of fallocate(2)


class Extent(NamedTuple):
    """Part of an image: where it is in which memfd, in bytes."""

    segment: int
    offset: int
    size_bytes: int


@dataclass
class _Unit:
    segment: int
    offset: int
    size_bytes: int
    content: bytes
    """Empty for what no other image is offered."""
    users: set[int] = field(default_factory=set)


@dataclass
class _Segment:
    fd: int
    held_bytes: int
    units: int = 0
    """Of those that are in use."""


@dataclass
class _Image:
    key: int
    size_bytes: int
    units: list[_Unit]
    contents: list[bytes]
    settled: bool = False


class HostStore:
    """The images that are shared, and their memory. Not thread safe."""

    def __init__(self) -> None:
        """Without any."""
        self._segments: dict[int, _Segment] = {}
        self._images: dict[int, _Image] = {}
        self._known: dict[bytes, _Unit] = {}
        self._next = 1

    @property
    def held_bytes(self) -> int:
        """Memory of all images that are settled; of those that are not, their owners have it."""
        return sum(
            segment.held_bytes
            for number, segment in self._segments.items()
            if number not in self._images or self._images[number].settled
        )

    def images_of(self, key: int) -> list[int]:
        """Those of one model."""
        return [number for number, image in self._images.items() if image.key == key]

    def is_of(self, number: int, key: int) -> bool:
        """Whether there is such an image of that model."""
        return number in self._images and self._images[number].key == key

    def contents_at(self, places: Iterable[tuple[int, int]]) -> dict[int, bytes]:
        """What the pages of images have, whose pages begin at these places."""
        return {
            first + index: content
            for number, first in places
            for index, content in enumerate(self._images[number].contents)
        }

    def offer(
        self, key: int, fd: int, size_bytes: int, unit_bytes: int, contents: Sequence[bytes]
    ) -> tuple[int, list[Extent]]:
        """What an image of ``key`` can be made of, whose own memfd is ``fd`` and the caller's.

        Returns its number and the extents that have its bytes, of which nobody else is told before
        ``settle``. Raises OSError.
        """
        number = self._next
        segment = _Segment(os.dup(fd), size_bytes)
        self._next += 1
        self._segments[number] = segment
        units: list[_Unit] = []
        for index, content in enumerate(contents):
            unit = self._known.get(content)
            if unit is None:
                unit = _Unit(number, index * unit_bytes, unit_bytes, content)
            units.append(unit)
        if (end := len(contents) * unit_bytes) < size_bytes:
            units.append(_Unit(number, end, size_bytes - end, b""))
        for unit in units:
            self._use(unit, number)
        self._images[number] = _Image(key, size_bytes, units, list(contents))
        return number, _joined(units)

    def fd(self, segment: int) -> int:
        """The descriptor of a memfd, which stays the store's."""
        return self._segments[segment].fd

    def settle(self, number: int, *, done: bool, gone: bool) -> int:
        """The image is made of what was offered, or stays what it was.

        Returns the bytes of its own memfd, which are the store's then; those of them that others'
        units took the place of are given back, once what was mapped of it before is ``gone``.
        """
        image = self._images[number]
        if not done:
            self.release(number)
            return 0
        image.settled = True
        own = [unit for unit in image.units if unit.segment == number]
        for unit in own:
            if unit.content:
                self._known.setdefault(unit.content, unit)
        if gone:
            ends = [0, *(unit.offset + unit.size_bytes for unit in own)]
            starts = [*(unit.offset for unit in own), image.size_bytes]
            for end, start in zip(ends, starts, strict=True):
                self._punch(number, end, start - end)
            self._drop_unused(number)
        return image.size_bytes

    def release(self, number: int) -> None:
        """Nothing of the image is mapped any more by the model that had it."""
        image = self._images.pop(number)
        for unit in image.units:
            if number not in unit.users:
                continue  # its bytes are at several places of this image
            unit.users.remove(number)
            if unit.users:
                continue
            if self._known.get(unit.content) is unit:
                del self._known[unit.content]
            self._segments[unit.segment].units -= 1
            # Of one that is not settled the memory is not the store's to give back.
            if image.settled or unit.segment != number:
                self._punch(unit.segment, unit.offset, unit.size_bytes)
            self._drop_unused(unit.segment)
        self._drop_unused(number)

    def release_all(self, key: int) -> None:
        """Nobody can touch what the model had."""
        for number in self.images_of(key):
            self.release(number)

    def _use(self, unit: _Unit, number: int) -> None:
        if not unit.users:
            self._segments[unit.segment].units += 1
        unit.users.add(number)

    def _drop_unused(self, number: int) -> None:
        segment = self._segments.get(number)
        if segment is not None and segment.units == 0:
            os.close(segment.fd)
            del self._segments[number]

    def _punch(self, number: int, offset: int, size_bytes: int) -> None:
        segment = self._segments[number]
        # What the system does not take back stays counted, until all of the memfd goes.
        with contextlib.suppress(OSError):
            if size_bytes > 0:
                _punch_hole(segment.fd, offset, size_bytes)
                segment.held_bytes -= size_bytes


def _joined(units: list[_Unit]) -> list[Extent]:
    extents: list[Extent] = []
    for unit in units:
        last = extents[-1] if extents else None
        if (
            last is not None
            and last.segment == unit.segment
            and last.offset + last.size_bytes == unit.offset
        ):
            extents[-1] = last._replace(size_bytes=last.size_bytes + unit.size_bytes)
        else:
            extents.append(Extent(unit.segment, unit.offset, unit.size_bytes))
    return extents


_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def _punch_hole(fd: int, offset: int, size_bytes: int) -> None:
    if _libc.fallocate(fd, _PUNCH_HOLE | _KEEP_SIZE, offset, size_bytes) != 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
