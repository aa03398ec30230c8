"""What a model says of its memory before it asks for any."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable

from gpupool._core import Region, Tag
from gpupool.errors import DaemonUnavailableError, UsageError
from gpupool.residency.parking import Parking
from gpupool.session import Session
from gpupool.sharing.images import SharedImages


class Footprint:
    """Of one model, told once for as long as it is the same."""

    def __init__(self, name: str, session: Session, unshared: Callable[[], list[Region]]) -> None:
        """Nothing is told yet; ``unshared`` are the regions whose images may be parked."""
        self._name = name
        self._session = session
        self._unshared = unshared
        self._declared = 0
        self._telling = threading.Lock()

    def changed(self) -> None:
        """The arbiter must be told anew: what may be parked at once, the rest as it is declared."""
        self._declared = 0
        if self._session.parking is not None:
            with self._telling, contextlib.suppress(DaemonUnavailableError):
                self._session.parkable(Parking.parkable_bytes(self._unshared()))

    def declare(
        self, pages: int, warmable: int, regions: list[Region], sharing: SharedImages
    ) -> None:
        """Tell how many pages the regions need. Raises DoesNotFitError or UsageError."""
        if pages == 0:
            raise UsageError(f"model {self._name!r} has no region to be resident")
        if pages != self._declared:
            self._session.declare(
                pages,
                _bytes_of(Tag.weights, regions),
                _bytes_of(Tag.kv_cache, regions),
                warmable,
                list(sharing.places(regions).values()),
            )
            self._declared = pages


def _bytes_of(tag: Tag, regions: list[Region]) -> int:
    return sum(region.bytes for region in regions if region.tag == tag)
