"""Tells the loader, which vLLM makes by itself, for which worker it loads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from gpupool.images.cache import ImageCache
from gpupool.model import Model


class Room:
    """Where weights are until they are in their model: here, in device memory beside the pool."""

    def begin(self) -> None:
        """Load there from now on."""

    def end(self) -> None:
        """What was loaded has moved."""


@dataclass(frozen=True)
class Destination:
    """Where a worker's weights go, and where images of them are."""

    model: Model
    cache: ImageCache
    room: Room
    until_loaded: ExitStack
    """Holds what the rest of vLLM's loading needs, as that the model is resident."""


_current: ContextVar[Destination | None] = ContextVar("gpupool_destination", default=None)


def current() -> Destination | None:
    """That of the worker that is loading its model on this thread, if one of gpupool's is."""
    return _current.get()


@contextmanager
def loading_into(model: Model, cache: ImageCache, room: Room) -> Iterator[None]:
    """For the length of a ``with`` block, in which vLLM loads; the model is out afterwards."""
    with ExitStack() as stack:
        token = _current.set(Destination(model, cache, room, stack))
        try:
            yield
        finally:
            _current.reset(token)
    model.swap_out()
