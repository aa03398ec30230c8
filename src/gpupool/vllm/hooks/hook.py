"""What is said of a place in vLLM, and of what gpupool does there."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Hook:
    """A name in a module, parameters it must take, and what must be said in it."""

    module: str
    name: str
    parameters: tuple[str, ...] = ()
    says: tuple[str, ...] = ()


def names_of(module: str, names: str, of: str = "") -> tuple[Hook, ...]:
    """Each of some names, between which are spaces, in a module or a class ``of`` it."""
    return tuple(Hook(module, f"{of}.{name}" if of else name) for name in names.split())


@dataclass(frozen=True)
class Need:
    """Something gpupool does, which one of some sets of hooks is enough for."""

    what: str
    forms: dict[str, tuple[Hook, ...]] = field(default_factory=dict)
    without: str = ""  # what is lost where there is none; empty: gpupool does not run
