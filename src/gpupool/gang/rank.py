"""One rank's place in a gang: its leader, if it is the first, its part, and its session."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gpupool.daemon.listening import remove_stale
from gpupool.errors import UsageError
from gpupool.gang.gate import GangGate
from gpupool.gang.member import Member
from gpupool.gang.serving import LeaderThread
from gpupool.gang.session import RankSession

_JOIN_TIMEOUT_S = 120.0  # ranks start at about the same time, on machines that may be slow


class GangRank:
    """Joins the pool of one device for one rank, and the gang for its engine."""

    def __init__(self, sockets: Sequence[str], model: str, rank: int, engine: str) -> None:
        """``sockets`` are of the daemons of all ranks' devices, ``engine`` a word of all ranks.

        Raises UsageError, GangBrokenError where the ranks do not meet, and what joining a pool
        raises.
        """
        paths = [str(Path(socket).resolve()) for socket in sockets]  # links have other names
        if paths != sorted(set(paths)):
            raise UsageError(
                "name each daemon of an engine's ranks once and in alphabetical order: that all "
                "engines take devices in one order is what keeps them from waiting for each other; "
                f"these are {', '.join(paths)}"
            )
        word = hashlib.blake2b(f"{model}\0{engine}".encode(), digest_size=8).hexdigest()
        path = Path(paths[0]).parent / f"gang-{word}.sock"
        with contextlib.ExitStack() as undo:
            if rank == 0:
                with contextlib.suppress(OSError):  # the next line says what is wrong there
                    remove_stale(path.parent, "gang-*.sock")  # of engines killed as they began
                leader = LeaderThread(path, len(sockets))
                undo.callback(leader.close)
            member = Member(path, rank, len(sockets), _JOIN_TIMEOUT_S)
            undo.callback(member.close)
            self.session = RankSession(Path(sockets[rank]), model, member.granted, member.is_wanted)
            self._parts = undo.pop_all()
        self.make_gate = partial(GangGate, member=member)
        """The gate of the rank's model."""

    def close(self) -> None:
        """End the gang; idempotent. The session is its model's to close."""
        self._parts.close()
