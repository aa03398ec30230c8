"""The copies that swaps are held against."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch


def plain_copies(device: str, source: torch.Tensor) -> dict[str, Callable[[], None]]:
    """Ways of copying all of ``source``, by what they are called.

    To a GPU from pinned memory; on the host by 1 thread and by as many as there are processors.
    """
    if device != "host":
        pinned = source.pin_memory()
        target = torch.empty_like(pinned, device=device)

        def copy() -> None:
            target.copy_(pinned, non_blocking=True)
            torch.cuda.synchronize(device)

        return {"pinned_copy": copy}
    size_bytes = source.numel()
    # As the pool's memory is, where the system gives huge pages.
    memory = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    buffer = torch.frombuffer(memory, dtype=torch.uint8)

    def by(threads: int) -> Callable[[], None]:
        executor = ThreadPoolExecutor(threads)
        share = -(-size_bytes // threads)

        def part(index: int) -> None:
            at = index * share
            # The interpreter's lock is let go meanwhile.
            ctypes.memmove(
                buffer.data_ptr() + at, source.data_ptr() + at, min(share, size_bytes - at)
            )

        def copy() -> None:
            list(executor.map(part, range(threads)))

        return copy

    return {f"memcpy_{n}_threads": by(n) for n in sorted({1, os.cpu_count() or 1})}
