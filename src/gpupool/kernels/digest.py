"""The digest of the core (csrc/digest/digest.h) of runs of bytes on the device."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpupool.errors import UsageError
from gpupool.kernels import device as kernels
from gpupool.kernels.memory import Memory, check_reachable
from gpupool.kernels.move import default_programs, on_device, resolve, to_device

WORDS_AT_ONCE = 512
MOST_PROGRAMS = (1 << 31) - 1
_MASK = (1 << 64) - 1


def digest_runs(
    runs: Sequence[torch.Tensor | tuple[int, int]],
    device: torch.device | str,
    *,
    first_words: Sequence[int] | None = None,
    programs: int | None = None,
) -> torch.Tensor:
    """The digest of each run, contiguous tensors or (address, bytes), in one launch.

    ``first_words`` has, for each, the number of its first word in the run that it is a part of; 0
    for all if not given. The tensor is on the device, with the 64 bits of each digest as a signed
    number (``unsigned`` has them as the core has them), and is ready when the current stream is.
    Raises UsageError for what cannot be digested, and on the CPU without Triton's interpreter.
    """
    on = resolve(device)
    firsts = [0] * len(runs) if first_words is None else list(first_words)
    if len(firsts) != len(runs):
        raise UsageError(f"{len(runs)} runs need as many first words, not {len(firsts)}")
    table = []
    for run, first in zip(runs, firsts, strict=True):
        if isinstance(first, bool) or not isinstance(first, int) or not 0 <= first <= _MASK:
            raise UsageError(f"the first word {first!r} is not a number of 64 bits without a sign")
        check_reachable(run, on)
        memory = Memory.of(run)
        table.append((memory.address, memory.bytes, first - (first >> 63 << 64)))
    digests = torch.zeros(len(runs), dtype=torch.int64, device=on)
    if not runs:
        return digests
    # Runs share the programs evenly, and none has more than it has work for.
    longest = max(size for _, size, _ in table)
    most = default_programs(on) if programs is None else programs
    if most < 1:
        raise UsageError(f"{programs} programs digest nothing: use at least 1")
    if len(runs) > MOST_PROGRAMS:
        raise UsageError(f"{len(runs)} runs are too many for one launch")
    parts = max(1, min(most // len(runs), -(-longest // (8 * WORDS_AT_ONCE))))
    with on_device(on):
        kernels.digest[(len(runs) * parts,)](
            to_device(torch.tensor(table, dtype=torch.int64), on),
            digests,
            parts,
            words_at_once=WORDS_AT_ONCE,
        )
    return digests


def unsigned(digests: torch.Tensor) -> list[int]:
    """The digests as ``gpupool._core.digest`` returns them. Waits for the device."""
    return [number & _MASK for number in digests.tolist()]
