"""The pages of the daemon's budget, which a GPU has to have from the start."""

from __future__ import annotations

import logging
import time

from gpupool._core import PagePool
from gpupool.daemon.report import size
from gpupool.devices import open_driver
from gpupool.errors import DriverError, UsageError

logger = logging.getLogger("gpupool")

_OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY


def pages_of(device: str, budget_bytes: int, page_bytes: int) -> PagePool:
    """Pages for a budget: of a GPU all of them now, of ``host`` each when it is first granted.

    What else runs on a GPU would take what nobody holds, and a grant would fail in the middle of
    serving. Ordinary memory is taken as it is used.

    Raises UsageError for impossible sizes and a budget that the GPU has no room for, RuntimeError
    or DriverError where there is no such device or it fails.
    """
    pages = PagePool(open_driver(device), budget_bytes, page_bytes)
    if device != "host":
        begun_s = time.monotonic()
        _create_all(pages, device, budget_bytes)
        took_s = time.monotonic() - begun_s
        logger.info(
            "gpupool: %d pages of %s created on %s in %.1f s",
            pages.total_pages,
            size(page_bytes),
            device,
            took_s,
        )
    return pages


def _create_all(pages: PagePool, device: str, budget_bytes: int) -> None:
    try:
        # One by one: between two of them Python gets to see that somebody has pressed Ctrl-C.
        for count in range(1, pages.total_pages + 1):
            pages.create_ahead(count)
    except DriverError as error:
        if error.status != _OUT_OF_MEMORY:
            raise
        raise UsageError(
            f"{device} has no room for a budget of {budget_bytes} bytes: {error} after "
            f"{pages.created_pages} of {pages.total_pages} pages; give a smaller --budget-bytes, "
            "or end what else uses the GPU"
        ) from None
