"""As puppet.py, for a process that is one of the two ranks of an engine."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

from puppet import Puppet, obey

from gpupool.gang.rank import GangRank
from gpupool.model import Model


class RankPuppet(Puppet):
    """Its model is that of the rank."""

    def join_gang(self, sockets: list[str], name: str, rank: int, size_bytes: int) -> None:
        """As a rank of a model that has so much memory there."""
        path = str(Path(sockets[0]).with_name(f"{name}-ranks.sock"))
        self._other = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        if rank == 0:
            self._other.bind(path)
            self._other.listen()
        self._place = GangRank(sockets, name, rank, "one start of an engine")
        if rank == 0:
            listener = self._other
            self._other, _ = listener.accept()
            listener.close()
        else:
            self._other.connect(path)
        self._session = self._place.session
        self._model = Model(
            name, self._session, lease_timeout_s=60.0, make_gate=self._place.make_gate
        )
        self._model.region("runtime", size_bytes)

    def steps(self, count: int) -> int:
        """So many, each of which is a collective operation; the memory is what it was."""
        try:
            for number in range(1, count + 1):
                self._model.gate.open_step()
                try:
                    self._meet()
                    self.stamp(number) if number == 1 else self.renew(number)
                    self._meet()
                finally:
                    self._model.gate.close_step()
        except BaseException:
            self._other.shutdown(socket.SHUT_RDWR)  # what an engine does about its other ranks
            raise
        return count

    def _meet(self) -> None:
        self._other.send(b"x")
        if not self._other.recv(1):
            raise RuntimeError("the other rank has ended")


if __name__ == "__main__":
    obey(RankPuppet(Path(sys.argv[1])))
