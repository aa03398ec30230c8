"""Messages from the pool daemon."""

from __future__ import annotations

import msgspec

from gpupool.daemon.status import Status


class Welcome(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Answer to Hello."""

    device: str
    page_bytes: int
    budget_bytes: int
    min_tokens: int
    parking: str = ""
    """The folder for images that Park asks for; empty if it never does."""
    follows_requests: bool = False
    """Its policy goes by what engines tell of their requests: Working is wanted."""


class Ok(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Done."""


class Refused(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Not done; nothing has changed."""

    kind: str
    """does_not_fit (with both numbers), driver (with call and status), pool_full or refused"""
    message: str
    needed_bytes: int = 0
    budget_bytes: int = 0
    call: str = ""
    status: int = 0


class Granted(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Pages of the lease, in order; more follow unless ``last``.

    ``new`` names those this client has not seen; their descriptors come along in that order.
    """

    pages: list[int]
    new: list[int]
    last: bool
    shared: list[tuple[int, int]] = []
    """Beside those, pages that others have as well, each behind its place."""


class Revoke(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Give the memory up within ``deadline_s`` or be killed; ``keep`` pages may stay, warm."""

    deadline_s: float
    keep: int = 0
    lease: int = 0
    """Of which Acquire of this client, the first being 1: it is stale once there was another."""
    distrusted: str = ""
    """Why no step may begin before, if so, whatever is left of its turn: on a wrong page."""
    park_s: float | None = None
    """Then do as Park says, within so much time, before anybody can have the model back."""
    file_bytes: int = 0
    """What the file may have that Park is about."""


class Cool(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Release so many warm pages and say Cooled within ``deadline_s``, or be killed.

    It is asked of a model that is out, or waits for its lease and has used nothing early.
    """

    deadline_s: float
    pages: int


class FetchAhead(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Come in before a step asks for it, copying for ``share`` of the time."""

    share: float


class GiveWay(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Copy nothing ahead of use for now, since somebody waits for another model; or go on.

    Said of the lease that Revoke would name so.
    """

    now: bool
    lease: int


class StatusReply(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Answer to StatusQuery: the whole account, but at most one model."""

    status: Status
    next_after: int
    """Ask again with this for the next model; 0 when there is none."""


class Dismissed(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The daemon ends the connection, and why."""

    message: str
