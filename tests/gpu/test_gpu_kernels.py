"""The kernels on a GPU, at the sizes of real KV caches: tests/kernels has the rest."""

from __future__ import annotations

import random
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

from gpupool import Pool, _core
from gpupool.kernels.layout import BlockLayout
from gpupool.pool import MIB

if TYPE_CHECKING:
    from torch import Tensor

DEVICE = "cuda"
BLOCKS = 200
GIB = 1 << 30
MARGIN = 4096


def layers(page: int, count: int, blocks: int = BLOCKS) -> BlockLayout:
    """A tensor for each layer."""
    return BlockLayout.of([(i * blocks * page, page, page) for i in range(count)], blocks)


def one_buffer(pages: list[int], blocks: int = BLOCKS) -> BlockLayout:
    """All layers of a block beside each other."""
    return BlockLayout.of(
        [(sum(pages[:i]), sum(pages), page) for i, page in enumerate(pages)], blocks
    )


LAYOUTS = {
    "8 heads of 128, 32 layers": layers(16 * 8 * 128 * 2 * 2, 32),
    "keys and values apart": layers(16 * 8 * 128 * 2, 64),
    "one buffer": one_buffer([16 * 8 * 128 * 2 * 2] * 32),
    "a latent vector": layers(64 * 576 * 2, 61),
    "unequal pages": one_buffer([65536, 65536, 8448, 132]),
    "no multiple of 16": layers(4100, 7),
    "odd": layers(4099, 7),
}


@pytest.fixture
def world(torch: ModuleType, request: pytest.FixtureRequest) -> World:
    if DEVICE == "cuda":
        request.getfixturevalue("triton")
    return World(torch, request.param)


class World:
    """Random blocks with a margin around them."""

    def __init__(self, torch: ModuleType, layout: BlockLayout) -> None:
        from gpupool.kernels.move import BlockMover

        self.torch = torch
        self.layout = layout
        self.whole = self.random_bytes(layout.extent_bytes + 2 * MARGIN)
        self.blocks = self.whole[MARGIN:-MARGIN]
        self.mover = BlockMover(layout, self.blocks)

    def random_bytes(self, count: int) -> Tensor:
        return self.torch.randint(0, 256, (count,), dtype=self.torch.uint8, device=DEVICE)

    def slab(self, count: int, pinned: bool) -> tuple[Tensor, Tensor]:
        """Rows full of a canary, with a margin, and all of it."""
        size = count * self.layout.row_bytes
        where = {"pin_memory": True} if pinned else {"device": DEVICE}
        whole = self.torch.full((size + 2 * MARGIN,), 0xEE, dtype=self.torch.uint8, **where)
        return whole[MARGIN : MARGIN + size], whole

    def wait(self) -> None:
        if DEVICE == "cuda":
            self.torch.cuda.synchronize()


def lists_of_blocks() -> list[list[int]]:
    order = random.Random(1).sample(range(BLOCKS), BLOCKS)
    return [[], [BLOCKS - 1], order[: BLOCKS // 3], order]


every_layout = pytest.mark.parametrize("world", LAYOUTS.values(), ids=LAYOUTS, indirect=True)


@every_layout
@pytest.mark.parametrize("pinned", [False, True], ids=["device", "pinned"])
def test_there_and_back(world: World, pinned: bool) -> None:
    """Blocks into rows, the blocks overwritten, and the rows back into them."""
    from gpupool.kernels import reference

    torch = world.torch
    before = world.whole.clone()
    for blocks in lists_of_blocks():
        rows, around = world.slab(len(blocks), pinned)
        expected = around.clone()
        expected[MARGIN : MARGIN + len(rows)] = reference.gather(
            world.blocks, world.layout, blocks
        ).flatten()
        world.mover.gather(blocks, rows)
        world.wait()
        assert torch.equal(around, expected)
        assert torch.equal(world.whole, before)
        noise = world.random_bytes(len(rows)).view(len(blocks), world.layout.row_bytes)
        reference.scatter(world.blocks, world.layout, blocks, noise)
        world.mover.scatter(blocks, rows)
        world.wait()
        assert torch.equal(world.whole, before)
        assert torch.equal(around, expected)


@every_layout
def test_rows_anywhere_in_pinned_memory(world: World) -> None:
    from gpupool.kernels import reference
    from gpupool.kernels.memory import RowsAt

    torch = world.torch
    blocks = lists_of_blocks()[2]
    rows, _ = world.slab(2 * len(blocks), pinned=DEVICE == "cuda")
    table = rows.view(-1, world.layout.row_bytes)
    places = random.Random(2).sample(range(len(table)), len(blocks))
    expected = table.clone()
    expected[places] = reference.gather(world.blocks, world.layout, blocks).to("cpu")
    world.mover.gather(blocks, RowsAt([table[place].data_ptr() for place in places]))
    world.wait()
    assert torch.equal(table, expected)


@every_layout
def test_copies(world: World) -> None:
    from gpupool.kernels import reference

    torch = world.torch
    order = lists_of_blocks()[-1]
    targets = order[: BLOCKS // 2]
    sources = [random.Random(3).choice(order[BLOCKS // 2 :]) for _ in targets]
    expected = world.whole.clone()
    reference.copy(expected[MARGIN:-MARGIN], world.layout, sources, targets)
    world.mover.copy(sources, targets)
    world.wait()
    assert torch.equal(world.whole, expected)


@pytest.mark.parametrize("world", [layers(65536, 4)], ids=[""], indirect=True)
def test_moves_follow_their_stream(world: World) -> None:
    """What was queued before on the same stream is seen, what is queued after waits."""
    torch = world.torch
    rows, _ = world.slab(BLOCKS, pinned=False)
    if DEVICE != "cuda":
        pytest.skip("the CPU has no streams")
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for value in range(20):
            world.blocks.fill_(value)
            world.mover.gather(range(BLOCKS), rows)
            assert bool((rows == value).all())


@pytest.mark.parametrize("world", [layers(65536, 4)], ids=[""], indirect=True)
def test_no_move_waits_for_a_compiler(
    world: World, triton: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[str] = []

    def note(*, repr: str, **_: object) -> None:
        compiled.append(repr)

    rows, _ = world.slab(BLOCKS, pinned=False)
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", note)
    for count in (1, 15, 16, BLOCKS):
        world.mover.gather(range(count), rows)
        world.mover.scatter(range(count), rows)
    world.mover.copy([0], [1])
    world.mover.copy(range(16), range(16, 32))
    assert compiled == []


@pytest.mark.parametrize("programs", [1, 16])
def test_few_programs_move_all(torch: ModuleType, triton: ModuleType, programs: int) -> None:
    from gpupool.kernels import reference
    from gpupool.kernels.move import BlockMover

    world = World(torch, layers(65536, 4))
    mover = BlockMover(world.layout, world.blocks, programs=programs)
    rows, _ = world.slab(BLOCKS, pinned=True)
    mover.gather(range(BLOCKS), rows)
    world.wait()
    expected = reference.gather(world.blocks, world.layout, list(range(BLOCKS)))
    assert torch.equal(rows, expected.flatten().to("cpu"))


def test_offsets_beyond_32_bits(torch: ModuleType, triton: ModuleType) -> None:
    from gpupool.kernels.move import BlockMover

    stride = 3 * GIB + 16
    layout = BlockLayout.of([(5, stride, 100), (4096, stride, 65536)], 3)
    if torch.cuda.mem_get_info()[0] < layout.extent_bytes + GIB:
        pytest.skip(f"needs {layout.extent_bytes + GIB} free bytes")
    memory = torch.zeros(layout.extent_bytes, dtype=torch.uint8, device=DEVICE)
    rows = torch.randint(1, 256, (2, layout.row_bytes), dtype=torch.uint8, device=DEVICE)
    mover = BlockMover(layout, memory)
    mover.scatter([2, 1], rows)
    # By parts: as many bools are made as there are bytes.
    parts = memory.split(GIB // 4)
    assert sum(int(torch.count_nonzero(part)) for part in parts) == rows.numel()
    back = torch.empty_like(rows)
    mover.gather([2, 1], back)
    assert torch.equal(back, rows)


def test_blocks_in_a_region_and_rows_in_pinned_slabs(
    pool: Pool, torch: ModuleType, triton: ModuleType
) -> None:
    """The memory that gpupool itself maps and pins."""
    from gpupool.kernels.memory import RowsAt
    from gpupool.kernels.move import BlockMover

    layout = layers(32768, 8, blocks=64)
    model = pool.model("a")
    region = model.region("kv_cache", layout.extent_bytes)
    slabs = pool.slabs([layout.row_bytes], pinned=True)
    handles = [slabs.allocate(layout.row_bytes) for _ in range(20)]
    places = RowsAt([slabs.address_of(handle) for handle in handles])
    blocks = random.Random(4).sample(range(64), 20)
    with model.resident():
        memory = torch.from_dlpack(region)
        memory.random_()
        kept = memory.clone()
        mover = BlockMover(layout, (region.address, region.bytes), device=memory.device)
        mover.gather(blocks, places)
        for piece in layout.pieces:
            for block in blocks:
                begin = piece.offset + block * piece.stride
                memory[begin : begin + piece.bytes] = 0
        assert not torch.equal(memory, kept)
        mover.scatter(blocks, places)
        assert torch.equal(memory, kept)


@pytest.mark.parametrize("size", [0, 7, 4096, 2 * MIB, 32 * MIB, 32 * MIB + 13])
@pytest.mark.parametrize("offset", [0, 4, 8, 1])
def test_digests_are_the_cores(
    torch: ModuleType, triton: ModuleType, size: int, offset: int
) -> None:
    from gpupool.kernels.digest import digest_runs, unsigned

    memory = torch.randint(0, 256, (3 * size + 64,), dtype=torch.uint8, device=DEVICE)
    runs: list[Any] = [memory[i * size + offset : (i + 1) * size + offset] for i in range(3)]
    firsts = [0, 1 << 40, (1 << 64) - 5]
    found = unsigned(digest_runs(runs, DEVICE, first_words=firsts))
    assert found == [
        _core.digest(run.cpu().numpy(), first) for run, first in zip(runs, firsts, strict=True)
    ]
