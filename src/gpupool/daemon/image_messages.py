"""Messages about images and pages that several models have, because their bytes are the same."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gpupool.daemon.limits import COUNT_MAX, RELEASED_MAX, Count, PageNumber, Pages

CONTENTS_MAX = 2048  # hashes in one ShareImage, of 32 bytes each

Content = Annotated[bytes, Meta(min_length=32, max_length=32)]
Number = Annotated[int, Meta(ge=1, le=COUNT_MAX)]


class ShareImage(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """An image of ``size_bytes`` and what its whole pages have, as hashes in order.

    Its memfd comes along; more hashes follow, without it, unless ``last``. Answered by SharedImage
    then, or Refused.
    """

    size_bytes: Count
    contents: Annotated[list[Content], Meta(max_length=CONTENTS_MAX)]
    last: bool = True


class ImageSettled(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The image is made of what it can be; or, unless ``done``, stays what it is.

    What it was made of before is ``gone``, or is pinned for as long as the process lives.
    """

    number: Number
    done: bool
    gone: bool


class ImageUnshared(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Nothing of a shared image is mapped any more."""

    number: Number


class Holds(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Pages of the lease have what was declared for the places from ``first`` on."""

    first: Pages
    pages: Annotated[list[PageNumber], Meta(max_length=RELEASED_MAX)]


class SharedImage(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """What an image can be made of; more follows unless ``last``.

    ``extents`` have, of the descriptors that come along, which one, and where in it, in bytes:
    offset and size.
    """

    number: int
    extents: list[tuple[int, int, int]]
    last: bool
