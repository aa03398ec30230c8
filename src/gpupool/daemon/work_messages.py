"""Messages about requests: what a policy of requests goes by, and why it decided as it did."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gpupool.daemon.limits import NAME_CHARACTERS_MAX, Count, Seconds

WORKING_MAX = 512  # requests of each kind in one message
REQUEST_ID_CHARACTERS_MAX = 256

RequestId = Annotated[str, Meta(min_length=1, max_length=REQUEST_ID_CHARACTERS_MAX)]
ModelName = Annotated[str, Meta(max_length=NAME_CHARACTERS_MAX)]
Goal = Annotated[float, Meta(gt=0, le=1e6)]
Some = Meta(max_length=WORKING_MAX)


class Announce(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """A request has come for a model and is on its way to its engine.

    Whoever puts requests to engines says so, without a Hello; nothing is answered. Its engine calls
    it by a name of parts between dashes, of which ``request_id`` is one. Without an Over it is over
    with the connection.
    """

    model: ModelName
    request_id: RequestId
    prompt_tokens: Count
    """Roughly, until the engine tells."""


class Over(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """An announced request has its answer, or wants none any more."""

    request_id: RequestId


class GiveUp(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """To whoever announced a request: it has waited for too long, and is not counted any more.

    Its engine was told nothing: whoever put it there takes it back, and says Over.
    """

    request_id: str


class WorkGoals(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """When tokens of this worker's model are due, and how much it counts where not all can be."""

    ttft_s: Goal | None = None
    """None: as for all."""
    tbt_s: Goal | None = None
    weight: Annotated[float, Meta(ge=1e-3, le=1e3)] = 1.0


class Working(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """What an engine's steps did since it said so last. It numbers its requests itself."""

    began: Annotated[list[tuple[Count, RequestId, Count]], Some] = []
    """Requests that are new, by number: what it calls them, and their prompt's tokens."""
    produced: Annotated[list[tuple[Count, Count]], Some] = []
    """How many tokens requests have by now, by number."""
    ended: Annotated[list[Count], Some] = []
    steps: Count = 0
    """Steps without a prefill, and how long they took together."""
    steps_s: Seconds = 0.0
    prefilled_tokens: Count = 0
    """Tokens that other steps computed, and how long those took together."""
    prefills_s: Seconds = 0.0


class WhyQuery(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Asks what was decided last, and why; any client of the same user may, without a Hello."""


class Why(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Answer to WhyQuery: decisions, newest first, with how many seconds ago they were made."""

    policy: str
    decisions: list[tuple[float, str]]
