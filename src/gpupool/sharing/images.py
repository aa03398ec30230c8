"""A model's side of sharing: which of its regions have memory that others have too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol, cast

from gpupool._core import Region
from gpupool.errors import DaemonUnavailableError
from gpupool.host_images import host_memory, in_system_pages
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
        self._shared: dict[Region, tuple[int, int]] = {}  # number, and the image's bytes
        self._left: list[int] = []  # numbers of images that are not this model's any more
        self._left_bytes = 0
        self._gone_bytes = 0

    def may_share(self, region: Region, fd: int) -> None:
        """Remember the memfd of its image, which stays the caller's. Raises OSError."""
        self._fds[region] = os.dup(fd)

    def forget(self, region: Region) -> None:
        """It is removed, or can be shared no more; its image may live on."""
        if (fd := self._fds.pop(region, -1)) >= 0:
            os.close(fd)
        if region in self._shared:
            self._leave(region)

    def close(self) -> None:
        """The model has left."""
        for region in {*self._fds, *self._shared}:
            self.forget(region)

    def __contains__(self, region: object) -> bool:
        """Whether its memfd is kept open, since it is shared or may be."""
        return region in self._fds or region in self._shared

    def __bool__(self) -> bool:
        """Whether any is shared."""
        return bool(self._shared)

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
        for region in list(self._fds):
            fd = self._fds[region]
            contents = contents_of(region, self._page_bytes)
            region.seal()
            try:
                number = self._replace(region, fd, contents)
            except BaseException:
                region.unseal()
                raise
            self._shared[region] = number, region.image_bytes
            os.close(self._fds.pop(region))

    def _replace(self, region: Region, fd: int, contents: list[bytes]) -> int:
        offer = self._session.share_image(fd, region.image_bytes, contents)
        done = gone = False
        try:
            is_own = len(offer.parts) == 1 and _same_file(offer.parts[0].fd, fd)
            # Where nobody else has any of it only the account changes.
            gone = region.replace_image([] if is_own else offer.parts, is_shared=True)
            done = True
        finally:
            for other in {part.fd for part in offer.parts}:
                os.close(other)
            self._session.settle_image(offer.number, done=done, gone=gone)
        return offer.number

    def unshare(self) -> None:
        """Give each region memory of its own again. The model is out, without warm pages.

        Raises what ``_core.Region.replace_image`` does, RefusedError, or OSError; what is shared
        then still is.
        """
        for region in list(self._shared):
            size_bytes = in_system_pages(region.bytes)
            with host_memory(self._session, size_bytes) as fd:
                with memoryview(cast("bytearray", region.image())) as image:
                    _write(fd, image)
                region.replace_image([(fd, 0, size_bytes)], is_shared=False)
            region.unseal()
            self._leave(region)

    def gone(self, size_bytes: int) -> None:
        """So much of images that were shared is nowhere mapped any more."""
        self._gone_bytes += size_bytes
        if self._left and self._gone_bytes >= self._left_bytes:
            left, self._left = self._left, []
            self._gone_bytes = self._left_bytes = 0
            with contextlib.suppress(DaemonUnavailableError):  # it counts nothing any more
                for number in left:
                    self._session.unshare_image(number)

    def _leave(self, region: Region) -> None:
        number, size_bytes = self._shared.pop(region)
        self._left.append(number)
        self._left_bytes += size_bytes


def _same_file(one: int, other: int) -> bool:
    return os.path.samestat(os.fstat(one), os.fstat(other))


def _write(fd: int, content: memoryview) -> None:
    at = 0
    while at < len(content):
        at += os.pwrite(fd, content[at : at + (1 << 30)], at)
