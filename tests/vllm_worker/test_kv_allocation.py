"""KV caches that vLLM allocates in several parts, as 0.26 does, in one region of the pool."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpupool.errors import UsageError

torch = pytest.importorskip("torch")
interface = pytest.importorskip("vllm.v1.kv_cache_interface")

from gpupool.vllm.compat import block_layout, kv_allocations  # noqa: E402
from gpupool.vllm.kv_allocation import KvInPool  # noqa: E402

BLOCK_TOKENS = 8  # so that not every size is a multiple of 512


@dataclass
class Tensor:
    """As KVCacheTensor of 0.26 has it."""

    size: int
    shared_by: list[str]
    offset: int = 0
    block_stride: int = 0


@dataclass
class Config:
    """As much of KVCacheConfig as is read."""

    num_blocks: int
    kv_cache_tensors: list[Tensor]
    kv_cache_groups: list[Any] = field(default_factory=list)


class Backend:
    """Blocks first, in the shape that attention kernels see, and in memory."""

    @staticmethod
    def get_kv_cache_shape(blocks: int, tokens: int, heads: int, size: int) -> tuple[int, ...]:
        return (blocks, heads, tokens, 2 * size)

    @staticmethod
    def get_kv_cache_stride_order() -> tuple[int, ...]:
        return (0, 2, 1, 3)


class KeysApart(Backend):
    """As on some platforms."""

    @staticmethod
    def get_kv_cache_shape(blocks: int, tokens: int, heads: int, size: int) -> tuple[int, ...]:
        return (2, blocks, heads, tokens, size)

    @staticmethod
    def get_kv_cache_stride_order() -> tuple[int, ...]:
        raise NotImplementedError


class HeadsOutside(Backend):
    @staticmethod
    def get_kv_cache_stride_order() -> tuple[int, ...]:
        return (1, 0, 2, 3)


class Layer:
    def __init__(self, backend: type[Backend]) -> None:
        self._backend = backend

    def get_attn_backend(self) -> type[Backend]:
        return self._backend


def spec(heads: int) -> Any:
    return interface.FullAttentionSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=heads, head_size=8, dtype=torch.float16
    )


def of_layers(heads: list[int], blocks: int) -> Config:
    """A tensor and a group for each layer."""
    specs = {f"l{index}": spec(each) for index, each in enumerate(heads)}
    tensors = [Tensor(each.page_size_bytes * blocks, [name]) for name, each in specs.items()]
    groups = [interface.KVCacheGroupSpec([name], each) for name, each in specs.items()]
    return Config(blocks, tensors, groups)


def packed(heads: list[int], blocks: int) -> Config:
    """All layers of a block beside each other, in one allocation."""
    config = of_layers(heads, blocks)
    pages = [tensor.size // blocks for tensor in config.kv_cache_tensors]
    for index, tensor in enumerate(config.kv_cache_tensors):
        tensor.size, tensor.block_stride = sum(pages) * blocks, sum(pages)
        tensor.offset = sum(pages[:index])
    return config


def layers(config: Config, backend: type[Backend] = Backend) -> dict[str, Layer]:
    return {name: Layer(backend) for each in config.kv_cache_tensors for name in each.shared_by}


def allocate(config: Config) -> dict[str, Any]:
    """As ``_allocate_kv_cache`` of 0.26 does it; the tensor of each layer."""
    found: dict[str, Any] = {}
    backing = None
    for tensor in config.kv_cache_tensors:
        if tensor.block_stride > 0:
            if backing is None:
                backing = torch.zeros(tensor.size, dtype=torch.int8, device="cpu")
            memory = backing
        else:
            memory = torch.zeros(tensor.size, dtype=torch.int8, device="cpu")
        for name in tensor.shared_by:
            found[name] = memory
    return found


class Taken:
    """What the pool gives, once."""

    def __init__(self) -> None:
        self.memory: Any = None

    def __call__(self, size_bytes: int) -> Any:
        assert self.memory is None
        self.memory = torch.zeros(size_bytes, dtype=torch.uint8)
        return self.memory


HEADS = st.lists(st.integers(1, 5), min_size=1, max_size=4)


@given(heads=HEADS, blocks=st.integers(1, 7), is_packed=st.booleans())
def test_every_block_is_where_the_layout_says(
    heads: list[int], blocks: int, is_packed: bool
) -> None:
    config = (packed if is_packed else of_layers)(heads, blocks)
    taken = Taken()
    with KvInPool(config, taken):
        found = allocate(config)
        other = torch.zeros(3, dtype=torch.int32)
        shaped = torch.zeros(2, 8, dtype=torch.int8)
    assert other.data_ptr() not in {each.data_ptr() for each in found.values()}
    assert shaped.shape == (2, 8)
    size_bytes = taken.memory.numel()
    assert size_bytes == kv_allocations(config).total_bytes
    answer = block_layout(config, size_bytes, layers(config))
    assert answer is not None
    layout, dtype = answer
    assert dtype == "float16" and layout.blocks == blocks
    for block in range(blocks):
        # What vLLM writes to this block of every layer is all of what the layout says is there.
        taken.memory.fill_(0)
        for tensor in config.kv_cache_tensors:
            (name,) = tensor.shared_by
            page = spec(heads[int(name[1:])]).page_size_bytes
            memory = found[name]
            assert memory.storage_offset() == 0 and memory.data_ptr() % 64 == 0
            if is_packed:
                row = memory.view(-1, tensor.block_stride)[block]
                row[tensor.offset : tensor.offset + page] = 1
            else:
                memory.view(-1, page)[block] = 1
        expected = torch.zeros_like(taken.memory)
        for piece in layout.pieces:
            begin = piece.offset + block * piece.stride
            assert not expected[begin : begin + piece.bytes].any()
            expected[begin : begin + piece.bytes] = 1
        assert torch.equal(taken.memory, expected)


@given(heads=HEADS, blocks=st.integers(1, 7))
def test_parts_begin_where_those_of_torch_may(heads: list[int], blocks: int) -> None:
    allocations = kv_allocations(of_layers(heads, blocks))
    ends = [at + size for at, size in zip(allocations.offsets, allocations.sizes, strict=True)]
    assert all(at % 512 == 0 for at in allocations.offsets)
    assert all(end <= at for end, at in zip(ends, allocations.offsets[1:], strict=False))
    assert allocations.total_bytes == ends[-1]


@pytest.mark.parametrize("backend", [KeysApart, HeadsOutside, None])
def test_what_is_not_in_blocks_is_not_taken_for_it(backend: type[Backend] | None) -> None:
    config = of_layers([2, 2], 8)
    size_bytes = kv_allocations(config).total_bytes
    assert block_layout(config, size_bytes, layers(config)) is not None
    known = {} if backend is None else layers(config, backend)
    assert block_layout(config, size_bytes, known) is None


def test_pages_of_several_sizes_in_one_tensor_are_saved_whole() -> None:
    config = of_layers([2, 4], 8)
    config.kv_cache_tensors = [Tensor(config.kv_cache_tensors[1].size, ["l0", "l1"])]
    size_bytes = kv_allocations(config).total_bytes
    assert block_layout(config, size_bytes, layers(config)) is None


def test_an_allocation_that_nobody_announced_is_refused() -> None:
    config = of_layers([1, 2], 4)
    sizes = kv_allocations(config).sizes
    with KvInPool(config, Taken()):
        with pytest.raises(UsageError, match="unknown way"):
            torch.zeros(sizes[1], dtype=torch.int8)  # out of turn
        for size in sizes:
            torch.zeros(size, dtype=torch.int8)
        with pytest.raises(UsageError, match="after 2 of 2"):
            torch.zeros(sizes[0], dtype=torch.int8)


def test_one_allocation_of_several_sizes_is_refused() -> None:
    tensors = [interface.KVCacheTensor(size, ["a"], 1, 1) for size in (64, 128)]
    with pytest.raises(UsageError, match="more than one KV allocation"):
        kv_allocations(Config(1, tensors))
