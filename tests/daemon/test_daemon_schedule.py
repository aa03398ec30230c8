"""A random schedule of several client processes against a model of the ledger."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from daemon_bench import PAGE_BYTES, Daemon, Puppet, StartDaemon, until

POOL_PAGES = 8
OPERATIONS = 160
NAMES = "abcd"
SYSTEM_PAGE_BYTES = 4096


@dataclass
class Client:
    """What the test knows of a process and of the model in it."""

    puppet: Puppet
    content: dict[str, int] = field(default_factory=dict)  # of each region, by tag
    sizes: dict[str, int] = field(default_factory=dict)

    @property
    def pages(self) -> int:
        return sum(-(-size // PAGE_BYTES) for size in self.sizes.values())

    @property
    def host_bytes(self) -> int:
        return sum(
            -(-size // SYSTEM_PAGE_BYTES) * SYSTEM_PAGE_BYTES
            for tag, size in self.sizes.items()
            if tag != "workspace"
        )


class Schedule:
    """Operations chosen by a seed; after each the daemon must tell what the test expects."""

    def __init__(self, daemon: Daemon, seed: int) -> None:
        self.daemon = daemon
        self.chance = random.Random(seed)
        self.clients: dict[str, Client] = {}
        self.done: dict[str, int] = {}
        self.warm = 0  # pages that models had while they were out

    def step(self) -> None:
        name = self.chance.choice(NAMES)
        client = self.clients.get(name)
        if client is None:
            operation = "join"
        else:
            operations = ["use"] * 8 + ["swap_out"] * 3 + ["kill", "leave", "kill_in_use"]
            if len(client.sizes) < 3:
                operations += ["region"] * 4
            operation = self.chance.choice(operations)
        self.done[operation] = self.done.get(operation, 0) + 1
        getattr(self, operation)(name)
        self.settled()

    def join(self, name: str) -> None:
        self.clients[name] = Client(self.daemon.model(name))

    def region(self, name: str) -> None:
        client = self.clients[name]
        tags = [t for t in ("weights", "kv_cache", "workspace") if t not in client.sizes]
        tag = self.chance.choice(tags)
        size_bytes = self.chance.randint(1, 2 * PAGE_BYTES)
        client.puppet.do("swap_out")
        client.puppet.do("region", tag, size_bytes)
        client.sizes[tag] = size_bytes
        client.content[tag] = 0

    def use(self, name: str) -> None:
        """Come in, which may send others out; find what was left; leave something else."""
        client = self.clients[name]
        if not client.sizes:
            return self.region(name)
        client.puppet.do("enter")
        for tag in client.sizes:
            if tag != "workspace":
                assert set(client.puppet.do("values", tag)) <= {0, client.content[tag]}
            value = self.chance.randint(1, 255)
            client.puppet.do("fill", tag, value)
            client.content[tag] = value
        client.puppet.do("leave")
        return None

    def swap_out(self, name: str) -> None:
        self.clients[name].puppet.do("swap_out")

    def kill(self, name: str) -> None:
        self.clients.pop(name).puppet.kill()

    def kill_in_use(self, name: str) -> None:
        if self.clients[name].sizes:
            self.clients[name].puppet.do("enter")
        self.kill(name)

    def leave(self, name: str) -> None:
        client = self.clients.pop(name)
        client.puppet.do("close")
        client.puppet.kill()

    def settled(self) -> None:
        until(self.agrees, "the ledger the test expects")

    def agrees(self) -> bool:
        status = self.daemon.status()
        # It comes in several packets, and the daemon may hear a model between two of them. Two that
        # are alike are what was true at one moment.
        if self.daemon.status() != status:
            return False
        resident = {m.name for m in status.models if m.state == "resident"}
        if {m.name for m in status.models} != set(self.clients):
            return False
        if any(m.state in ("leaving", "waiting") for m in status.models):
            return False  # on its way
        assert status.pages_fenced == 0
        assert status.host_bytes == sum(c.host_bytes for c in self.clients.values())
        held = {m.name: m.held_bytes // PAGE_BYTES for m in status.models}
        assert status.pages_granted == sum(held.values())
        for name, client in self.clients.items():
            assert held[name] == client.pages if name in resident else held[name] <= client.pages
        self.warm += sum(held.values()) - sum(held[name] for name in resident)
        assert status.pages_free == POOL_PAGES - status.pages_granted
        for name, client in self.clients.items():
            assert client.puppet.do("is_resident") == (name in resident)
        return True


@pytest.mark.parametrize("seed", [1, 2])
def test_random_schedule(start_daemon: StartDaemon, seed: int) -> None:
    daemon = start_daemon(pages=POOL_PAGES)
    schedule = Schedule(daemon, seed)
    for _ in range(OPERATIONS):
        schedule.step()
    assert min(schedule.done.values()) >= 3
    assert schedule.warm > 0
    assert len(schedule.done) == 7
    for name in list(schedule.clients):
        schedule.kill(name)
    schedule.settled()
    assert daemon.status().pages_free == POOL_PAGES
