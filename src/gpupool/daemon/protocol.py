"""Messages between the pool daemon and its clients, and their limits.

One message is one packet of a SOCK_SEQPACKET Unix socket (``wire`` has the bytes). What does not
fit these types is refused at the door.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gpupool.daemon.answers import Cool as Cool
from gpupool.daemon.answers import Dismissed as Dismissed
from gpupool.daemon.answers import FetchAhead as FetchAhead
from gpupool.daemon.answers import GiveWay as GiveWay
from gpupool.daemon.answers import Granted as Granted
from gpupool.daemon.answers import Ok as Ok
from gpupool.daemon.answers import Refused as Refused
from gpupool.daemon.answers import Revoke as Revoke
from gpupool.daemon.answers import StatusReply as StatusReply
from gpupool.daemon.answers import Welcome as Welcome
from gpupool.daemon.host_messages import HostGranted as HostGranted
from gpupool.daemon.host_messages import HostMemories as HostMemories
from gpupool.daemon.host_messages import HostMemory as HostMemory
from gpupool.daemon.host_messages import HostMemoryUnused as HostMemoryUnused
from gpupool.daemon.host_messages import Park as Park
from gpupool.daemon.host_messages import Parkable as Parkable
from gpupool.daemon.host_messages import Parked as Parked
from gpupool.daemon.host_messages import Unparked as Unparked
from gpupool.daemon.image_messages import CONTENTS_MAX as CONTENTS_MAX
from gpupool.daemon.image_messages import Holds as Holds
from gpupool.daemon.image_messages import ImageSettled as ImageSettled
from gpupool.daemon.image_messages import ImageUnshared as ImageUnshared
from gpupool.daemon.image_messages import Number
from gpupool.daemon.image_messages import SharedImage as SharedImage
from gpupool.daemon.image_messages import ShareImage as ShareImage
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
from gpupool.daemon.status import Moved as Moved
from gpupool.daemon.status import Refusal as Refusal
from gpupool.daemon.status import Status as Status
from gpupool.daemon.swap_messages import Arrived as Arrived
from gpupool.daemon.swap_messages import BlocksMoved as BlocksMoved
from gpupool.daemon.swap_messages import SwapFigures as SwapFigures
from gpupool.daemon.swap_messages import Yielded as Yielded
from gpupool.daemon.work_messages import REQUEST_ID_CHARACTERS_MAX as REQUEST_ID_CHARACTERS_MAX
from gpupool.daemon.work_messages import WORKING_MAX as WORKING_MAX
from gpupool.daemon.work_messages import Announce as Announce
from gpupool.daemon.work_messages import GiveUp as GiveUp
from gpupool.daemon.work_messages import Over as Over
from gpupool.daemon.work_messages import Why as Why
from gpupool.daemon.work_messages import WhyQuery as WhyQuery
from gpupool.daemon.work_messages import WorkGoals as WorkGoals
from gpupool.daemon.work_messages import Working as Working

PROTOCOL_VERSION = 9


# From a client; those from the daemon are in `answers`.


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
    shared: Annotated[list[tuple[Number, Pages]], Meta(max_length=64)] = []
    """Images that are shared, and the place among those at which the pages of each begin."""


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


class Cooled(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The warm pages that Cool asked for are released, as far as could be."""


class WrongPages(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Pages that others may have as well were not what was saved: Damaged says the rest.

    It holds them still: nobody else begins a step on them from now on.
    """

    pages: Annotated[list[PageNumber], Meta(max_length=RELEASED_MAX)]


class Damaged(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Memory was not what was saved, also when it was copied again; the model did not come in."""

    message: str


class Kept(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """A revoke could not be obeyed; the model is resident as before, or torn.

    Its deadline stands, unless it ``stays``: because its KV cache cannot be saved, so that to end
    it would lose what its requests have computed, or since it is a rank of an engine that is about
    to have its turn. It is asked again later.
    """

    message: str
    stays: bool = False


class Lasting(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Steps that begin from now on may take so long before a revoke is obeyed; 0: as all may.

    An order that was sent already, and is not due yet, is put off as well; see ``Due``.
    """

    step_s: Seconds


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


ClientMessage = (
    Hello
    | HostMemory
    | HostMemories
    | HostMemoryUnused
    | Parkable
    | Parked
    | Unparked
    | Declare
    | Acquire
    | Hurry
    | Cancel
    | Extend
    | ShareImage
    | ImageSettled
    | ImageUnshared
    | Holds
    | Release
    | Arrived
    | Yielded
    | Cooled
    | WrongPages
    | Damaged
    | Kept
    | Lasting
    | BlocksMoved
    | Idle
    | Working
    | WorkGoals
    | Announce
    | Over
    | StatusQuery
    | WhyQuery
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
    | GiveWay
    | StatusReply
    | Why
    | GiveUp
    | HostMemory
    | SharedImage
    | HostGranted
    | Dismissed
)
