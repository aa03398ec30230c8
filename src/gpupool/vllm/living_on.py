"""Tensors that live on in a region that is about to go: they get memory of their own."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch

from gpupool._core import Region
from gpupool.adopt import over


def move_out(region: Region, largest_bytes: int | None = None) -> int:
    """Move what tensors have in ``region`` to where torch allocates now; how many bytes.

    They stay the tensors they were, and those over one storage share what they get. A storage of
    more than ``largest_bytes`` stays where it is.
    """
    gc.collect()
    found: dict[int, dict[int, torch.Tensor]] = {}  # by storage
    for tensor in _tensors():
        if (storage := _storage(tensor)) is None:
            continue
        if region.address <= storage.data_ptr() < region.address + region.bytes:
            found.setdefault(storage._cdata, {})[id(tensor)] = tensor
    moved_bytes = 0
    while found:
        tensors = list(found.popitem()[1].values())
        storage = tensors[0].untyped_storage()
        if largest_bytes is not None and storage.nbytes() > largest_bytes:
            continue
        copy = storage.clone()
        for tensor in tensors:
            tensor.data = over(copy, tensor, tensor.storage_offset())
        moved_bytes += copy.nbytes()
    return moved_bytes


def _tensors() -> Iterator[torch.Tensor]:
    """All that Python knows, and what they are views of."""
    for each in gc.get_objects():
        if issubclass(type(each), torch.Tensor):
            yield each
            if (base := each._base) is not None:
                yield base


def _storage(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """None for one that has none of its own, or that is not made yet."""
    try:
        if tensor.layout != torch.strided or tensor.is_conj() or tensor.is_neg():
            return None
        storage = tensor.untyped_storage()
        storage.data_ptr()
    except (RuntimeError, ValueError, NotImplementedError):
        return None
    return storage
