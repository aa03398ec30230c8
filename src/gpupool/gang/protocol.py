"""What the ranks of a gang and their leader say to each other, in packets of MessagePack.

A *turn* is from when all ranks have their memory to when the first leaves; turns and steps are
numbered from 1, in all ranks alike.
"""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

from gpupool.daemon.limits import TEXT_BYTES_MAX, one_line
from gpupool.errors import ProtocolError

GANG_VERSION = 2
RANKS_MAX = 64
Count = Annotated[int, Meta(ge=0, lt=1 << 62)]
Reason = Annotated[str, Meta(max_length=TEXT_BYTES_MAX)]


class Join(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """A rank's first message."""

    version: int
    rank: Annotated[int, Meta(ge=0, lt=RANKS_MAX)]
    ranks: Annotated[int, Meta(ge=2, le=RANKS_MAX)]


class Wants(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The rank is out, and its next step is ``step``, of the next turn."""

    step: Count


class Granted(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The rank has its lease: the next one may ask for its own."""


class Here(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The rank's memory is in place."""


class Leave(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The rank's memory is wanted elsewhere; from ``hurry_at_s`` on the turn may be cut short.

    That is by the monotonic clock, which all processes of a machine have in common.
    """

    turn: Count
    hurry_at_s: Annotated[float, Meta(ge=0)]


class Retreat(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The rank's memory is wanted elsewhere, and the turn has not begun in all that time."""

    turn: Count


class Waits(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The rank waits for that turn to begin, or for another that has begun."""

    turn: Count


class Halted(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The rank begins no step of the turn after ``step`` until it is told up to which to go on."""

    turn: Count
    step: Count


class Failed(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The rank cannot go on."""

    why: Reason


class Come(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Bring the memory in."""

    turn: Count


class Back(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The turn does not begin: give up what has come for it, and ask anew."""

    turn: Count


class Ask(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Say that you are there, so that others keep what they have for that turn."""

    turn: Count


class Stay(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Keep what has come for the turn: it begins as soon as the others can."""

    turn: Count


class Go(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """All are here: begin the step that was wanted."""

    turn: Count


class Halt(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Begin no further step for now, and say where that is.

    ``hurry_at_s`` is for the rank by whose turn all go, which has what is left of it first.
    """

    turn: Count
    hurry_at_s: Annotated[float, Meta(ge=0)] | None = None


class Part(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """Leave once ``step`` has closed."""

    turn: Count
    step: Count


class Broken(msgspec.Struct, tag=True, frozen=True, forbid_unknown_fields=True):
    """The gang has ended: nobody begins a step any more."""

    why: Reason


RankMessage = Join | Wants | Granted | Here | Leave | Retreat | Waits | Halted | Failed
LeaderMessage = Come | Back | Ask | Stay | Go | Halt | Part | Broken

_encoder = msgspec.msgpack.Encoder()
_of_rank: msgspec.msgpack.Decoder[RankMessage] = msgspec.msgpack.Decoder(RankMessage)
_of_leader: msgspec.msgpack.Decoder[LeaderMessage] = msgspec.msgpack.Decoder(LeaderMessage)


def encode(message: RankMessage | LeaderMessage) -> bytes:
    """The packet for a message."""
    return _encoder.encode(message)


def decode_of_rank(packet: bytes) -> RankMessage:
    """What a rank said. Raises ProtocolError."""
    try:
        return _of_rank.decode(packet)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"malformed message of a rank: {error}") from None


def decode_of_leader(packet: bytes) -> LeaderMessage:
    """What the leader said. Raises ProtocolError."""
    try:
        return _of_leader.decode(packet)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ProtocolError(f"malformed message of a gang's leader: {error}") from None


def reason(text: str) -> str:
    """A reason in one line that a message bears."""
    return one_line(" ".join(text.split()))
