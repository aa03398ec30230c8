"""Classes of models: goals and a weight of their own, by the names of the models."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from msgspec import Meta, Struct

from gpupool.errors import UsageError
from gpupool.schedule.work import Goals
from gpupool.simulate.toml_file import Above, Name, read_toml

OTHERS = "others"
"""The class of models that are in none of those given."""


@dataclass(frozen=True, slots=True)
class ModelClass:
    """Models that have the same goals and weight."""

    name: str
    goals: Goals
    weight: float = 1.0
    patterns: tuple[str, ...] = ("*",)
    """Names of models; ``*``, ``?`` and ``[a-c]`` as in a shell."""

    def has(self, model: str) -> bool:
        """Whether one of the patterns is for this model."""
        return any(fnmatchcase(model, pattern) for pattern in self.patterns)


class _Class(Struct, frozen=True, forbid_unknown_fields=True):
    name: Name
    models: Annotated[list[Name], Meta(min_length=1)]
    ttft_s: Above | None = None
    tbt_s: Above | None = None
    weight: Annotated[float, Meta(ge=1e-3, le=1e3)] = 1.0


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    classes: Annotated[list[_Class], Meta(min_length=1)]


def load_classes(path: Path, goals: Goals) -> list[ModelClass]:
    """Classes of a TOML file; what one does not say of its goals is as in ``goals``.

    Raises UsageError, with one sentence, and OSError.
    """
    found: list[ModelClass] = []
    for of in read_toml(path, _File).classes:
        if of.name in (OTHERS, *(before.name for before in found)):
            raise UsageError(f"{path}: two classes are named {of.name}; choose another name")
        own = Goals(of.ttft_s or goals.ttft_s, of.tbt_s or goals.tbt_s)
        found.append(ModelClass(of.name, own, of.weight, tuple(of.models)))
    return found


def classes_of(
    models: Iterable[str], classes: Sequence[ModelClass], goals: Goals
) -> dict[str, ModelClass]:
    """The class of each model: the first that has it, else one of all others, with ``goals``.

    In order of the classes. Raises UsageError where a class has no model.
    """
    everything = [*classes, ModelClass(OTHERS, goals)]
    found = {model: next(of for of in everything if of.has(model)) for model in models}
    for of in classes:
        if of not in found.values():
            raise UsageError(
                f"the class {of.name} has no model of the trace: none is named"
                f" {' or '.join(of.patterns)}, or an earlier class has it; the first is"
                f" {next(iter(found))}"
            )
    return {model: of for of in everything for model, own in found.items() if own is of}
