"""Messages between the pool daemon and its clients.

One message is one packet of a SOCK_SEQPACKET Unix socket: a MessagePack map with a ``type`` key,
decoded into a typed structure or refused. File descriptors travel beside it (SCM_RIGHTS).
"""

from __future__ import annotations

import array
import os
import socket
from typing import TypeVar

import msgspec

from gpupool.errors import DaemonUnavailableError, ProtocolError

PROTOCOL_VERSION = 1
MESSAGE_BYTES_MAX = 128 * 1024
FDS_MAX = 253  # of one message: the kernel's SCM_MAX_FD
HISTORY = 1024  # swap-ins remembered per model


class SwapFigures(msgspec.Struct, frozen=True):
    """What one swap took: seconds and bytes."""

    total_s: float
    copy_s: float
    copied_bytes: int


class ModelStatus(msgspec.Struct, frozen=True):
    """One model in the daemon's status. The lists go together, oldest first."""

    name: str
    pid: int
    state: str
    """starting (no footprint yet), out, waiting, resident, leaving"""
    footprint_bytes: int
    weights_bytes: int
    kv_cache_bytes: int
    swap_ins: int
    swap_outs: int
    swap_in_s: list[float]
    swap_in_copied_bytes: list[int]
    swap_in_copy_s: list[float]
    lease_wait_s: list[float]


class Refusal(msgspec.Struct, frozen=True):
    """Why a worker was turned away."""

    model: str
    pid: int
    message: str


class Status(msgspec.Struct, frozen=True):
    """The daemon's account of itself."""

    version: str
    device: str
    page_bytes: int
    budget_bytes: int
    pages_free: int
    pages_granted: int
    pages_fenced: int
    host_bytes: int
    models: list[ModelStatus]
    refusals: list[Refusal]


# From a client.


class Hello(msgspec.Struct, tag=True, frozen=True):
    """First message of a worker: the model whose memory it will move."""

    version: int
    model: str


class HostMemory(msgspec.Struct, tag=True, frozen=True):
    """Asks for a memfd of ``size_bytes``; answered by itself with the descriptor."""

    size_bytes: int


class Declare(msgspec.Struct, tag=True, frozen=True):
    """The footprint ``Acquire`` will be about; answered by Ok or Refused."""

    pages: int
    weights_bytes: int
    kv_cache_bytes: int


class Acquire(msgspec.Struct, tag=True, frozen=True):
    """Asks for the lease; answered by Granted, Refused, or Ok to a Cancel."""


class Cancel(msgspec.Struct, tag=True, frozen=True):
    """Takes an Acquire back; answered by Ok unless Granted came first."""


class Arrived(msgspec.Struct, tag=True, frozen=True):
    """The model is resident."""

    swap: SwapFigures


class Yielded(msgspec.Struct, tag=True, frozen=True):
    """No page of the lease is mapped any more."""

    swap: SwapFigures | None


class Kept(msgspec.Struct, tag=True, frozen=True):
    """A revoke could not be obeyed; the model is resident as before."""

    message: str


class Idle(msgspec.Struct, tag=True, frozen=True):
    """Whether the model has unfinished requests."""

    idle: bool


class StatusQuery(msgspec.Struct, tag=True, frozen=True):
    """Asks for the status; any client of the same user may, without a Hello."""

    first: int = 0
    """Index of the first model to report, since one packet may not hold all."""


class Goodbye(msgspec.Struct, tag=True, frozen=True):
    """The client leaves in good order and holds nothing."""


# From the daemon.


class Welcome(msgspec.Struct, tag=True, frozen=True):
    """Answer to Hello."""

    device: str
    page_bytes: int
    budget_bytes: int
    min_tokens: int


class Ok(msgspec.Struct, tag=True, frozen=True):
    """Done."""


class Refused(msgspec.Struct, tag=True, frozen=True):
    """Not done; nothing has changed."""

    kind: str
    """does_not_fit, driver or usage"""
    message: str
    needed_bytes: int = 0
    budget_bytes: int = 0


class Granted(msgspec.Struct, tag=True, frozen=True):
    """Pages of the lease, in order; more follow unless ``last``.

    ``new`` names those this client has not seen; their descriptors come along in that order.
    """

    pages: list[int]
    new: list[int]
    last: bool


class Revoke(msgspec.Struct, tag=True, frozen=True):
    """Give the memory up within ``deadline_s`` or be killed."""

    deadline_s: float


class StatusReply(msgspec.Struct, tag=True, frozen=True):
    """Answer to StatusQuery; ``total`` models in all."""

    status: Status
    total: int


ClientMessage = (
    Hello
    | HostMemory
    | Declare
    | Acquire
    | Cancel
    | Arrived
    | Yielded
    | Kept
    | Idle
    | StatusQuery
    | Goodbye
)
DaemonMessage = Welcome | Ok | Refused | Granted | Revoke | StatusReply | HostMemory

Message = TypeVar("Message")

_encoder = msgspec.msgpack.Encoder()
_client_decoder: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
_daemon_decoder: msgspec.msgpack.Decoder[DaemonMessage] = msgspec.msgpack.Decoder(DaemonMessage)


def encode(message: msgspec.Struct) -> bytes:
    """The packet for a message. Raises ProtocolError if it is larger than a packet may be."""
    packet = _encoder.encode(message)
    if len(packet) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a message of {len(packet)} bytes is larger than {MESSAGE_BYTES_MAX}")
    return packet


def decode_client(packet: bytes) -> ClientMessage:
    """What a client said. Raises ProtocolError."""
    try:
        return _client_decoder.decode(packet)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ProtocolError(f"malformed message: {error}") from None


def decode_daemon(packet: bytes) -> DaemonMessage:
    """What the daemon said. Raises ProtocolError."""
    try:
        return _daemon_decoder.decode(packet)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise ProtocolError(f"malformed message: {error}") from None


def receive(connection: socket.socket) -> tuple[bytes, list[int]]:
    """One packet and its descriptors, which the caller owns.

    Raises DaemonUnavailableError when the other side has closed, ProtocolError for a packet or
    descriptors beyond the limits (all descriptors are closed then).
    """
    size = array.array("i").itemsize
    space = socket.CMSG_SPACE(FDS_MAX * size)
    packet, ancillary, flags, _ = connection.recvmsg(
        MESSAGE_BYTES_MAX, space, socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % size])
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        for fd in fds:
            os.close(fd)
        raise ProtocolError(f"a message is larger than {MESSAGE_BYTES_MAX} bytes")
    if not packet and not fds:
        raise DaemonUnavailableError("the other side closed the connection")
    return packet, list(fds)


def send(connection: socket.socket, packet: bytes, fds: list[int]) -> None:
    """Send one packet; the descriptors stay the caller's. Raises OSError."""
    if fds:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        connection.sendmsg([packet], [rights])
    else:
        connection.send(packet)
