"""The leader's thread: it accepts each rank once, hears all, and says what is decided."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
from pathlib import Path

from gpupool.daemon import wire
from gpupool.daemon.listening import Listener
from gpupool.errors import GpupoolError, ProtocolError
from gpupool.gang import protocol as g
from gpupool.gang.leader import Leader, Said


class LeaderThread:
    """Leads one gang, from the process of its first rank."""

    def __init__(self, path: Path, ranks: int) -> None:
        """Listen on ``path``, in a directory that only this user can reach, until all are there.

        Raises UsageError or OSError.
        """
        self._leader = Leader(ranks)
        self._listener: Listener | None = Listener(path)
        self._by_rank: dict[int, socket.socket] = {}
        self._wake_read, self._wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wake_read, selectors.EVENT_READ)
        self._selector.register(self._listener.socket, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="gpupool-gang-lead", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the gang, which all ranks hear; idempotent."""
        if self._thread.is_alive():
            os.write(self._wake_write, b"x")
            self._thread.join()
        if self._wake_write >= 0:
            os.close(self._wake_write)
            self._wake_write = -1

    def _run(self) -> None:
        try:
            while True:
                for key, _ in self._selector.select():
                    if key.fd == self._wake_read:
                        return
                    if self._listener is not None and key.fileobj is self._listener.socket:
                        self._accept(self._listener)
                    else:
                        assert isinstance(key.fileobj, socket.socket)
                        self._hear(key.fileobj, key.data)
        finally:
            self._say(self._leader.breaks("the engine's first rank has ended"))
            if self._listener is not None:
                self._listener.close()
            for connection in [k.fileobj for k in self._selector.get_map().values()]:
                if isinstance(connection, socket.socket):
                    connection.close()
            self._selector.close()
            os.close(self._wake_read)

    def _accept(self, listener: Listener) -> None:
        with contextlib.suppress(OSError):  # gone already
            connection, _ = listener.socket.accept()
            self._selector.register(connection, selectors.EVENT_READ, None)

    def _hear(self, connection: socket.socket, rank: int | None) -> None:
        try:
            packet, _ = wire.receive(connection, 0)
            message = g.decode_of_rank(packet)
            if rank is None:
                self._join(connection, message)
            else:
                self._say(self._leader.heard(rank, message))
        except ProtocolError as error:
            self._hang_up(connection, rank, str(error))
        except (GpupoolError, OSError):
            self._hang_up(connection, rank, "it went away")

    def _join(self, connection: socket.socket, message: g.RankMessage) -> None:
        ranks = self._leader.ranks
        if not isinstance(message, g.Join):
            raise ProtocolError("the first message of a rank is Join")
        if message.version != g.GANG_VERSION:
            raise ProtocolError("ranks of one engine must run the same gpupool")
        if message.ranks != ranks or message.rank >= ranks or message.rank in self._by_rank:
            raise ProtocolError(f"this is a gang of {ranks} that has no place for {message}")
        self._by_rank[message.rank] = connection
        self._selector.modify(connection, selectors.EVENT_READ, message.rank)
        if self._leader.broken:
            self._say([(message.rank, g.Broken(self._leader.broken))])
        if len(self._by_rank) == ranks and self._listener is not None:
            self._selector.unregister(self._listener.socket)
            self._listener.close()
            self._listener = None

    def _say(self, said: list[Said]) -> None:
        for rank, message in said:
            connection = self._by_rank.get(rank)
            if connection is None:
                continue  # it hears that the gang has ended when it comes
            try:
                wire.send(connection, g.encode(message), [], socket.MSG_DONTWAIT)
            except OSError:  # gone, or it has not read a hundred messages
                self._hang_up(connection, rank, "it does not listen")

    def _hang_up(self, connection: socket.socket, rank: int | None, why: str) -> None:
        if rank is None:
            with contextlib.suppress(OSError):
                wire.send(connection, g.encode(g.Broken(g.reason(why))), [], socket.MSG_DONTWAIT)
        elif self._by_rank.get(rank) is connection:
            del self._by_rank[rank]
        else:
            return  # twice in a round
        self._selector.unregister(connection)
        connection.close()
        if rank is not None:
            self._say(self._leader.breaks(f"rank {rank} of the engine has ended ({why})"))
