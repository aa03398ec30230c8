"""Random lives of models at a desk whose host memory holds only some of their images."""

from __future__ import annotations

from pathlib import Path

from desk_bench import SWAP, Bench, FakePeer
from hypothesis import given, settings
from hypothesis import strategies as st

from gpupool.daemon import protocol as p
from gpupool.host_budget.place import ParkingPlace

PAGE = 4096
BUDGET_PAGES = 12
DISK_PAGES = 20
SIZES = (3, 4, 5, 6)
STEPS = (
    *(["want"] * 4 + ["answer"] * 3),
    *("leave", "fail", "refuse to leave", "take back", "kill", "time", "idle"),
)


class Plain:
    """One model as its worker knows it."""

    def __init__(self, number: int) -> None:
        self.size = SIZES[number]
        self.peer = FakePeer()
        self.state = "new"  # loading, out, parked, asking, waiting, resident
        self.held = 0
        self.file = 0
        self.orders: list[p.Park | p.Revoke] = []


class World:
    """What every worker knows, beside the desk."""

    def __init__(self) -> None:
        self.bench = Bench(
            pages=4,
            host_budget_bytes=BUDGET_PAGES * PAGE,
            parking=ParkingPlace(Path("/parked"), DISK_PAGES * PAGE),
        )
        self.plain = [Plain(number) for number in range(len(SIZES))]
        self.asked: list[int] = []  # who asked for host memory, in order
        self.clock = 0
        self.parks = 0

    def say(self, number: int, *messages: p.ClientMessage) -> None:
        self.bench.say(self.plain[number].peer, *messages)
        self.hear()

    def hear(self) -> None:
        granted = []
        parks: list[int] = []
        for number, plain in enumerate(self.plain):
            for message in plain.peer.take():
                match message:
                    case p.HostGranted():
                        assert plain.state in ("loading", "asking")
                        granted.append(number)
                        plain.held += plain.size
                        plain.state = {"loading": "loaded", "asking": "reading"}[plain.state]
                    case p.Granted():
                        plain.state = "resident"
                    case p.Refused():
                        assert plain.state in ("loading", "asking")
                        self.asked.remove(number)
                        plain.state = {"loading": "new", "asking": "parked"}[plain.state]
                    case p.Park() | p.Revoke():
                        assert plain.held > 0
                        outs = ("out", "arriving", "loading", "loaded")
                        assert isinstance(message, p.Park) is (plain.state in outs), plain.state
                        if isinstance(message, p.Revoke) and message.park_s is None:
                            assert plain.state == "resident"
                        plain.orders.append(message)
                        self.parks += 1
                        if isinstance(message, p.Park) and plain.state == "out":
                            parks.append(number)
        self.check_order(parks)
        assert set(granted) == set(self.asked[: len(granted)])
        del self.asked[: len(granted)]
        held = sum(plain.held for plain in self.plain)
        status = self.bench.status()
        assert status.host_bytes == held * PAGE <= BUDGET_PAGES * PAGE
        files = sum(model.parked_file_bytes for model in status.models)
        assert files == sum(plain.file for plain in self.plain) * PAGE <= DISK_PAGES * PAGE
        for number, plain in enumerate(self.plain):
            if plain.state == "loaded":
                plain.state = "out"
                self.say(number, p.Declare(1 + number % 3, 0, 0), p.Parkable(plain.size * PAGE))
            elif plain.state == "reading":
                plain.state = "arriving"
                self.say(number, p.Unparked(plain.size * PAGE, plain.file * PAGE))
                if plain.orders:  # it crossed what it is about to say
                    plain.orders.clear()
                    self.say(number, p.Parked(0, plain.file * PAGE))
                plain.state = "waiting"
                self.say(number, p.Acquire())

    def check_order(self, asked: list[int]) -> None:
        """Of those that could be asked, the ones that were are those longest out of use."""
        idle = [n for n, plain in enumerate(self.plain) if plain.state == "out"]
        images = {n: self.bench.desk._workers[self.plain[n].peer.key or 0].images for n in idle}
        others = [
            n
            for n in idle
            if not self.plain[n].orders
            and images[n].not_before_s <= self.bench.now_s
            and self.plain[n].file  # which needs no more room there
        ]
        if asked and others:
            assert max(map(self.used_s, asked)) <= min(map(self.used_s, others))

    def used_s(self, number: int) -> float:
        key = self.plain[number].peer.key
        assert key is not None
        return self.bench.arbiter.lease(key).used_s

    def tick(self) -> int:
        self.clock += 1
        self.bench.now_s += 0.01
        return self.clock

    def step(self, step: str, number: int) -> None:
        self.tick()
        plain = self.plain[number]
        order = plain.orders[0] if plain.orders else None
        if step == "want":
            if plain.state == "new":
                self.asked.append(number)
                plain.state = "loading"
                hello = p.Hello(p.PROTOCOL_VERSION, f"model {number}")
                if plain.peer.key is None:
                    self.bench.tell(plain.peer, hello)
                self.say(number, p.HostMemories([plain.size * PAGE]))
            elif plain.state == "parked":
                self.asked.append(number)
                plain.state = "asking"
                self.say(number, p.HostMemories([PAGE] * plain.size, returns=True))
            elif plain.state == "out" and order is None:
                plain.state = "waiting"
                self.say(number, p.Acquire())
        elif step == "leave" and plain.state == "resident":
            self.leave(number)
        elif step == "answer" and order is not None:
            if plain.state == "resident":
                self.leave(number)
            self.park(number)
        elif step == "fail" and order is not None and plain.state == "out":
            plain.orders.pop(0)
            self.say(number, p.Parked(0, plain.file * PAGE, "no space"))
        elif step == "refuse to leave" and order is not None and plain.state == "resident":
            plain.orders.clear()
            self.say(number, p.Kept("its store is full", stays=True))
            if isinstance(order, p.Revoke) and order.park_s is not None:
                self.say(number, p.Parked(0, plain.file * PAGE))
        elif step == "take back" and plain.state in ("loading", "asking"):
            self.asked.remove(number)
            plain.state = {"loading": "new", "asking": "parked"}[plain.state]
            self.bench.say(plain.peer, p.Cancel(mapped=True))
            assert p.Ok() in plain.peer.heard
            plain.peer.heard.remove(p.Ok())
            self.hear()
        elif step == "kill" and plain.state != "new":
            if number in self.asked:
                self.asked.remove(number)
            plain.peer.exited, plain.peer.connected = True, False
            self.plain[number] = Plain(number)
            self.bench.lose(plain.peer)
            self.hear()
        elif step == "time":
            self.bench.now_s += 11.0
            self.bench.settle()
            self.hear()
        elif step == "idle" and plain.state == "out":
            self.say(number, p.Idle(False), p.Idle(True))

    def leave(self, number: int) -> None:
        plain = self.plain[number]
        plain.state = "out"
        revoked = [o for o in plain.orders if isinstance(o, p.Revoke)]
        if not revoked or revoked[0].park_s is None:
            plain.orders.clear()
            self.say(number, p.Yielded(SWAP))
            return
        self.bench.say(plain.peer, p.Yielded(SWAP))
        self.park(number)

    def park(self, number: int) -> None:
        plain = self.plain[number]
        if plain.state == "out" and plain.orders:
            plain.orders.clear()
            plain.state, plain.file, held, plain.held = "parked", plain.size, plain.held, 0
            self.bench.say(plain.peer, p.HostMemoryUnused(held * PAGE))
            self.say(number, p.Parked(plain.size * PAGE, plain.file * PAGE))

    def end(self) -> None:
        """Whoever waits is served or told, once all who are asked answer."""
        for _ in range(200):
            for number, plain in enumerate(self.plain):
                if plain.orders:
                    self.step("answer", number)
                elif plain.state == "resident":
                    self.step("leave", number)
            self.step("time", 0)
            if not self.asked and all(plain.state != "waiting" for plain in self.plain):
                break
        else:
            raise AssertionError(f"{self.asked} wait for ever")
        for number in range(len(self.plain)):
            self.step("kill", number)
        assert self.bench.status().host_bytes == 0
        assert self.bench.ledger() == (4, 0, 0)


LIVES = st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, len(SIZES) - 1)), min_size=50)


def test_the_budget_holds_and_everybody_is_served() -> None:
    """Nobody is asked who is leased or waits, and no byte is lost."""
    parks = 0

    @settings(max_examples=100)
    @given(LIVES)
    def lives(steps: list[tuple[str, int]]) -> None:
        nonlocal parks
        world = World()
        for step, number in steps:
            world.step(step, number)
        world.end()
        parks += world.parks

    lives()
    assert parks > 200
