"""Random lives of models in an embedded pool that has host memory for some of their images."""

from __future__ import annotations

import contextlib
import random
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from embedded_members import PAGE_BYTES, PATIENCE_S, closed_at_the_end, memfds, until
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from gpupool import Model, Pool
from gpupool._core import Region
from gpupool.errors import LeaseTimeoutError, RefusedError, SwapCancelledError

BUDGET_PAGES = 5
HOST_BYTES = 4 * PAGE_BYTES
FILE_BYTES = 12 * PAGE_BYTES
FEWER_BYTES = 6 * PAGE_BYTES
SIZES = [4096, PAGE_BYTES - 5000, PAGE_BYTES, 2 * PAGE_BYTES]
TAGS = ["weights", "runtime"]
WRITTEN = 3000


def memory_of(region: Region) -> memoryview:
    import ctypes

    return memoryview((ctypes.c_uint8 * region.bytes).from_address(region.address)).cast("B")


@dataclass
class Plain:
    """A model and what its regions have."""

    model: Model
    stamp: int
    regions: list[tuple[Region, str, bytearray]] = field(default_factory=list)
    writing: threading.Lock = field(default_factory=threading.Lock)

    def add(self, tag: str, size_bytes: int) -> None:
        """Filled as by a loader, and saved."""
        region = self.model.region(tag, size_bytes, capacity_bytes=2 * PAGE_BYTES)
        content = bytearray(random.Random(self.stamp).randbytes(4096) * (size_bytes // 4096 + 1))
        del content[size_bytes:]
        with memoryview(region.image()) as image:  # type: ignore[arg-type]
            image.cast("B")[:] = content
        region.adopt_image()
        self.regions.append((region, tag, content))

    def run(self, chance: random.Random) -> None:
        """Inside a step."""
        with self.writing:
            for region, tag, content in self.regions:
                assert memory_of(region) == content, f"{self.model.name}: {tag}"
            region, tag, content = chance.choice(self.regions)
            at = chance.randrange(region.bytes)
            new = chance.randbytes(WRITTEN)[: region.bytes - at]
            memory_of(region)[at : at + len(new)] = content[at : at + len(new)] = new
            if tag == "weights":
                region.mark_written([(at, len(new))])

    def look(self, timeout_s: float) -> None:
        """At the images, which are right if the model was out since it was written to."""
        with self.model.pinned(timeout_s):
            assert self.model.parked_bytes == 0
            assert all(region.image_bytes > 0 for region, _, _ in self.regions)


def pool_of(folder: str, limit_bytes: int = FILE_BYTES) -> Pool:
    return Pool(
        device="host",
        budget_bytes=BUDGET_PAGES * PAGE_BYTES,
        page_bytes=PAGE_BYTES,
        host_budget_bytes=HOST_BYTES,
        parking_folder=folder,
        parking_limit_bytes=limit_bytes,
    )


class Lives(RuleBasedStateMachine):
    """One thread; what it asks for is there, or refused where files are full."""

    def __init__(self) -> None:
        super().__init__()
        self.before = memfds()
        self.folder = tempfile.TemporaryDirectory()
        self.pool = pool_of(self.folder.name, FEWER_BYTES)
        self.models: list[Plain] = []
        self.made = 0
        self.chance = random.Random(1)

    @contextlib.contextmanager
    def refusable(self) -> Iterator[None]:
        """Around what is refused only where files are full."""
        try:
            yield
        except RefusedError:
            files = sum(model.parked_file_bytes for model in self.pool.statistics().models)
            assert files + HOST_BYTES > FEWER_BYTES

    @precondition(lambda self: len(self.models) < 5)
    @rule(tag=st.sampled_from(TAGS), size=st.sampled_from(SIZES))
    def join(self, tag: str, size: int) -> None:
        self.made += 1
        model = self.pool.model(f"m{self.made}", lease_timeout_s=PATIENCE_S)
        plain = Plain(model, self.made)
        try:
            plain.add(tag, size)
        except RefusedError:
            model.close()
        else:
            self.models.append(plain)

    @precondition(lambda self: self.models)
    @rule(data=st.data(), tag=st.sampled_from(TAGS), size=st.sampled_from(SIZES))
    def grow(self, data: st.DataObject, tag: str, size: int) -> None:
        plain = data.draw(st.sampled_from(self.models))
        held = sum(-(-region.bytes // PAGE_BYTES) for region, _, _ in plain.regions)
        if len(plain.regions) < 3 and held * PAGE_BYTES + size <= HOST_BYTES:
            plain.model.swap_out()
            with contextlib.suppress(RefusedError):
                plain.add(tag, size)

    @precondition(lambda self: self.models)
    @rule(data=st.data(), size=st.sampled_from(SIZES))
    def resize(self, data: st.DataObject, size: int) -> None:
        plain = data.draw(st.sampled_from(self.models))
        region, _, content = data.draw(st.sampled_from(plain.regions))
        plain.model.swap_out()
        with contextlib.suppress(RefusedError):
            plain.model.resize(region, size)
            content[:] = (content + bytes(size))[:size]
            with memoryview(region.image()) as image:  # type: ignore[arg-type]
                image.cast("B")[:] = content  # which may have had more once
            region.adopt_image()
        # For who is refused others park beside this thread.
        until(lambda: not self.pool._arbiter.host._orders._has_thread)

    @precondition(lambda self: self.models)
    @rule(data=st.data(), seed=st.integers(0, 1000))
    def run(self, data: st.DataObject, seed: int) -> None:
        plain = data.draw(st.sampled_from(self.models))
        with self.refusable(), plain.model.resident():
            plain.run(random.Random(seed))

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        one, other = (data.draw(st.sampled_from(self.models)) for _ in range(2))
        with self.refusable(), one.model.pinned():
            with contextlib.suppress(LeaseTimeoutError, RefusedError):
                other.look(0.0)
            assert one.model.parked_bytes == 0

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def prefetch(self, data: st.DataObject) -> None:
        model = data.draw(st.sampled_from(self.models)).model
        with self.refusable():
            model.prefetch()

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.models)).model.swap_out()

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        plain = data.draw(st.sampled_from(self.models))
        plain.model.close()
        self.models.remove(plain)

    @invariant()
    def what_is_on_the_account_is_held(self) -> None:
        now = self.pool.statistics()
        parked = {model.name: model.parked_bytes for model in now.models}
        held = 0
        for plain in self.models:
            assert parked[plain.model.name] == plain.model.parked_bytes
            for region, _, _ in plain.regions:
                assert region.parked or region.image_bytes >= region.bytes
                held += region.image_bytes  # what it grew by stays when it shrinks
        assert now.host_bytes == held <= HOST_BYTES
        assert sum(model.parked_file_bytes for model in now.models) <= FEWER_BYTES

    def teardown(self) -> None:
        with closed_at_the_end(self.pool, Path(self.folder.name)):
            for plain in self.models:
                with self.refusable(), plain.model.resident():
                    plain.run(self.chance)
        assert memfds() <= self.before
        self.folder.cleanup()


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


class Worker:
    """A thread that does what its seed says to models that others use too."""

    def __init__(self, pool: Pool, models: list[Plain], seed: int, turns: int) -> None:
        self.pool = pool
        self.models = models
        self.chance = random.Random(seed)
        self.turns = turns
        self.errors: list[BaseException] = []

    def work(self) -> None:
        try:
            for _ in range(self.turns):
                self.turn(self.chance.choice(self.models))
                assert self.pool.statistics().host_bytes <= HOST_BYTES
        except BaseException as error:
            self.errors.append(error)

    def turn(self, plain: Plain) -> None:
        match self.chance.choice(["run"] * 5 + ["leave", "prefetch", "look", "hurry"]):
            case "run":
                with plain.model.resident():
                    plain.run(self.chance)
            case "leave":
                plain.model.swap_out()
            case "prefetch":
                with contextlib.suppress(SwapCancelledError):
                    plain.model.prefetch(self.chance.choice([0.5, 1.0]))
            case "look":
                plain.look(PATIENCE_S)
            case "hurry":  # and gives up soon
                with contextlib.suppress(LeaseTimeoutError), plain.model.resident(0.001):
                    plain.run(self.chance)


@pytest.mark.parametrize("seed", range(6))
def test_threads_that_want_more_than_there_is_all_get_it(seed: int, tmp_path: Path) -> None:
    """Models of 1 to 4 pages, of which host memory has 4: every step finds what was written."""
    before = memfds()
    with closed_at_the_end(pool_of(str(tmp_path)), tmp_path) as pool:
        chance = random.Random(seed)
        models: list[Plain] = []
        for number in range(5):
            plain = Plain(pool.model(f"m{number}", lease_timeout_s=PATIENCE_S), number)
            plain.add("weights", chance.choice(SIZES))
            plain.add("runtime", chance.choice(SIZES[:3]))
            models.append(plain)
        workers = [Worker(pool, models, 100 * seed + i, turns=40) for i in range(4)]
        threads = [threading.Thread(target=worker.work) for worker in workers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(3 * PATIENCE_S)
            assert not thread.is_alive()
        for worker in workers:
            if worker.errors:
                raise worker.errors[0]
        assert sum(model.read_backs for model in pool.statistics().models) > 5
        for plain in models:
            with plain.model.resident():
                plain.run(chance)
    assert memfds() <= before
