"""Messages about host memory, and about images that go to a file so that there is some."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gpupool.daemon.limits import FDS_MAX, TEXT_BYTES_MAX, Count, Seconds


class HostMemory(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Asks for a memfd of ``size_bytes``; answered by itself with the descriptor, or Refused."""

    size_bytes: Count


class HostMemoryUnused(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """So much of its host memory is closed and nowhere mapped any more, in whole memfds."""

    size_bytes: Count


class HostMemories(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Asks for a memfd of each of these sizes, all at once, and waits while others park theirs.

    Answered by HostGranted with the descriptors in this order, Refused, or Ok to a Cancel. Who has
    pages is answered at once.
    """

    sizes_bytes: Annotated[list[Count], Meta(min_length=1, max_length=FDS_MAX)]
    returns: bool = False
    """For images that were parked: the model is about to come in."""
    ahead: bool = False
    """Nobody waits for it yet: it comes after all others, and no model that works makes room."""


class Parkable(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """So much of its host memory it may let go for a file while it is out, from now on."""

    size_bytes: Count


class Parked(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Answer to Park: so much is in the file now, and was given back by HostMemoryUnused."""

    size_bytes: Count
    """0 if nothing has changed."""
    file_bytes: Count
    """What the file takes."""
    why: Annotated[str, Meta(max_length=TEXT_BYTES_MAX)] = ""
    """Why it could not park, where it was not merely in use."""
    passes: bool = False
    """That is for now: an image is looked at, has changed meanwhile, or is not filled yet."""


class Unparked(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """What came of HostMemories for images that were parked."""

    size_bytes: Count
    """What was read back; 0 if the model is parked still."""
    file_bytes: Count
    """What the file takes yet: unchanged images need not be written again."""
    read_s: Seconds = 0.0


class HostGranted(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The memfds that HostMemories asked for come along."""

    keeps_file: bool = False
    """There is room for the file of what comes back, so that it need not be written again."""


class Park(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Write the images to a file, let their host memory go and say Parked.

    It is asked of a model that is out, which gives its warm pages up with them. One that is not
    done within ``deadline_s`` stops, and one in use says so at once.
    """

    deadline_s: float
    file_bytes: int
    """What the file may have."""
