"""Packets: messages as MessagePack, sent and received with their file descriptors (SCM_RIGHTS)."""

from __future__ import annotations

import array
import os
import socket

import msgspec

from gpupool.daemon.protocol import MESSAGE_BYTES_MAX, ClientMessage, DaemonMessage
from gpupool.errors import DaemonUnavailableError, ProtocolError

_encoder = msgspec.msgpack.Encoder()
_client_decoder: msgspec.msgpack.Decoder[ClientMessage] = msgspec.msgpack.Decoder(ClientMessage)
_daemon_decoder: msgspec.msgpack.Decoder[DaemonMessage] = msgspec.msgpack.Decoder(DaemonMessage)
_FD_BYTES = array.array("i").itemsize


def encode(message: msgspec.Struct) -> bytes:
    """The packet for a message. Raises ProtocolError if it is larger than a packet may be."""
    try:
        packet = _encoder.encode(message)
    except (OverflowError, UnicodeEncodeError) as error:
        raise ProtocolError(f"a message cannot be sent: {error}") from None
    if len(packet) > MESSAGE_BYTES_MAX:
        raise ProtocolError(f"a message of {len(packet)} bytes is larger than {MESSAGE_BYTES_MAX}")
    return packet


def decode_client(packet: bytes) -> ClientMessage:
    """What a client said. Raises ProtocolError."""
    try:
        return _client_decoder.decode(packet)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed message: {error}") from None


def decode_daemon(packet: bytes) -> DaemonMessage:
    """What the daemon said. Raises ProtocolError."""
    try:
        return _daemon_decoder.decode(packet)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"malformed message: {error}") from None


def receive(connection: socket.socket, fds_max: int) -> tuple[bytes, list[int]]:
    """One packet and its descriptors, at most ``fds_max``, which the caller owns.

    Raises DaemonUnavailableError when the other side has closed, and ProtocolError for a packet
    or descriptors beyond the limits (all descriptors are closed then).
    """
    try:
        packet, fds, flags = _receive(connection, fds_max)
    except ConnectionResetError:
        # The other side closed with packets of ours unread. The kernel says so once, ahead of
        # what the other side had sent before, and that is still to be read.
        packet, fds, flags = _receive(connection, fds_max)
    refused = ""
    if flags & socket.MSG_TRUNC:
        refused = f"a message is larger than {MESSAGE_BYTES_MAX} bytes"
    elif flags & socket.MSG_CTRUNC or len(fds) > fds_max:  # the kernel rounds the room for them up
        refused = (
            "descriptors did not fit: raise this process's limit of open files (ulimit -n)"
            if fds_max > 1
            else "a client sent descriptors"
        )
    if refused:
        for fd in fds:
            os.close(fd)
        raise ProtocolError(refused)
    if not packet and not fds:
        raise DaemonUnavailableError("the other side closed the connection")
    return packet, fds


def _receive(connection: socket.socket, fds_max: int) -> tuple[bytes, list[int], int]:
    space = socket.CMSG_SPACE(fds_max * _FD_BYTES) if fds_max else 0
    packet, ancillary, flags, _ = connection.recvmsg(
        MESSAGE_BYTES_MAX, space, socket.MSG_CMSG_CLOEXEC
    )
    fds = array.array("i")
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(data[: len(data) - len(data) % _FD_BYTES])
    return packet, list(fds), flags


def send(connection: socket.socket, packet: bytes, fds: list[int], flags: int = 0) -> None:
    """Send one packet; the descriptors stay the caller's. Raises OSError."""
    if fds:
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))
        connection.sendmsg([packet], [rights], flags)
    else:
        connection.send(packet, flags)
