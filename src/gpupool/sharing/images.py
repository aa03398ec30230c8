"""A model's side of sharing: which of its regions have memory that others have too."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, cast

from gpupool._core import Region
from gpupool.errors import DaemonUnavailableError, UsageError
from gpupool.host_images import host_memory
from gpupool.sharing.hashing import contents_of


class Part(NamedTuple):
    """Of an image: a descriptor, which the caller closes, and where in it, in bytes."""

    fd: int
    offset: int
    size_bytes: int


class Place(NamedTuple):
    """A shared image, and where its pages begin among those of its model that can be warm."""

    number: int
    first: int


class Offer(NamedTuple):
    """What an image can be made of, by its number with the arbiter."""

    number: int
    parts: list[Part]


class ImageSharing(Protocol):
    """What of a Session is about shared images."""

    def host_memory(self, size_bytes: int) -> int:
        """A memfd of that size; the caller closes it. Raises RefusedError or OSError."""

    def return_host_memory(self, size_bytes: int) -> None:
        """So much of it is closed and nowhere mapped any more, in whole memfds."""

    def share_image(self, fd: int, size_bytes: int, contents: Sequence[bytes]) -> Offer:
        """What an image, whose memfd is ``fd``, can be made of.

        ``contents`` are the hashes of its whole pages. Raises RefusedError.
        """

    def settle_image(self, number: int, *, done: bool, gone: bool) -> None:
        """It is made of that from now on, or stays what it is; what it was is ``gone``, or not."""

    def unshare_image(self, number: int) -> None:
        """Nothing of a shared image is mapped any more."""

    def has(self, first: int, handles: Sequence[int]) -> None:
        """Pages have what was declared for the places from ``first`` on."""


class SharedImages:
    """The weights of one model that may be, or are, shared. Not thread safe."""

    def __init__(self, session: ImageSharing, page_bytes: int) -> None:
        """Without any."""
        self._session = session
        self._page_bytes = page_bytes
        self._fds: dict[Region, int] = {}
        self._sealed: set[Region] = set()
        self._shared: dict[Region, tuple[int, int]] = {}  # number, and the image's bytes
        self._lock = threading.Lock()  # of what follows
        self._left: dict[int, int] = {}  # by number the bytes of images not used any more
        self._gone_bytes = 0

    def may_share(self, region: Region, fd: int) -> None:
        """Remember the memfd of its image, which is this object's then."""
        self._fds[region] = fd

    def forget(self, region: Region) -> None:
        """It is removed, or can be shared no more; its image may live on."""
        if (fd := self._fds.pop(region, -1)) >= 0:
            os.close(fd)
        self._sealed.discard(region)
        if region in self._shared:
            self._leave(region)

    def close(self) -> None:
        """The model has left."""
        for region in {*self._fds, *self._sealed, *self._shared}:
            self.forget(region)

    def __contains__(self, region: object) -> bool:
        """Whether its memfd is kept open, since it is shared or may be."""
        return region in self._fds or region in self._shared

    def __bool__(self) -> bool:
        """Whether any cannot be written to, since it is shared."""
        return bool(self._sealed)

    def places(self, regions: Iterable[Region]) -> dict[Region, Place]:
        """Of those of a model's regions, given in order, that are shared."""
        places: dict[Region, Place] = {}
        first = 0
        for region in regions if self._shared else ():
            if region.image_bytes == 0 and not region.parked:
                continue
            if region in self._shared:
                places[region] = Place(self._shared[region][0], first)
            first += region.span_bytes // self._page_bytes
        return places

    def tell(self, regions: Iterable[Region]) -> None:
        """Say which pages a model has them on that has just arrived."""
        for region, place in self.places(regions).items():
            self._session.has(place.first, region.page_handles)

    def share(self) -> None:
        """Share all that may be and is not. The model is out, without warm pages.

        Raises what ``_core.Region.seal`` and ``replace_image`` do, RefusedError, or OSError; what
        was not shared then stays as it is.
        """
        for region, fd in list(self._fds.items()):
            if os.fstat(fd).st_size != region.image_bytes:
                raise UsageError("a region that was resized cannot be shared")
            contents = contents_of(region, self._page_bytes)
            self._sealed.add(region)
            try:
                region.seal()
                self._replace(region, fd, contents)
            finally:
                if region in self._shared:
                    os.close(self._fds.pop(region))
                else:
                    region.unseal()
                    self._sealed.discard(region)

    def _replace(self, region: Region, fd: int, contents: list[bytes]) -> None:
        size_bytes = region.image_bytes
        offer = self._session.share_image(fd, size_bytes, contents)
        gone = False
        try:
            is_own = len(offer.parts) == 1 and _same_file(offer.parts[0].fd, fd)
            # Where nobody else has any of it only the account changes.
            gone = region.replace_image([] if is_own else offer.parts, is_shared=True)
        finally:
            # What was interrupted may have been done all the same.
            if done := region.image_is_shared:
                self._shared[region] = offer.number, size_bytes
            for other in {part.fd for part in offer.parts}:
                os.close(other)
            self._session.settle_image(offer.number, done=done, gone=gone)

    def unshare(self) -> None:
        """Give each region memory of its own again. The model is out, without warm pages.

        Raises what ``_core.Region.replace_image`` does, RefusedError, or OSError; what is shared
        then still is.
        """
        for region in list(self._sealed):
            if region in self._shared:
                self._take_apart(region)
            region.unseal()
            self._sealed.discard(region)

    def _take_apart(self, region: Region) -> None:
        size_bytes = region.image_bytes
        with host_memory(self._session, size_bytes, lambda: region.image_is_shared) as fd:
            with memoryview(cast("bytearray", region.image())) as image:
                _write(fd, image)
            shared = self._shared[region]
            self._leave(region)
            try:
                region.replace_image([(fd, 0, size_bytes)], is_shared=False)
            finally:
                if region.image_is_shared:
                    self._shared[region] = shared
                    with self._lock:
                        del self._left[shared[0]]

    def gone(self, size_bytes: int) -> None:
        """So much of images that were shared is nowhere mapped any more."""
        with self._lock:
            self._gone_bytes += size_bytes
            if not self._left or self._gone_bytes < sum(self._left.values()):
                return
            left, self._left = self._left, {}
            self._gone_bytes = 0
        with contextlib.suppress(DaemonUnavailableError):  # it counts nothing any more
            for number in left:
                self._session.unshare_image(number)

    def _leave(self, region: Region) -> None:
        number, size_bytes = self._shared.pop(region)
        with self._lock:
            self._left[number] = size_bytes


def _same_file(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other))


def _write(fd: int, content: memoryview) -> None:
    at = 0
    while at < len(content):
        at += os.pwrite(fd, content[at : at + (1 << 30)], at)
