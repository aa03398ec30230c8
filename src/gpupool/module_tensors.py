"""The tensors that a torch module has, by their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch

from gpupool.errors import UsageError


class Found(NamedTuple):
    """A tensor where a module has it."""

    name: str
    tensor: torch.Tensor
    is_parameter: bool


def own_tensors(module: torch.nn.Module) -> Iterator[Found]:
    """Parameters, buffers and plain tensor attributes; some are the same tensor."""
    for name, parameter in module.named_parameters(remove_duplicate=False):
        yield Found(name, parameter, True)
    for name, buffer in module.named_buffers(remove_duplicate=False):
        yield Found(name, buffer, False)
    for prefix, child in module.named_modules():
        for attribute, value in vars(child).items():
            if isinstance(value, torch.Tensor):
                yield Found(f"{prefix}.{attribute}", value, False)


def listed_tensors(module: torch.nn.Module) -> Iterator[Found]:
    """Those in attributes that are tuples or lists, or in tuples and lists within these.

    They may be tensors that the module has otherwise too.
    """
    for prefix, child in module.named_modules():
        for attribute, value in vars(child).items():
            yield from _within(f"{prefix}.{attribute}", value, frozenset())


def _within(name: str, value: object, around: frozenset[int]) -> Iterator[Found]:
    if not isinstance(value, tuple | list) or id(value) in around:
        return
    for index, each in enumerate(value):
        if isinstance(each, torch.Tensor):
            yield Found(f"{name}[{index}]", each, False)
        else:
            yield from _within(f"{name}[{index}]", each, around | {id(value)})


def tensors_with_memory(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """What of ``own_tensors`` has memory. Raises UsageError for one that cannot be moved."""
    for name, tensor, _ in own_tensors(module):
        if has_memory(name, tensor):
            yield name, tensor


def has_memory(name: str, tensor: torch.Tensor) -> bool:
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
    plain = torch.empty(0, dtype=torch.uint8, device="cpu")
    if address == 0 or not torch._has_compatible_shallow_copy_type(tensor, plain):
        raise UsageError(
            f"tensor {name!r} ({type(tensor).__name__} of {tensor.dtype}) is not dense memory of "
            "its own and cannot be moved: make it a plain tensor or keep it outside the module"
        )
    # Such a bit is not in the bytes, and exchanging the data drops it, or reads what is not there.
    if tensor.is_conj() or tensor.is_neg():
        raise UsageError(
            f"tensor {name!r} is a conjugate or a negative that torch computes when it is read: "
            "use resolve_conj().resolve_neg() of it or keep it outside the module"
        )
    return True
