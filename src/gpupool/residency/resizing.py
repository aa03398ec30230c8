"""Regions that grow and shrink, with the pages and the host memory that they need for it."""

from __future__ import annotations

from functools import partial

from gpupool._core import Region
from gpupool.host_images import host_memory, lacks_image
from gpupool.residency.residency import Residency
from gpupool.session import Session


def resize(
    region: Region, size_bytes: int, residency: Residency, session: Session, *, resident: bool
) -> None:
    """Make a region ``size_bytes`` long while nobody lets its model in or out.

    Raises as ``Model.resize``; the region is as before then.
    """
    residency.return_images()
    page_bytes = session.page_bytes
    pages = -(-size_bytes // page_bytes) - region.span_bytes // page_bytes
    missing_bytes = region.missing_image_bytes(size_bytes)
    unused = partial(lacks_image, region, size_bytes)
    try:
        with host_memory(session, missing_bytes, unused) as fd:
            if not resident:
                with residency.cold():
                    region.resize(size_bytes, [], 0, fd)
            elif pages > 0:
                _extend(region, size_bytes, session, pages, fd)
            elif gone := region.resize(size_bytes, [], 0, fd):
                session.release(gone)
    finally:
        residency.footprint.changed()


def _extend(region: Region, size_bytes: int, session: Session, pages: int, fd: int) -> None:
    before = region.mapped_pages
    grant = session.extend(pages)
    try:
        region.resize(size_bytes, grant.pages, grant.clean, fd)
    except BaseException:
        if region.mapped_pages == before:  # else they go with the rest at the next swap-out
            session.release([page.handle for page in grant.pages])
        raise
