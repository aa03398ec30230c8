"""How many files a process may have open: a page on its way is one, and on the host stays one."""

from __future__ import annotations

import resource
from pathlib import Path

from gpupool.errors import UsageError

#: By default the kernel gives nobody more. Where it does, a child that closes all that it could
#: have open would take seconds.
_MOST = 1 << 20
_OWN = 64  # that a worker opens besides: images, pipes, its device


def open_files_max(wanted: int = _MOST) -> int:
    """How many this process may have open, once its limit is raised as far as it may be.

    But not beyond what is ``wanted``, nor lowered.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return max(wanted, _MOST)
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else max(soft, min(wanted, hard))
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def check_room_for_pages(pages: int) -> None:
    """See to it that this process can be sent so many pages, beside all that it has open now.

    What does not fit is lost on the way, and with it the connection, for which a process with
    pages is killed. Raises UsageError.
    """
    needed = sum(1 for _ in Path("/proc/self/fd").iterdir()) + pages + _OWN
    found = open_files_max()
    if found < needed:
        raise UsageError(
            f"this process may have {found} files open, and with the {pages} pages of the daemon's "
            f"pool it could need {needed}: raise its limit (ulimit -n) or give the daemon larger "
            "pages (--page-bytes)"
        )
