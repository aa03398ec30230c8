"""What anybody may ask of a daemon, each on a connection of its own."""

from __future__ import annotations

from pathlib import Path

import msgspec

from gpupool.daemon import protocol as p
from gpupool.daemon.link import ask, connect
from gpupool.errors import ProtocolError


def query_status(socket_path: Path, timeout_s: float = 5.0) -> p.Status:
    """The daemon's account of itself. Raises DaemonUnavailableError or ProtocolError.

    ``timeout_s`` is for each of its packets. The figures are those of the last one, and so is
    each model's state that of its own packet.
    """
    models: list[p.ModelStatus] = []
    after = 0
    with connect(socket_path, timeout_s) as connection:
        while True:
            reply = ask(connection, p.StatusQuery(after))
            if not isinstance(reply, p.StatusReply):
                raise ProtocolError(f"the daemon answered {type(reply).__name__} to a query")
            models.extend(reply.status.models)
            after = reply.next_after
            if after == 0:
                return msgspec.structs.replace(reply.status, models=models)


def query_why(socket_path: Path, timeout_s: float = 5.0) -> p.Why:
    """What the policy decided last. Raises DaemonUnavailableError or ProtocolError."""
    with connect(socket_path, timeout_s) as connection:
        reply = ask(connection, p.WhyQuery())
    if not isinstance(reply, p.Why):
        raise ProtocolError(f"the daemon answered {type(reply).__name__} to a query")
    return reply


def prefetch(socket_path: Path, model: str, share: float = 1.0, timeout_s: float = 5.0) -> None:
    """Have a model come in before it is used; its worker copies for ``share`` of the time.

    Returns once it was told. Raises RefusedError if there is no such model, DaemonUnavailableError
    or ProtocolError.
    """
    with connect(socket_path, timeout_s) as connection:
        reply = ask(connection, p.Prefetch(model, share))
    if not isinstance(reply, p.Ok):
        raise ProtocolError(f"the daemon answered {type(reply).__name__} to Prefetch")
