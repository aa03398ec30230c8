"""Messages between the pool daemon and its clients, and their limits.

One message is one packet of a SOCK_SEQPACKET Unix socket (``wire`` has the bytes). What does not
fit these types is refused at the door.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gpupool.daemon.host_messages import HostGranted as HostGranted
from gpupool.daemon.host_messages import HostMemories as HostMemories
from gpupool.daemon.host_messages import HostMemory as HostMemory
from gpupool.daemon.host_messages import HostMemoryUnused as HostMemoryUnused
from gpupool.daemon.host_messages import Park as Park
from gpupool.daemon.host_messages import Parked as Parked
from gpupool.daemon.host_messages import Unparked as Unparked
from gpupool.daemon.limits import COUNT_MAX as COUNT_MAX
from gpupool.daemon.limits import FDS_MAX as FDS_MAX
from gpupool.daemon.limits import HISTORY as HISTORY
from gpupool.daemon.limits import MESSAGE_BYTES_MAX as MESSAGE_BYTES_MAX
from gpupool.daemon.limits import NAME_CHARACTERS_MAX as NAME_CHARACTERS_MAX
from gpupool.daemon.limits import PAGES_MAX as PAGES_MAX
from gpupool.daemon.limits import RELEASED_MAX as RELEASED_MAX
from gpupool.daemon.limits import TEXT_BYTES_MAX as TEXT_BYTES_MAX
from gpupool.daemon.limits import Count, PageNumber, Pages, Seconds
from gpupool.daemon.limits import one_line as one_line
from gpupool.daemon.status import ModelStatus as ModelStatus
from gpupool.daemon.status import Refusal as Refusal
from gpupool.daemon.status import Status as Status

PROTOCOL_VERSION = 6


class SwapFigures(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What one swap took: seconds and bytes."""

    total_s: Seconds
    copy_s: Seconds
    copied_bytes: Count
    recopied_bytes: Count = 0
    """Of it, what did not arrive as it should at first, and did at a second attempt."""


# From a client.


class Hello(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """First message of a worker: the model whose memory it will move."""

    version: int
    model: str


class Declare(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The footprint ``Acquire`` will be about; answered by Ok or Refused."""

    pages: Pages
    weights_bytes: Count
    kv_cache_bytes: Count
    warmable: Pages = 0
    """Of the pages, how many can stay, or come ahead, while the model is out."""
    parkable_bytes: Count = 0
    """Of its host memory, how much it may let go for a file while it is out."""


class Acquire(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Asks for the lease; answered by Granted, Refused, or Ok to a Cancel.

    A model that can use pages ``early`` is granted some that can be warm, not the last, while
    others still leave. After Refused it says Yielded when they are unmapped.
    """

    early: bool = False
    ahead: bool = False
    """Nobody waits for it yet: it comes after all others, and from idle models alone."""


class Hurry(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """What was asked for ahead is waited for now."""


class Cancel(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Takes an Acquire back; answered by Ok unless the last Granted or Refused came first.

    Or HostMemories, unless their answer came first.
    """

    mapped: bool = False
    """What it began with is still mapped: it comes back with Yielded."""


class Extend(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Asks for more pages for a lease that is held; answered by Granted or Refused."""

    pages: Pages


class Release(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """These pages of the lease are not mapped any more: not all it has, unless they are warm."""

    pages: Annotated[list[PageNumber], Meta(max_length=RELEASED_MAX)]
    leaving: bool = False
    """They go ahead of the rest; else the model needs so many fewer."""


class Arrived(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The model is resident."""

    swap: SwapFigures


class Yielded(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """No page of the lease is mapped any more.

    But for those that it ``keeps`` and may, when all others were released.
    """

    swap: SwapFigures | None
    keeps: Pages = 0


class Cooled(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The warm pages that Cool asked for are released, as far as could be."""


class Damaged(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Memory was not what was saved, also when it was copied again; the model did not come in."""

    message: str


class Kept(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """A revoke could not be obeyed; the model is resident as before.

    Its deadline stands, unless it ``stays`` because its KV cache cannot be saved: to end it would
    lose what its requests have computed. It is asked again later.
    """

    message: str
    stays: bool = False


class Idle(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Whether the model has unfinished requests."""

    idle: bool


class StatusQuery(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Asks for the status; any client of the same user may, without a Hello."""

    after: Count = 0
    """Report the first model beyond this mark: 0 to begin with, then what the last reply says."""


class Prefetch(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Have a model come in before it is used; any client of the same user may, without a Hello.

    Answered by Ok when the model was told, or Refused.
    """

    model: Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)]
    share: Annotated[float, Meta(gt=0, le=1)] = 1.0


class Goodbye(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The client leaves; it is killed if it holds pages.

    Host memory that it has not given back stays on its account, and its name taken, until it exits.
    """


# From the daemon.


class Welcome(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Answer to Hello."""

    device: str
    page_bytes: int
    budget_bytes: int
    min_tokens: int
    parking: str = ""
    """The folder for images that Park asks for; empty if it never does."""


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


class Revoke(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Give the memory up within ``deadline_s`` or be killed; ``keep`` pages may stay, warm."""

    deadline_s: float
    keep: int = 0
    lease: int = 0
    """Of which Acquire of this client, the first being 1: it is stale once there was another."""
    park_s: float | None = None
    """Then do as Park says, within so much time, before anybody can have the model back."""


class Cool(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Release so many warm pages and say Cooled within ``deadline_s``, or be killed.

    It is asked of a model that is out, or waits for its lease and has used nothing early.
    """

    deadline_s: float
    pages: int


class FetchAhead(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Come in before a step asks for it, copying for ``share`` of the time."""

    share: float


class StatusReply(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Answer to StatusQuery: the whole account, but at most one model."""

    status: Status
    next_after: int
    """Ask again with this for the next model; 0 when there is none."""


class Dismissed(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The daemon ends the connection, and why."""

    message: str


ClientMessage = (
    Hello
    | HostMemory
    | HostMemories
    | HostMemoryUnused
    | Parked
    | Unparked
    | Declare
    | Acquire
    | Hurry
    | Cancel
    | Extend
    | Release
    | Arrived
    | Yielded
    | Cooled
    | Damaged
    | Kept
    | Idle
    | StatusQuery
    | Prefetch
    | Goodbye
)
Order = Revoke | Cool | Park
DaemonMessage = (
    Welcome
    | Ok
    | Refused
    | Granted
    | Revoke
    | Cool
    | Park
    | FetchAhead
    | StatusReply
    | HostMemory
    | HostGranted
    | Dismissed
)
