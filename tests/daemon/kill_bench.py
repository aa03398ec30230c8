"""A pool of several clients, one of which is killed again and again."""

from __future__ import annotations

import contextlib
import re
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import life
from daemon_bench import PAGE_BYTES, Daemon, until
from forks import Fork, Nursery


class World:
    """One daemon and three clients that live on: one stays in, one comes and goes, one waits.

    All three fit the pool at once and then fill it, so that every page a dead client has had is
    looked at. The mortal one fits beside the one that stays.
    """

    PAGES = 8

    def __init__(self, nursery: Nursery, daemon: Daemon) -> None:
        self._nursery = nursery
        self.daemon = daemon
        self._generation = 1
        self._forks: list[Fork] = []
        self._inside: set[Fork] = set()
        self._entering: set[Fork] = set()
        self.stayer = self.client("stayer", kv_cache=PAGE_BYTES // 2)
        self.contender = self.client("contender", kv_cache=PAGE_BYTES + 9000, workspace=4_000_000)
        self.sleeper = self.client("sleeper", weights=5000, runtime=3000, workspace=PAGE_BYTES)
        self._clients = [self.stayer, self.contender, self.sleeper]
        self.stayer.do("set_idle", False)  # so that it has its turn, which is a long one
        for client in self._clients:
            self.enter(client)
            client.do("stamp", self._generation)
        self._all_well()
        self._ledger = self.ledger()
        # Less the connections of whoever asked for the status.
        until(lambda: self.held()["anon_inode:[pidfd]"] == len(self._clients))
        self._held = self.held()
        self._stages = {
            "another is in": self._hold,
            "there is room": self._make_room,
            "another wants in": self._contend,
            "it has said that it cannot leave": self._hear_that_it_was_kept,
            "the other is in": self._let_in,
            "a third waits behind": self._queue_up,
            "the third is in": self._let_third_in,
        }

    def client(self, name: str, **regions: int) -> Fork:
        fork = self._nursery.fork("puppet", str(self.daemon.socket_path))
        self._forks.append(fork)
        fork.join(name, **regions)
        return fork

    def close(self) -> None:
        for fork in self._forks:
            fork.close()

    def life(self, moment: str, nth: int) -> bool:
        """Whether a client that was to be killed at that moment was."""
        return self._life(moment, nth).result() != 0

    def census(self) -> dict[str, list[str]]:
        """What a client does that lives to the end; see death.Census."""
        mortal = self._life("never", 0)
        assert mortal.result() == 0
        return dict(mortal.value)

    def _life(self, moment: str, nth: int) -> Fork:
        owner = f"mortal/{moment}/{nth}"
        mortal = self._nursery.fork("mortal", str(self.daemon.socket_path), moment, nth, owner)
        self._forks.append(mortal)
        while (stage := mortal.stage()) is not None:
            self._stages[stage](mortal)
        self._until_fence_falls(mortal)
        result = mortal.result()
        assert result in (0, -signal.SIGKILL)
        self._forks.remove(mortal)
        mortal.close()
        self._all_well()
        self._until_as_before()
        return mortal

    def hang_up(self, burden_bytes: int) -> None:
        """One that others wait for drops its connection, in a process that takes time to end."""
        mortal = self.client(life.NAME, **life.REGIONS)
        mortal.do("enter")
        mortal.do("stamp", 1)
        self.want_in(self.contender)
        until(lambda: self._state(life.NAME) == "leaving")
        mortal.start("hang_up_at_work", burden_bytes)
        self.enter(self.contender)
        assert mortal.gone, "what it held was given to another in its lifetime"
        assert mortal.result() == -signal.SIGKILL
        self._forks.remove(mortal)
        mortal.close()
        self._all_well()
        self._until_as_before()

    def _until_as_before(self) -> None:
        until(lambda: self.ledger() == self._ledger, f"{self.ledger()} for {self._ledger}")
        until(lambda: self.held() == self._held, f"{self.held()} for {self._held}")

    def _until_fence_falls(self, mortal: Fork) -> None:
        """Wait until the daemon knows it no more, which must not be before it is gone."""
        if self.daemon.model_status(life.NAME) is not None:
            until(lambda: self.daemon.model_status(life.NAME) is None)
            assert mortal.gone, "what it held was given back in its lifetime"

    def enter(self, client: Fork) -> None:
        """Bring it in, unless it is."""
        if client in self._entering:
            self._entering.remove(client)
            client.answer()
        elif client not in self._inside:
            client.do("enter")
        self._inside.add(client)

    def leave(self, client: Fork) -> None:
        self._inside.remove(client)
        client.do("leave")

    def want_in(self, client: Fork) -> None:
        self._entering.add(client)
        client.start("enter")

    def ledger(self) -> object:
        """The daemon's account, but for what only grows."""
        status = self.daemon.status()
        models = [(m.name, m.pid, m.state, m.footprint_bytes) for m in status.models]
        pages = (status.pages_free, status.pages_granted, status.pages_fenced)
        return pages, status.host_bytes, models

    def held(self) -> Counter[str]:
        """Descriptors and mappings of the daemon, by what they are."""
        process = Path(f"/proc/{self.daemon.process.pid}")
        held: Counter[str] = Counter()
        for descriptor in (process / "fd").iterdir():
            with contextlib.suppress(FileNotFoundError):  # closed by now
                held[re.sub(r"\d+", "", str(descriptor.readlink()))] += 1
        held["mapped"] = (process / "maps").read_text().count("memfd")
        return held

    def _all_well(self) -> None:
        """The three have what they had, on all pages there are, and can come and go."""
        for client in self._clients:
            self.enter(client)
        self._generation += 1
        self._together("renew", self._generation)
        status = self.daemon.status()
        assert (status.pages_free, status.pages_fenced) == (0, 0)
        for client in self._clients:
            self.leave(client)
        self._together("swap_out")
        self.enter(self.stayer)
        self.stayer.do("check")

    def _together(self, command: str, *arguments: Any) -> None:
        for client in self._clients:
            client.start(command, *arguments)
        for client in self._clients:
            client.answer()

    def _until(self, mortal: Fork, condition: Callable[[], bool], what: str) -> None:
        until(lambda: mortal.gone or condition(), what)

    def _state(self, name: str) -> str:
        model = self.daemon.model_status(name)
        return model.state if model else ""

    # What the others do at each stage of its life.

    def _hold(self, mortal: Fork) -> None:
        self.enter(self.contender)
        mortal.go_on()

    def _make_room(self, mortal: Fork) -> None:
        self.leave(self.contender)  # revoked for the mortal one, which has changed its mind
        until(lambda: self._state("contender") == "out")
        mortal.go_on()

    def _contend(self, mortal: Fork) -> None:
        self.want_in(self.contender)
        self._until(mortal, lambda: self._state(life.NAME) == "leaving", "the revoke")
        mortal.go_on()

    def _hear_that_it_was_kept(self, mortal: Fork) -> None:
        def told() -> bool:
            refusals = self.daemon.status().refusals
            return any((r.pid, r.message) == (mortal.pid, life.KEPT) for r in refusals)

        self._until(mortal, told, "what a revoke that failed says")
        mortal.go_on()

    def _let_in(self, mortal: Fork) -> None:
        self.enter(self.contender)
        self._generation += 1
        self.contender.do("renew", self._generation)
        mortal.go_on()

    def _queue_up(self, mortal: Fork) -> None:
        mortal.go_on()
        self._until(mortal, lambda: self._state(life.NAME) == "waiting", "the mortal one's wait")
        self.want_in(self.sleeper)
        until(lambda: self._state("sleeper") in ("waiting", "resident"))
        self.leave(self.contender)

    def _let_third_in(self, mortal: Fork) -> None:
        self.enter(self.sleeper)
        self._generation += 1
        self.sleeper.do("renew", self._generation)
        self.leave(self.sleeper)
        self.enter(self.contender)  # for which the mortal one gives up what it has kept
        self.leave(self.contender)
        mortal.go_on()
