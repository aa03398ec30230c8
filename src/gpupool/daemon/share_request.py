"""The question of a client what one of its images can be made of."""

from __future__ import annotations

import os
from collections.abc import Sequence

from gpupool.daemon import protocol as p
from gpupool.daemon.link import REPLY_TIMEOUT_S, Link
from gpupool.errors import GpupoolError
from gpupool.sharing.images import Offer, Part


def ask_to_share(link: Link, fd: int, size_bytes: int, contents: Sequence[bytes]) -> Offer:
    """The answer, whose descriptors are the caller's. Raises RefusedError."""
    parts: list[Part] = []
    try:
        for start in range(0, max(1, len(contents)), p.CONTENTS_MAX):
            part = list(contents[start : start + p.CONTENTS_MAX])
            last = start + len(part) == len(contents)
            link.send(p.ShareImage(size_bytes, part, last), [fd] if start == 0 else [])
        while True:
            reply = link.reply(REPLY_TIMEOUT_S)
            if reply is None:
                link.fail("the pool daemon does not answer")
            message, fds = reply
            if not isinstance(message, p.SharedImage):
                link.out_of_turn(reply)
            parts += [Part(fds[which], offset, size) for which, offset, size in message.extents]
            if message.last:
                return Offer(message.number, parts)
    except BaseException as error:
        for other in {part.fd for part in parts}:
            os.close(other)
        if not isinstance(error, GpupoolError):  # what comes would be taken for another answer
            link.hang_up("asking what an image can share was interrupted")
        raise
