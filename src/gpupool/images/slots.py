"""The tensors of a module by their places in it: parameters, buffers and plain attributes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

KINDS = ("parameter", "buffer", "volatile", "attribute")


@dataclass(frozen=True)
class Slot:
    """Where a module has a tensor, or None for a parameter or buffer that it does without."""

    name: str
    module: torch.nn.Module
    leaf: str
    kind: str
    tensor: torch.Tensor | None

    @property
    def layout(self) -> str:
        """Kind, type, and what its memory would have to be like, in words."""
        if self.tensor is None:
            return f"{self.kind}: none"
        tensor = self.tensor
        return (
            f"{self.kind}: {type_name(tensor)} of {dtype_name(tensor)},"
            f" {list(tensor.shape)} by {list(tensor.stride())}"
        )


def slots_of(module: torch.nn.Module) -> Iterator[Slot]:
    """All of them, those of submodules that have several names by each, in a fixed order.

    The names are those of ``gpupool.adopt``: a plain attribute of the root begins with a dot.
    """
    for prefix, child in module.named_modules(remove_duplicate=False):
        dotted = f"{prefix}." if prefix else ""
        for leaf, parameter in child._parameters.items():
            yield Slot(dotted + leaf, child, leaf, "parameter", parameter)
        for leaf, buffer in child._buffers.items():
            kind = "volatile" if leaf in child._non_persistent_buffers_set else "buffer"
            yield Slot(dotted + leaf, child, leaf, kind, buffer)
        for leaf, value in list(vars(child).items()):
            if isinstance(value, torch.Tensor):
                yield Slot(f"{prefix}.{leaf}", child, leaf, "attribute", value)


def fill(
    module: torch.nn.Module, leaf: str, kind: str, tensor: torch.Tensor | None
) -> Callable[[], None]:
    """Give the module that tensor under that name; returns what undoes it."""
    undo = vacate(module, leaf)
    if kind == "parameter":
        module._parameters[leaf] = tensor
    elif kind == "attribute":
        module.__dict__[leaf] = tensor
    else:
        module._buffers[leaf] = tensor
        if kind == "volatile":
            module._non_persistent_buffers_set.add(leaf)
    return undo


def vacate(module: torch.nn.Module, leaf: str) -> Callable[[], None]:
    """Take what a module has under that name, if anything, from it; returns what undoes it."""
    homes = (module._parameters, module._buffers, module.__dict__)
    before = [dict(home) for home in homes[:2]]
    held = leaf in homes[2]
    value = homes[2].get(leaf)
    volatile = leaf in module._non_persistent_buffers_set
    for home in homes:
        home.pop(leaf, None)
    module._non_persistent_buffers_set.discard(leaf)

    def undo() -> None:
        for home, content in zip(homes[:2], before, strict=True):
            home.clear()
            home.update(content)
        homes[2].pop(leaf, None)
        if held:
            homes[2][leaf] = value
        (
            module._non_persistent_buffers_set.add
            if volatile
            else module._non_persistent_buffers_set.discard
        )(leaf)

    return undo


def type_name(value: object) -> str:
    """With its module, as types of one name are many."""
    return f"{type(value).__module__}.{type(value).__qualname__}"


def dtype_name(tensor: torch.Tensor) -> str:
    """Without torch's own name in front."""
    return str(tensor.dtype).removeprefix("torch.")
