"""How large what the daemon and its clients say can be."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

MESSAGE_BYTES_MAX = 128 * 1024
FDS_MAX = 253  # of one message: the kernel's SCM_MAX_FD
RELEASED_MAX = 4096  # pages named in one Release
HISTORY = 1024  # swap-ins remembered per model
TEXT_BYTES_MAX = 1000  # of a text that the daemon keeps or passes on
NAME_CHARACTERS_MAX = 256
COUNT_MAX = 2**53
PAGES_MAX = 2**32  # pages are numbered with 32 bits

Count = Annotated[int, Meta(ge=0, le=COUNT_MAX)]
Pages = Annotated[int, Meta(ge=0, le=PAGES_MAX)]  # how many
PageNumber = Annotated[int, Meta(ge=0, lt=PAGES_MAX)]
Seconds = Annotated[float, Meta(ge=0, le=1e9)]  # which a NaN is not


def one_line(text: str) -> str:
    """A text of another process, fit to be kept and shown: printable, one line, not long."""
    printable = "".join(c if c.isprintable() else " " for c in text[:TEXT_BYTES_MAX])
    return printable.encode(errors="replace")[:TEXT_BYTES_MAX].decode(errors="ignore")


def in_parts(pages: list[int]) -> list[list[int]]:
    """As many at a time as one message names."""
    return [pages[at : at + RELEASED_MAX] for at in range(0, len(pages), RELEASED_MAX)]
