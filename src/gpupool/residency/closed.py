"""What a model has for its memory once it is closed."""

from __future__ import annotations

from typing import NoReturn, cast

from gpupool._core import ModelMemory
from gpupool.errors import UsageError


class _NoMemory:
    """Answers what is asked of any model, and refuses what would change it."""

    pages_needed = warm_pages = 0
    resident = False
    torn = False

    def __getattr__(self, name: str) -> NoReturn:
        raise UsageError("the model is closed")


NO_MEMORY = cast("ModelMemory", _NoMemory())
