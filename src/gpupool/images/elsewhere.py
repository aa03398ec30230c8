"""Tensors that a module has where no slot is: in lists, dicts and helper objects of it."""

from __future__ import annotations

import types
from collections import deque
from collections.abc import Iterator, Mapping

import torch

from gpupool._core import digest
from gpupool.images.slots import dtype_name, slots_of, type_name

_DEPTH = 3  # of objects within objects; lists and dicts do not count
_OWN = frozenset({"_parameters", "_buffers", "_modules"})
_UNSEEN = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


def elsewhere(module: torch.nn.Module) -> dict[str, str]:
    """What each has, by where it is: kind of tensor and a digest of its content.

    No image has it. A tensor that has a slot as well is none of them.
    """
    slots = {id(slot.tensor) for slot in slots_of(module)}
    return {name: _content(tensor) for name, tensor in _found(module) if id(tensor) not in slots}


def _found(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Each once, by the shortest way to it."""
    seen = {id(child) for child in module.modules()}
    waiting = deque(
        (f"{prefix}.{leaf}", value, _DEPTH)
        for prefix, child in module.named_modules()
        for leaf, value in vars(child).items()
        if leaf not in _OWN and not isinstance(value, torch.Tensor)
    )
    while waiting:
        name, value, depth = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            yield name, value
            continue
        inner, is_object = _inner(value)
        if not is_object or depth > 0:
            waiting.extend((f"{name}{at}", each, depth - is_object) for at, each in inner)


def _inner(value: object) -> tuple[Iterator[tuple[str, object]], bool]:
    """What is in it, and whether it is an object and no container."""
    if isinstance(value, Mapping):
        return ((f"[{key!r:.80}]", value[key]) for key in list(value)), False
    if isinstance(value, list | tuple | set | frozenset | deque):
        return ((f"[{at}]", each) for at, each in enumerate(list(value))), False
    leaves = {} if isinstance(value, _UNSEEN) else dict(getattr(value, "__dict__", {}))
    return ((f".{leaf}", each) for leaf, each in leaves.items()), True


def _content(tensor: torch.Tensor) -> str:
    kind = f"{type_name(tensor)} of {dtype_name(tensor)}, {list(tensor.shape)} on {tensor.device}"
    if tensor.is_meta or tensor.numel() == 0:
        return kind
    plain = tensor.detach().as_subclass(torch.Tensor).cpu().resolve_conj().contiguous()
    return f"{kind}: {digest(plain.flatten().view(torch.uint8).numpy()):016x}"
