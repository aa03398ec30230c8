"""Makes of a module that was just made what a file of images says it became."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from gpupool.adopt import OWNER, Move, moving
from gpupool.errors import UsageError
from gpupool.images import slots, state
from gpupool.images.format import Manifest, Place
from gpupool.images.slots import Slot
from gpupool.model import Model

_PARAMETER = slots.type_name(torch.nn.Parameter(torch.empty(0), requires_grad=False))
_TENSOR = slots.type_name(torch.empty(0))
# What can be made anew; of others the module must have one of the same layout.
_PLAIN = {"parameter": _PARAMETER, "buffer": _TENSOR, "volatile": _TENSOR, "attribute": _TENSOR}
Undo = list[Callable[[], None]]


def check_made_alike(path: Path, module: torch.nn.Module, manifest: Manifest) -> None:
    """Raises UsageError unless the module is as the file's was before its weights were loaded."""
    known = state.layouts(module)
    if (name := state.differing(manifest.shape.made, known)) is not None:
        there, here = manifest.shape.made.get(name, "nothing"), known.get(name, "nothing")
        raise UsageError(
            f"{path} is of another module: tensor {name!r} is not as it has it: {there}, not {here}"
        )


def restore(
    path: Path,
    module: torch.nn.Module,
    model: Model,
    manifest: Manifest,
    memory: Sequence[torch.UntypedStorage],
) -> None:
    """Put the module's tensors over ``memory``, the parts of the file, and set its plain values.

    Tensors stay the objects they were where they are as the file has them; others are made,
    removed or exchanged, with ties as they were. Raises UsageError if something cannot be made;
    the module is as before then, as after any error.
    """
    with _undone_on_error() as undo, moving(model) as move:
        try:
            _Restoring(module, manifest, memory, undo, move).run()
            undo.append(state.put(module, manifest.shape.values))
        except (KeyError, ValueError) as error:
            raise UsageError(f"{path} is of another module: {error}") from None


class _Restoring:
    def __init__(
        self,
        module: torch.nn.Module,
        manifest: Manifest,
        memory: Sequence[torch.UntypedStorage],
        undo: Undo,
        move: Move,
    ) -> None:
        self._modules = dict(module.named_modules(remove_duplicate=False))
        self._slots = {slot.name: slot for slot in slots.slots_of(module)}
        self._manifest = manifest
        self._memory = memory
        self._undo = undo
        self._move = move
        self._used: set[int] = set()

    def run(self) -> None:
        manifest = self._manifest
        alike: dict[str, list[Place]] = {}
        for place in manifest.places:
            alike.setdefault(place.same_as, []).append(place)
        made = {name: self._made(places) for name, places in alike.items()}
        for place in manifest.places:
            tensor = made[place.same_as]
            slot = self._slots.pop(place.name, None)
            if slot is None or slot.tensor is not tensor or slot.kind != place.kind:
                self._fill(place.name, place.kind, tensor)
        for name, kind in manifest.shape.nothing.items():
            slot = self._slots.pop(name, None)
            if slot is None or slot.tensor is not None or slot.kind != kind:
                self._fill(name, kind, None)
        for slot in self._slots.values():  # what processing took away
            self._undo.append(slots.vacate(slot.module, slot.leaf))

    def _fill(self, name: str, kind: str, tensor: torch.Tensor | None) -> None:
        prefix, _, leaf = name.rpartition(".")
        if prefix not in self._modules or kind not in slots.KINDS:
            raise ValueError(f"it has {name!r}")
        self._undo.append(slots.fill(self._modules[prefix], leaf, kind, tensor))

    def _made(self, places: list[Place]) -> torch.Tensor:
        """The one tensor that is in all these places."""
        here = [(self._slots[p.name], p) for p in places if p.name in self._slots]
        found = [slot.tensor for slot, place in here if self._is_alike(slot, place)]
        olds = [slot.tensor for slot, _ in here if slot.tensor is not None]
        place = places[0]
        if found and found[0] is not None:
            tensor = found[0]
            if place.part >= 0:
                self._move(tensor, over_place(self._memory, place))
        elif place.type == _PLAIN.get(place.kind):
            tensor = over_place(self._memory, place)
            if place.kind == "parameter":
                tensor = torch.nn.Parameter(tensor, requires_grad=False)
            self._move(tensor, tensor.data)
        else:
            raise ValueError(f"tensor {place.name!r} is a {place.type}, which cannot be made")
        self._used.add(id(tensor))
        for name, text in place.values.items():
            self._set(tensor, name, json.loads(text))
        for name in place.others:
            having = [old for old in (tensor, *olds) if hasattr(old, name)]
            if not having:
                raise ValueError(f"tensor {place.name!r} has an attribute {name!r}")
            if having[0] is not tensor:
                self._set(tensor, name, getattr(having[0], name))
        return tensor

    def _set(self, tensor: torch.Tensor, name: str, value: object) -> None:
        home = tensor.__dict__
        was_there, before = name in home, home.get(name)

        def undo() -> None:
            home.pop(name, None)
            if was_there:
                home[name] = before

        self._undo.append(undo)
        home[name] = value

    def _is_alike(self, slot: Slot, place: Place) -> bool:
        """Whether the slot's tensor need not be another object."""
        if (tensor := slot.tensor) is None:
            return False
        is_so = (slots.type_name(tensor), slots.dtype_name(tensor), list(tensor.shape))
        return (
            slot.kind == place.kind
            and id(tensor) not in self._used
            and is_so == (place.type, place.dtype, place.shape)
            and list(tensor.stride()) == place.stride
        )


def over_place(memory: Sequence[torch.UntypedStorage], place: Place) -> torch.Tensor:
    """A tensor as the place has it, over its part."""
    device = memory[0].device if memory else torch.device("cpu")
    tensor = torch.empty(0, dtype=getattr(torch, place.dtype), device=device)
    if place.part < 0:
        return tensor.new_empty(place.shape)
    offset = place.offset // place.item_bytes
    return tensor.set_(memory[place.part], offset, place.shape, place.stride)


def attributes_of(tensor: torch.Tensor) -> tuple[dict[str, str], list[str]]:
    """Those that are plain, as JSON, and the names of the others."""
    found = {name: value for name, value in tensor.__dict__.items() if name != OWNER}
    values = state.plain(found)
    return values, sorted(found.keys() - values.keys())


@contextmanager
def _undone_on_error() -> Iterator[Undo]:
    undo: Undo = []
    try:
        yield undo
    except BaseException:
        for one in reversed(undo):
            one()
        raise
