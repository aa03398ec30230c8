"""Moves the tensors of a torch module into a model's regions, storage by storage.

Tensors stay the objects they were; aliases and views keep sharing; only what lies beneath moves.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from gpupool.errors import UsageError
from gpupool.model import Model

if TYPE_CHECKING:
    from gpupool._core import Region

ALIGNMENT_BYTES = 256
_OWNER = "_gpupool_owner"
_TAGS = ("weights", "runtime")


@dataclass
class _Storage:
    """One storage, the tensors found over it, and where it goes."""

    first_name: str
    tensors: list[torch.Tensor] = field(default_factory=list)
    only_parameters: bool = True
    offset: int = 0


@dataclass(frozen=True)
class Adopted:
    """What went where, in bytes."""

    weights_bytes: int
    runtime_bytes: int
    outside_bytes: int
    """Left alone, because something unknown also refers to them."""


def adopt(module: torch.nn.Module, model: Model) -> Adopted:
    """Move the module's tensors into ``model``, which must be out.

    Storages held by parameters alone go to a weights region, packed in the order of their names
    and aligned to 256 bytes; those of buffers and plain tensor attributes go to a runtime region.
    Their bytes go to the regions' host images; the next swap-in puts them in place, and until
    then no tensor of the module may be touched. A storage that something not found here refers to
    stays where it is. Raises UsageError if a tensor is in another model already or is of a kind
    that cannot be moved (sparse, quantized, nested, without memory), and what ``Model.region``
    raises; the module is as before then, and the model too.
    """
    outside_bytes = 0
    weights: list[_Storage] = []
    runtime: list[_Storage] = []
    for storage in _find(module):
        first = storage.tensors[0]
        owner = getattr(first, _OWNER, None)
        if owner is not None:
            raise UsageError(
                f"tensor {storage.first_name!r} is in the memory of model {owner!r} already: two "
                "models cannot share a tensor"
            )
        if _references(first) > len(storage.tensors):
            outside_bytes += first.untyped_storage().nbytes()
        elif storage.only_parameters:
            weights.append(storage)
        else:
            runtime.append(storage)
    sizes = _pack(weights), _pack(runtime)
    # Both regions first: if one is refused, no tensor has moved.
    adopted: list[tuple[Region, list[_Storage]]] = []
    moved: list[tuple[torch.Tensor, torch.Tensor]] = []  # each with what it was
    try:
        for tag, size_bytes, storages in zip(_TAGS, sizes, (weights, runtime), strict=True):
            if size_bytes > 0:
                adopted.append((model.region(tag, size_bytes), storages))
        for region, storages in adopted:
            _fill_image(region, storages)
            region.adopt_image()
        for region, storages in adopted:
            _rebind(storages, region, moved)
    except BaseException:
        for tensor, before in moved:
            if tensor.untyped_storage().data_ptr() != before.untyped_storage().data_ptr():
                tensor.data = before
        for region, _ in adopted:
            model.remove_region(region)
        raise
    for tensor, _ in moved:
        setattr(tensor, _OWNER, model.name)
    return Adopted(*sizes, outside_bytes)


def _find(module: torch.nn.Module) -> list[_Storage]:
    found: dict[int, _Storage] = {}
    seen: set[int] = set()
    for name, tensor, is_parameter in _tensors(module):
        if id(tensor) in seen or not _has_memory(name, tensor):
            continue
        seen.add(id(tensor))
        storage = found.setdefault(tensor.untyped_storage().data_ptr(), _Storage(name))
        storage.tensors.append(tensor)
        storage.only_parameters &= is_parameter
    return sorted(found.values(), key=lambda storage: storage.first_name)


def _has_memory(name: str, tensor: torch.Tensor) -> bool:
    """False for an empty or a meta tensor. Raises UsageError for one that cannot be moved."""
    if tensor.layout != torch.strided:
        raise UsageError(
            f"tensor {name!r} has the layout {tensor.layout}, which has no storage of its own "
            "to be moved: make it dense (to_dense) or keep it outside the module"
        )
    if tensor.is_meta:
        return False
    try:
        storage = tensor.untyped_storage()
        if storage.nbytes() == 0:
            return False
        address = storage.data_ptr()
    except (RuntimeError, ValueError):  # a wrapper of other tensors, or not initialized yet
        address = 0
    # What torch itself asks before it lets one tensor's data be replaced by another's.
    plain = torch.empty(0, dtype=torch.uint8)
    if address == 0 or not torch._has_compatible_shallow_copy_type(tensor, plain):
        raise UsageError(
            f"tensor {name!r} ({type(tensor).__name__} of {tensor.dtype}) is not dense memory of "
            "its own and cannot be moved: make it a plain tensor or keep it outside the module"
        )
    return True


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, bool]]:
    for name, parameter in module.named_parameters(remove_duplicate=False):
        yield name, parameter, True
    for name, buffer in module.named_buffers(remove_duplicate=False):
        yield name, buffer, False
    for prefix, child in module.named_modules():
        for attribute, value in vars(child).items():
            if isinstance(value, torch.Tensor):
                yield f"{prefix}.{attribute}", value, False


def _references(tensor: torch.Tensor) -> int:
    """How many tensors share the storage, known to us or not."""
    storage = tensor.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1  # one is `storage` itself


def _pack(storages: list[_Storage]) -> int:
    """Give each its offset; the size of the region they need."""
    end = 0
    for storage in storages:
        storage.offset = end
        size_bytes = storage.tensors[0].untyped_storage().nbytes()
        end += -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return end


def _rebind(
    storages: list[_Storage], region: Region, moved: list[tuple[torch.Tensor, torch.Tensor]]
) -> None:
    base = torch.from_dlpack(region)
    for storage in storages:
        for tensor in storage.tensors:
            typed = base.view(tensor.dtype)
            moved.append((tensor, tensor.data))
            tensor.data = typed.as_strided(
                tensor.size(),
                tensor.stride(),
                storage.offset // tensor.element_size() + tensor.storage_offset(),
            )


def _fill_image(region: Region, storages: list[_Storage]) -> None:
    image = torch.frombuffer(region.image(), dtype=torch.uint8)
    end = 0
    for storage in storages:
        source = storage.tensors[0].untyped_storage()
        flat = torch.empty(0, dtype=torch.uint8, device=source.device).set_(source)
        image[end : storage.offset].zero_()
        end = storage.offset + source.nbytes()
        image[storage.offset : end].copy_(flat)
    image[end:].zero_()
