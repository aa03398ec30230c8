"""Puts the KV cache that vLLM allocates into the pool, without vLLM's knowing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from gpupool.errors import UsageError
from gpupool.vllm.compat import kv_allocations


class KvInPool(TorchFunctionMode):  # type: ignore[misc]
    """Inside this context the allocations of the KV cache are parts of what ``take`` answers.

    vLLM makes each with a ``torch.zeros(bytes, dtype=torch.int8)``; every layer's cache is a view
    of one of them. Anything else is allocated as usual.
    """

    def __init__(self, kv_cache_config: Any, take: Callable[[int], torch.Tensor]) -> None:
        """``take(size_bytes)`` answers a zeroed tensor of that many bytes, and is asked once.

        Raises UsageError where it cannot be told what vLLM will allocate.
        """
        super().__init__()
        self._allocations, self._take = kv_allocations(kv_cache_config), take
        self._memory: torch.Tensor | None = None
        self._made = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        size = args[0] if len(args) == 1 else None
        if func is torch.zeros and isinstance(size, int) and kwargs.get("dtype") is torch.int8:
            return self._part(size)
        return func(*args, **kwargs)

    def _part(self, size: int) -> torch.Tensor:
        sizes = self._allocations.sizes
        if self._made == len(sizes) or sizes[self._made] != size:
            raise UsageError(
                f"this version of vLLM allocates its KV cache in an unknown way: {size} bytes "
                f"after {self._made} of {len(sizes)} allocations"
            )
        if self._memory is None:
            self._memory = self._take(self._allocations.total_bytes)
        begin = self._allocations.offsets[self._made]
        self._made += 1
        part = self._memory[begin : begin + size].view(torch.int8)
        # A storage of its own: vLLM counts from where that begins.
        return torch.from_dlpack(part)
