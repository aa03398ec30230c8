"""How vLLM allocates its KV cache, and where each block lies in it.

vLLM 0.32 makes one allocation, and each tensor of the configuration names the layers in it with
their strides. 0.26 makes one for each tensor, which layers of several groups share, save where
tensors have a block stride: these are all in one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from gpupool.errors import UsageError
from gpupool.kernels.layout import BlockLayout

# torch's own allocations on CUDA are, and kernels may rely on it.
ALIGNMENT_BYTES = 512
# No size of anything else in the shape of a cache.
_MARK = 1_000_003


@dataclass(frozen=True)
class KvAllocations:
    """The allocations that vLLM makes, in order, and where each of them goes in one region."""

    sizes: tuple[int, ...]

    @property
    def offsets(self) -> tuple[int, ...]:
        """Where each begins."""
        aligned = (-(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES for size in self.sizes)
        return (0, *accumulate(aligned))[: len(self.sizes)]

    @property
    def total_bytes(self) -> int:
        """What the region needs."""
        return self.offsets[-1] + self.sizes[-1] if self.sizes else 0


def kv_allocations(kv_cache_config: Any) -> KvAllocations:
    """What vLLM will allocate. Raises UsageError where it cannot be told."""
    tensors = kv_cache_config.kv_cache_tensors
    if all(_has_layers(tensor) for tensor in tensors):
        sizes = {tensor.size for tensor in tensors}
        if len(sizes) > 1:
            raise UsageError("an engine with more than one KV allocation cannot be pooled")
        return KvAllocations(tuple(sizes))
    return KvAllocations(tuple(tensor.size for tensor in _allocated(tensors)))


def _has_layers(tensor: Any) -> bool:
    return hasattr(tensor, "layers")


def _allocated(tensors: list[Any]) -> list[Any]:
    """Those of an older vLLM for which it allocates something: of packed ones the first alone."""
    packed = next((tensor for tensor in tensors if tensor.block_stride > 0), None)
    return [tensor for tensor in tensors if tensor.block_stride == 0 or tensor is packed]


def block_layout(
    kv_cache_config: Any, size_bytes: int, static_forward_context: Any = None
) -> tuple[BlockLayout, str] | None:
    """Where block b of the KV cache lies in ``size_bytes`` of memory, and the dtype of its values.

    None where not all of the state is in blocks of tokens that are written once (Mamba and linear
    attention, rings, an encoder's, sinks), where a hit may be computed anew, or where the pieces
    that vLLM tells of are not all there is of a block, as with heads outside of blocks. An older
    vLLM does not tell how a layer's attention lays its blocks out: its layers are asked.
    """
    specs = _plain_specs(kv_cache_config)
    tensors = kv_cache_config.kv_cache_tensors
    if specs is None:
        return None
    pieces: list[tuple[int, int, int]] | None
    if all(_has_layers(tensor) for tensor in tensors):
        pieces = _pieces(tensors, specs)
    else:
        pieces = _older_pieces(kv_cache_config, specs, static_forward_context or {})
    if not pieces:
        return None
    try:
        # Groups of layers lie over each other: a block belongs to one of them at a time.
        layout = BlockLayout.merged(pieces, kv_cache_config.num_blocks)
    except UsageError:
        return None
    allocations = kv_allocations(kv_cache_config)
    used_bytes = sum(allocations.sizes)
    if allocations.total_bytes != size_bytes or layout.extent_bytes != size_bytes:
        return None
    if layout.row_bytes * layout.blocks != used_bytes:
        return None
    dtypes = {str(spec.dtype).removeprefix("torch.") for spec in specs.values()}
    return layout, "+".join(sorted(dtypes))


def _plain_specs(kv_cache_config: Any) -> dict[str, Any] | None:
    """The spec of every layer, if each is of blocks of tokens that are written once."""
    from vllm.v1.kv_cache_interface import (
        ChunkedLocalAttentionSpec,
        FullAttentionSpec,
        MLAAttentionSpec,
        SlidingWindowSpec,
        UniformTypeKVCacheSpecs,
    )

    # Not their subclasses: each of these has rules of its own for what a step writes.
    plain = (FullAttentionSpec, MLAAttentionSpec, SlidingWindowSpec, ChunkedLocalAttentionSpec)
    specs: dict[str, Any] = {}
    for group in kv_cache_config.kv_cache_groups:
        spec = group.kv_cache_spec
        for layer in group.layer_names:
            uniform = isinstance(spec, UniformTypeKVCacheSpecs)
            specs[layer] = spec.kv_cache_specs[layer] if uniform else spec
    found: dict[str, Any] = {}
    for tensor in kv_cache_config.kv_cache_tensors:
        for layer in tensor.layers if _has_layers(tensor) else tensor.shared_by:
            spec = specs.get(layer)
            if spec is None or type(spec) not in plain:
                return None
            if getattr(spec, "prefix_replay_tokens", 0) > 0:
                return None
            found[layer] = spec
    return found


def _pieces(tensors: list[Any], specs: dict[str, Any]) -> list[tuple[int, int, int]]:
    return [
        (
            tensor.offset + index * tensor.layer_stride,
            tensor.block_stride,
            specs[layer].page_size_bytes,
        )
        for tensor in tensors
        for index, layer in enumerate(tensor.layers)
    ]


def _older_pieces(
    kv_cache_config: Any, specs: dict[str, Any], layers: Any
) -> list[tuple[int, int, int]] | None:
    tensors = kv_cache_config.kv_cache_tensors
    offsets = iter(kv_allocations(kv_cache_config).offsets)
    places = {id(tensor): next(offsets) for tensor in _allocated(tensors)}
    packed_at = [places[id(each)] for each in _allocated(tensors) if each.block_stride > 0]
    pieces: list[tuple[int, int, int]] = []
    for tensor in tensors:
        pages = {specs[layer].page_size_bytes for layer in tensor.shared_by}
        if len(pages) != 1 or not all(
            _blocks_come_first(layers.get(layer), specs[layer]) for layer in tensor.shared_by
        ):
            return None
        (page,) = pages
        if tensor.block_stride > 0:
            pieces.append((packed_at[0] + tensor.offset, tensor.block_stride, page))
        elif tensor.size == page * kv_cache_config.num_blocks:
            pieces.append((places[id(tensor)], page, page))
        else:
            return None
    return pieces


def _blocks_come_first(layer: Any, spec: Any) -> bool:
    """Whether a block of this layer is one piece, by what its attention says of its cache."""
    if layer is None:
        return False
    backend = layer.get_attn_backend()
    shape = backend.get_kv_cache_shape(_MARK, spec.block_size, spec.num_kv_heads, spec.head_size)
    try:
        order = backend.get_kv_cache_stride_order()
    except (AttributeError, NotImplementedError):
        order = tuple(range(len(shape)))
    return bool(shape.count(_MARK) == 1 and shape[order[0]] == _MARK)


def block_tokens(kv_cache_config: Any) -> list[int]:
    """Tokens in a block, per KV cache group."""
    return [int(group.kv_cache_spec.block_size) for group in kv_cache_config.kv_cache_groups]
