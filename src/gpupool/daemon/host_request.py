"""One HostMemories of a client: what is granted, or taken back."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence

from gpupool.daemon import protocol as p
from gpupool.daemon.link import REPLY_TIMEOUT_S, Link, Reply
from gpupool.errors import (
    DaemonUnavailableError,
    GpupoolError,
    LeaseTimeoutError,
    SwapCancelledError,
)
from gpupool.host_images import in_system_pages
from gpupool.session import HostGrant, Wanted

_POLL_S = 0.02


def host_memories(
    link: Link,
    sizes_bytes: Sequence[int],
    timeout_s: float,
    wanted: Wanted | None,
    *,
    returns: bool,
) -> HostGrant:
    """Ask once, and either get it all or have taken the question back.

    Raises as ``Session.host_memories``.
    """
    link.send(p.HostMemories(list(sizes_bytes), returns, wanted is not None))
    deadline_s = time.monotonic() + timeout_s
    try:
        reply = _await(link, deadline_s, wanted)
    except GpupoolError:
        raise
    except BaseException:  # interrupted, as by Ctrl-C
        _end(link, _withdraw(link), sizes_bytes)
        raise
    reply = _withdraw(link) if reply is None else reply
    if isinstance(reply.message, p.Ok):
        if wanted is not None and not wanted():
            raise SwapCancelledError("what was to come ahead is not wanted any more")
        raise LeaseTimeoutError(
            f"no host memory within {round(timeout_s, 1):g} s: other models have all of it"
        )
    if not isinstance(reply.message, p.HostGranted) or len(reply.fds) != len(sizes_bytes):
        link.out_of_turn(reply)
    return HostGrant(reply.fds, reply.message.keeps_file)


def _await(link: Link, deadline_s: float, wanted: Wanted | None) -> Reply | None:
    while True:
        # Nobody tells that it is not wanted any more.
        limit_s = deadline_s if wanted is None else min(deadline_s, time.monotonic() + _POLL_S)
        reply = link.reply(limit_s - time.monotonic())
        unwanted = wanted is not None and not wanted()
        if reply is not None or unwanted or time.monotonic() >= deadline_s:
            return reply


def _withdraw(link: Link) -> Reply:
    """Take the question back; what comes next is Ok, or the answer that was on its way."""
    try:
        link.send(p.Cancel(mapped=True))
        reply = link.reply(REPLY_TIMEOUT_S)
    except GpupoolError:
        raise
    except BaseException:  # interrupted: what comes next would be taken for another answer
        link.hang_up("taking HostMemories back was interrupted")
        raise
    if reply is None:
        link.fail("the pool daemon does not answer")
    return reply


def _end(link: Link, reply: Reply, sizes_bytes: Sequence[int]) -> None:
    """Give back what came all the same."""
    for fd in reply.fds:
        os.close(fd)
    if reply.fds:
        with contextlib.suppress(DaemonUnavailableError):
            link.send(p.HostMemoryUnused(sum(map(in_system_pages, sizes_bytes))))
