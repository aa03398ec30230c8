"""Puts the KV cache that vLLM allocates into the pool, without vLLM's knowing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class KvInPool(TorchFunctionMode):  # type: ignore[misc]
    """Inside this context the backing allocation of the KV cache comes from ``take``.

    vLLM makes it with one ``torch.zeros(bytes, dtype=torch.int8)``; every layer's cache is a view
    of it. Anything else is allocated as usual.
    """

    def __init__(self, take: Callable[[int], torch.Tensor]) -> None:
        """``take(size_bytes)`` answers a zeroed tensor of that many bytes."""
        super().__init__()
        self._take = take

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        size = args[0] if len(args) == 1 else None
        if func is torch.zeros and isinstance(size, int) and kwargs.get("dtype") is torch.int8:
            return self._take(size).view(torch.int8)
        return func(*args, **kwargs)
