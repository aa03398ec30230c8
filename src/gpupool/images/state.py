"""What of a module's state is no tensor: plain Python attributes, which processing may change."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import torch

from gpupool.images.elsewhere import elsewhere
from gpupool.images.format import Made, Shape
from gpupool.images.slots import slots_of, type_name

# Beyond that an integer is taken for an address, which means nothing in another process.
_INTEGER_MAX = 1 << 32
# Of vLLM's layers, what computes with their weights, and how far down it is looked into.
_METHODS = frozenset({"impl", "quant_method", "scheme"})
_DEPTH = 3
_OWN = frozenset({"_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"})
Values = dict[str, dict[str, str]]


def made(module: torch.nn.Module) -> Made:
    """A module that has just been made, with no weights yet. Keeps nothing of it."""
    return Made(layouts(module), _values(module), elsewhere(module))


def shape_of(module: torch.nn.Module, before: Made | None = None) -> Shape:
    """A module whose weights are loaded and processed, and what it was ``before``.

    Without that it is taken to be as it was made.
    """
    before = before or made(module)
    values: Values = {}
    for name, now in _values(module).items():
        was = before.values.get(name, {})
        if differing := {leaf: text for leaf, text in now.items() if was.get(leaf) != text}:
            values[name] = differing
    nothing = {slot.name: slot.kind for slot in slots_of(module) if slot.tensor is None}
    return Shape(before.layouts, nothing, values, prints(module))


def emptied(module: torch.nn.Module, before: Made) -> str | None:
    """A parameter that had elements and has none now, by its name.

    What it held is then where no image reaches, as in the handle of a library.
    """
    for slot in slots_of(module):
        if slot.kind == "parameter" and slot.tensor is not None and slot.tensor.numel() == 0:
            was = before.layouts.get(slot.name, "")
            if was and was != slot.layout:
                return slot.name
    return None


def filled_elsewhere(module: torch.nn.Module, before: Made) -> str | None:
    """A tensor that no image has and that is not what it was, or new, or gone; where it is."""
    return differing(before.elsewhere, elsewhere(module))


def differing(before: dict[str, str], now: dict[str, str]) -> str | None:
    """The first name of which two mappings do not have the same."""
    return min((n for n in before | now if before.get(n) != now.get(n)), default=None)


def layouts(module: torch.nn.Module) -> dict[str, str]:
    """Of each tensor, and which are one."""
    first: dict[int, str] = {}
    found: dict[str, str] = {}
    for slot in slots_of(module):
        found[slot.name] = slot.layout
        if slot.tensor is not None and first.setdefault(id(slot.tensor), slot.name) != slot.name:
            found[slot.name] += f", the same as {first[id(slot.tensor)]}"
    return found


def prints(module: torch.nn.Module) -> dict[str, str]:
    """For each submodule a digest of its class and its attributes' names, types and plain values.

    What is neither plain nor a list or tuple of plain values counts by its type alone; objects that
    compute with the weights also by the types of what they have.
    """
    found: dict[str, str] = {}
    for name, child in module.named_modules(remove_duplicate=False):
        seen = [
            (leaf, type_name(value), _inner(value, _DEPTH) if leaf in _METHODS else _text(value))
            for leaf, value in vars(child).items()
            if leaf not in _OWN and not isinstance(value, torch.Tensor)
        ]
        text = repr((type_name(child), sorted(seen)))
        found[name] = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
    return found


def put(module: torch.nn.Module, values: Values) -> Callable[[], None]:
    """Set plain attributes of submodules; returns what undoes it.

    Raises KeyError, before anything is set, if there is no such submodule.
    """
    children = dict(module.named_modules(remove_duplicate=False))
    jobs = [
        (children[name].__dict__, leaf, json.loads(text))
        for name, leaves in values.items()
        for leaf, text in leaves.items()
    ]
    before = [(home, leaf, leaf in home, home.get(leaf)) for home, leaf, _ in jobs]
    for home, leaf, value in jobs:
        home[leaf] = value

    def undo() -> None:
        for home, leaf, was_there, value in before:
            home.pop(leaf, None)
            if was_there:
                home[leaf] = value

    return undo


def plain(values: dict[str, object]) -> dict[str, str]:
    """Those that are plain, as JSON in which a float is what it was, NaN among them."""
    return {name: json.dumps(value) for name, value in values.items() if _is_plain(value)}


def _is_plain(value: object) -> bool:
    if type(value) is int:
        return abs(value) <= _INTEGER_MAX
    return value is None or type(value) in (bool, float, str)


def _text(value: object) -> str:
    if _is_plain(value):
        return json.dumps(value)
    if type(value) in (list, tuple) and all(map(_is_plain, value)):  # type: ignore[call-overload]
        return json.dumps(value)
    return str(value) if isinstance(value, torch.dtype | torch.Size) else ""


def _inner(value: object, depth: int) -> object:
    """The types of what an object has: values and whatever is in them may be another run's own."""
    if depth == 0 or isinstance(value, torch.nn.Module | torch.Tensor | type):
        return ""
    leaves: dict[str, object] = getattr(value, "__dict__", {})
    return sorted((n, type_name(v), repr(_inner(v, depth - 1))) for n, v in leaves.items())


def _values(module: torch.nn.Module) -> Values:
    children = module.named_modules(remove_duplicate=False)
    return {
        name: plain({leaf: value for leaf, value in vars(child).items() if leaf not in _OWN})
        for name, child in children
    }
