"""Regions that a model gains, with the host memory that their images need."""

from __future__ import annotations

import os
import time
from contextlib import AbstractContextManager

from gpupool._core import Region, Tag
from gpupool.host_images import host_memory, in_system_pages
from gpupool.residency.residency import Residency
from gpupool.session import Session


def add_region(
    kind: Tag,
    sizes_bytes: tuple[int, int],
    residency: Residency,
    session: Session,
    steady: AbstractContextManager[None],
    *,
    image: bool,
    timeout_s: float,
    shares: bool,
) -> Region:
    """Add a region of a size and a capacity, which ``steady`` keeps its model out for.

    ``shares`` is whether its image may be shared. Its host memory is waited for before that, at
    most ``timeout_s``: others may have to park first. Raises as ``Model.region``.
    """
    size_bytes, capacity_bytes = sizes_bytes
    residency.return_images()  # so that there is room for the new one
    deadline_s = time.monotonic() + timeout_s

    def take(image_bytes: int) -> int:
        # Else it would be parked in part, of which nobody asks for the rest.
        residency.parking.bring_back(residency.saved, timeout_s)
        left_s = max(0.0, deadline_s - time.monotonic())
        return session.host_memories([image_bytes], left_s).fds[0]

    add = (residency.saved if image or kind is not Tag.kv_cache else residency.kept).add_region
    image_bytes = in_system_pages(size_bytes) if image and kind is not Tag.workspace else 0
    try:
        with host_memory(session, image_bytes, take=take) as fd, steady:
            own = os.dup(fd) if shares and kind is Tag.weights else -1
            try:
                region = add(kind, size_bytes, fd if image else None, capacity_bytes)
            except BaseException:
                if own >= 0:
                    os.close(own)
                raise
            residency.regions.append(region)
            if own >= 0:
                residency.sharing.may_share(region, own)
    finally:
        residency.footprint.changed()
    return region
