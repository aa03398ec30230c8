"""The embedded pool under random use, against a model of it in plain bytes."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pool_bench import BUDGET_PAGES, PAGE_BYTES, memory_of, pool_of

from gpupool import Model
from gpupool._core import Region
from gpupool.errors import DoesNotFitError, PoolFullError, UsageError

CAPACITY_BYTES = 3 * PAGE_BYTES
SIZES = st.sampled_from([1, 4096, PAGE_BYTES - 1, PAGE_BYTES, PAGE_BYTES + 1])
TAGS = ["weights", "runtime", "cudagraph", "kv_cache", "workspace"]


@dataclass
class Expected:
    """A model and what each region should hold."""

    model: Model
    stamp: int
    regions: list[tuple[Region, str, bytearray]] = field(default_factory=list)

    def write(self, index: int, begin: int, size: int, turn: int) -> None:
        region, tag, content = self.regions[index]
        end = min(begin + size, region.bytes)
        stamped = bytes([self.stamp, turn % 256]) * (size // 2 + 1)
        content[begin:end] = stamped[: end - begin]
        memory_of(region)[begin:end] = stamped[: end - begin]
        if tag in ("weights", "kv_cache"):
            region.mark_written([(begin, end - begin)])

    def check(self) -> None:
        for region, tag, content in self.regions:
            assert memory_of(region) == content, f"{self.model.name}: {tag} changed"

    def left(self) -> None:
        for _, tag, content in self.regions:
            if tag == "workspace":
                content[:] = bytes(len(content))


class Pooling(RuleBasedStateMachine):
    """Models come, grow, run, leave and close in any order."""

    scrub = "never"

    def __init__(self) -> None:
        super().__init__()
        self.pool = pool_of(scrub=self.scrub)
        self.models: list[Expected] = []
        self.made = 0
        self.turn = 0

    @precondition(lambda self: len(self.models) < 4)
    @rule()
    def join(self) -> None:
        self.made += 1
        self.models.append(Expected(self.pool.model(f"m{self.made}"), self.made))

    @precondition(lambda self: self.models)
    @rule(
        data=st.data(),
        tag=st.sampled_from(TAGS),
        size=SIZES,
    )
    def add_region(self, data: st.DataObject, tag: str, size: int) -> None:
        expected = data.draw(st.sampled_from(self.models))
        if expected.model.gate.is_resident:
            with pytest.raises(UsageError):
                expected.model.region(tag, size)
        elif len(expected.regions) < 4:
            region = expected.model.region(tag, size, capacity_bytes=CAPACITY_BYTES)
            expected.regions.append((region, tag, bytearray(size)))

    @precondition(lambda self: self.models)
    @rule(data=st.data(), size=st.integers(1, 3000))
    def run(self, data: st.DataObject, size: int) -> None:
        expected = data.draw(st.sampled_from(self.models))
        model, self.turn = expected.model, self.turn + 1
        if not expected.regions:
            with pytest.raises(UsageError), model.resident():
                pass
            return
        if model.footprint_bytes > BUDGET_PAGES * PAGE_BYTES:
            with pytest.raises(DoesNotFitError, match=str(model.footprint_bytes)), model.resident():
                pass
            return
        was_resident = {id(e): e.model.gate.is_resident for e in self.models}
        with model.resident(timeout_s=20.0):
            expected.check()
            index = data.draw(st.integers(0, len(expected.regions) - 1))
            begin = data.draw(st.integers(0, expected.regions[index][0].bytes - 1))
            expected.write(index, begin, size, self.turn)
            expected.check()
        for other in self.models:
            if was_resident[id(other)] and not other.model.gate.is_resident:
                other.left()

    @precondition(lambda self: any(e.regions for e in self.models))
    @rule(data=st.data(), size=SIZES | st.integers(1, CAPACITY_BYTES + 1))
    def resize(self, data: st.DataObject, size: int) -> None:
        expected = data.draw(st.sampled_from([e for e in self.models if e.regions]))
        region, _, content = data.draw(st.sampled_from(expected.regions))
        resident = expected.model.gate.is_resident
        held = -(-len(content) // PAGE_BYTES)
        missing_bytes = (-(-size // PAGE_BYTES) - held) * PAGE_BYTES
        room_bytes = self.pool.free_bytes + sum(e.model.warm_bytes for e in self.models)
        if size > CAPACITY_BYTES:
            with pytest.raises(UsageError, match="capacity"):
                expected.model.resize(region, size)
        elif resident and missing_bytes > room_bytes:
            with pytest.raises(PoolFullError, match="are free"):
                expected.model.resize(region, size)
        else:
            expected.model.resize(region, size)
            content[size:] = b""
            content.extend(bytes(size - len(content)))
        assert region.bytes == len(content)
        if resident:
            expected.check()

    @precondition(lambda self: any(e.regions for e in self.models))
    @rule(data=st.data())
    def prefetch(self, data: st.DataObject) -> None:
        expected = data.draw(st.sampled_from([e for e in self.models if e.regions]))
        if expected.model.footprint_bytes > BUDGET_PAGES * PAGE_BYTES:
            return
        resident = expected.model.gate.is_resident
        was_resident = [e for e in self.models if e.model.gate.is_resident]
        assert expected.model.prefetch(timeout_s=20.0) is not resident
        assert expected.model.gate.is_resident
        for other in was_resident:
            if not other.model.gate.is_resident:
                other.left()

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def swap_out(self, data: st.DataObject) -> None:
        expected = data.draw(st.sampled_from(self.models))
        was_resident = expected.model.gate.is_resident
        assert expected.model.swap_out() is was_resident
        assert not expected.model.gate.is_resident
        expected.left()

    @precondition(lambda self: self.models)
    @rule(data=st.data())
    def close(self, data: st.DataObject) -> None:
        expected = data.draw(st.sampled_from(self.models))
        expected.model.close()
        expected.model.close()
        self.models.remove(expected)
        if expected.regions:
            with pytest.raises(UsageError), expected.model.resident():
                pass

    @invariant()
    def memory_accounted_is_memory_held(self) -> None:
        held = sum(e.model.footprint_bytes for e in self.models if e.model.gate.is_resident)
        held += sum(e.model.warm_bytes for e in self.models)
        assert self.pool.free_bytes == BUDGET_PAGES * PAGE_BYTES - held

    def teardown(self) -> None:
        for expected in self.models:
            if expected.regions and expected.model.footprint_bytes <= BUDGET_PAGES * PAGE_BYTES:
                was_resident = expected.model.gate.is_resident
                with expected.model.resident():
                    if was_resident:
                        expected.check()
        self.pool.close()
        assert self.pool.free_bytes == BUDGET_PAGES * PAGE_BYTES


class ScrubbingOnGrant(Pooling):
    """The same, with every page zeroed before it is granted."""

    scrub = "on-grant"


class ScrubbingBehind(Pooling):
    """The same, with a thread that zeroes free pages."""

    scrub = "background"


TestPooling = Pooling.TestCase
TestScrubbingOnGrant = ScrubbingOnGrant.TestCase
TestScrubbingBehind = ScrubbingBehind.TestCase
for case in (TestPooling, TestScrubbingOnGrant, TestScrubbingBehind):
    case.settings = settings(max_examples=30, stateful_step_count=30, deadline=None)
