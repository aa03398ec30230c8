"""Which way blocks are moved, and that changing ways in the middle loses none."""

from __future__ import annotations

import doctest
import json
import math
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from kv_life import Life
from kv_world import BLOCKS, World

import gpupool
import gpupool.kv.move_table
from gpupool.cli import main
from gpupool.errors import GpupoolError, UsageError
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.bench import open_bench
from gpupool.kv.blocks import Blocks, Words
from gpupool.kv.move_table import Direction, Figure, MoveTable, table_path
from gpupool.kv.mover import NOT_SUPPORTED, CopierMover, Mover
from gpupool.kv.paged import PagedKv
from gpupool.kv.planned_mover import PlannedMover, planned_mover

TUNE = ["tune", "--device", "host", "--limit-mib", "1", "--runs", "1"]
SIZES, COUNTS = (100, 1000, 5000), (4, 64)
DIRECTIONS: tuple[Direction, ...] = ("to_host", "to_device")


def table_of(chooser: random.Random, methods: list[str]) -> MoveTable:
    """Times that say nothing sensible, so that ways change often."""
    return MoveTable(
        "host",
        [
            Figure(direction, method, size, count, chooser.uniform(1e-6, 1e-3))
            for direction in DIRECTIONS
            for method in methods
            for size in SIZES
            for count in COUNTS
        ],
    )


def test_the_doctest() -> None:
    assert doctest.testmod(gpupool.kv.move_table, raise_on_error=True).attempted >= 4


@given(
    st.integers(0, 1000), st.sampled_from(DIRECTIONS), st.integers(1, 20000), st.integers(1, 999)
)
def test_times_lie_between_their_neighbours(
    seed: int, direction: Direction, size: int, count: int
) -> None:
    table = table_of(random.Random(seed), ["each"])
    known = {
        (f.piece_bytes, f.pieces): f.seconds for f in table.figures if f.direction == direction
    }
    found = table.seconds(direction, "each", size, count)
    if (size, count) in known:
        assert math.isclose(found, known[size, count])
    around = [
        known[s, c] * max(1, size / SIZES[-1]) * max(1, count / COUNTS[-1])
        for s in _around(SIZES, size)
        for c in _around(COUNTS, count)
    ]
    assert min(around) * 0.999 <= found <= max(around) * 1.001


def _around(known: tuple[int, ...], x: int) -> set[int]:
    return {
        max([k for k in known if k <= x] or known[:1]),
        min([k for k in known if k >= x] or known[-1:]),
    }


@given(st.integers(0, 1000), st.integers(1, 20000), st.integers(1, 999))
def test_the_quickest_is_chosen(seed: int, size: int, count: int) -> None:
    table = table_of(random.Random(seed), ["each", "batch", "kernel"])
    best = table.best("to_host", size, count)
    times = {m: table.seconds("to_host", m, size, count) for m in table.methods("to_host")}
    assert times[best] == min(times.values())


def test_a_cliff_is_followed() -> None:
    """As cuMemcpyBatchAsync has one: 4 to 7 GB/s up to 24 KiB, 40 from 28 KiB on."""
    kib = 1024
    figures = [
        Figure("to_host", "batch", size * kib, count, size * kib * count / rate)
        for size, rate in ((4, 4e9), (24, 6.7e9), (28, 39.9e9), (64, 51e9))
        for count in (16, 4096)
    ]
    figures += [
        Figure("to_host", "kernel", size * kib, count, size * kib * count / 25e9)
        for size in (4, 24, 28, 64)
        for count in (16, 4096)
    ]
    table = MoveTable("an H100", figures)
    assert [table.best("to_host", size * kib, 500) for size in (4, 16, 24, 28, 32, 256)] == [
        *["kernel"] * 3,
        *["batch"] * 3,
    ]


def test_a_table_is_read_as_it_was_written(tmp_path: Path) -> None:
    table = table_of(random.Random(3), ["each", "batch"])
    path = table.save(tmp_path / "deep" / "moves.json")
    assert MoveTable.load(path, "host").figures == table.figures
    assert [found.name for found in path.parent.iterdir()] == ["moves.json"]
    with pytest.raises(UsageError, match="was measured on 'host'"):
        MoveTable.load(path, "NVIDIA H200")
    content = path.read_bytes()
    for broken in (b"", content[:-20], content.replace(b"seconds", b"second"), b'{"format": 9}'):
        path.write_bytes(broken)
        with pytest.raises(UsageError, match="run gpupool tune"):
            MoveTable.load(path, "host")
    path.write_bytes(content.replace(b'"pieces": 64', b'"pieces": 0'))
    with pytest.raises(UsageError, match="cannot take"):
        MoveTable.load(path, "host")


def planned(world: World, chooser: random.Random) -> Counter[str]:
    """Let the world's blocks move in ways that change; how often each was asked."""
    asked: Counter[str] = Counter()

    def counted(name: str, move: Callable[[Blocks, Words], None]) -> Callable[..., None]:
        def counting(blocks: Blocks, rows: Words) -> None:
            asked[name] += 1
            move(blocks, rows)

        return counting

    ways: dict[str, Mover] = {}
    for name in ("each", "batch"):
        way = CopierMover(world.driver, world.layout, world.region.address, method=name)  # type: ignore[arg-type]
        for direction in DIRECTIONS:
            setattr(way, direction, counted(name, getattr(way, direction)))
        ways[name] = way
    world.cache._mover = PlannedMover(world.layout, ways, table_of(chooser, ["each", "batch"]))
    return asked


def test_lives_with_ways_that_change() -> None:
    asked: Counter[str] = Counter()
    for seed in range(60):
        life = Life(seed, stepped=seed % 3 > 0)
        found = planned(life.world, random.Random(seed))
        life.run(60)
        asked += found
    assert min(asked["each"], asked["batch"]) > 200


@pytest.mark.parametrize("tuned", [False, True])
def test_a_driver_without_batches_is_asked_for_one_only_once(tuned: bool) -> None:
    if tuned:  # with another driver
        figures = [Figure(d, "batch", 4096, 16, 1e-6) for d in DIRECTIONS]
        MoveTable("host", figures).save()
    world = World(1)
    region, layout = world.region, world.layout
    world.cache._mover = planned_mover(world.driver, layout, region.address, region.bytes)
    world.swap_in()
    world.write(list(range(BLOCKS)))
    world.plan.arm(2 if tuned else 1, NOT_SUPPORTED)  # a change of ways waits for the last first
    world.save()
    assert world.plan.injected == 1
    world.plan.disarm()
    batches = world.calls("copy_batch_to_host")
    for _ in range(2):
        world.write(list(range(BLOCKS)))
        world.swap_out()
        world.swap_in()
        world.read(list(range(BLOCKS)))
    assert world.calls("copy_batch_to_host") == batches
    assert world.calls("copy_batch_to_device") == 0
    world.finish()


def test_a_table_of_ways_that_are_not_here_is_refused() -> None:
    world = World(1)
    with pytest.raises(UsageError, match="run gpupool tune"):
        PlannedMover(
            world.layout, {"each": world.cache._mover}, table_of(random.Random(1), ["kernel"])
        )
    one_way = MoveTable("host", [Figure("to_host", "each", 4096, 16, 1e-6)])
    with pytest.raises(UsageError, match="run gpupool tune"):
        PlannedMover(world.layout, {"each": world.cache._mover}, one_way)
    world.finish()


def test_tune_writes_what_engines_look_for(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, [*TUNE, "--json"])
    assert done.exit_code == 0, done.output
    path = table_path("host")
    assert path.is_relative_to(tmp_path)
    figures = json.loads(done.stdout)["figures"]
    assert {f["method"] for f in figures} == {"each", "batch"}
    assert len(MoveTable.load(path, "host").figures) == len(figures)
    done = CliRunner().invoke(main, [*TUNE, "--out", str(tmp_path / "here.json")])
    assert "to_device" in done.stdout
    assert (tmp_path / "here.json").exists()

    pool = gpupool.Pool(device="host", budget_bytes=2 << 20, page_bytes=2 << 20)
    layout = BlockLayout.of([(0, 4096, 4096)], blocks=64)
    kv = PagedKv(pool.model("a"), layout, region_bytes=2 << 20, dtype="int8")
    assert isinstance(kv.cache._mover, PlannedMover)
    path.write_text("{}")
    with pytest.raises(UsageError, match="run gpupool tune"):
        PagedKv(pool.model("b"), layout, region_bytes=2 << 20, dtype="int8")
    pool.close()


def test_tune_says_what_is_wrong(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["tune", "--device", "gpu"])
    assert done.exit_code == 1
    assert "unknown device 'gpu'" in done.output
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(main, [*TUNE, "--out", str(tmp_path / "file" / "moves.json")])
    assert done.exit_code == 1
    assert "the table cannot be written" in done.output


def test_measuring_that_fails_is_not_the_table_that_cannot_be_written(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_room(*_: object, **__: object) -> None:
        raise OSError("no room for a pinned slab")

    monkeypatch.setattr("gpupool.kv.tuning.open_bench", no_room)
    done = CliRunner().invoke(main, TUNE)
    assert done.exit_code == 1
    assert done.output.splitlines()[-1] == "Error: no room for a pinned slab"


@pytest.mark.parametrize("wrong", ["to_host", "to_device"])
def test_a_way_that_moves_wrong_bytes_is_not_measured(
    monkeypatch: pytest.MonkeyPatch, wrong: Direction
) -> None:
    with open_bench("host", 64 << 10) as bench:
        ways = bench.ways(4096)
        move = bench.move(4096, 16)
        bench.check(ways, move)
        moved = getattr(ways["batch"], wrong)
        monkeypatch.setattr(ways["batch"], wrong, lambda b, r: moved(b, r[[1, 0, *range(2, 16)]]))
        with pytest.raises(GpupoolError, match=r"^batch: blocks of 4096 bytes arrived with other"):
            bench.check(ways, move)
