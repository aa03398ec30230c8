"""Damage that a bring-in finds, and whoever is told of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from gpupool.errors import DaemonUnavailableError, DamagedMemoryError
from gpupool.session import Session


@contextlib.contextmanager
def told(session: Session) -> Iterator[None]:
    """What a ``with`` block finds, while the model has the pages still on which it is."""
    try:
        yield
    except DamagedMemoryError as error:
        with contextlib.suppress(DaemonUnavailableError):
            session.damaged(str(error), error.pages)
        raise
