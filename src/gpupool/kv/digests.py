"""Whether blocks come back as they were saved: of each a digest, by the device, both times.

At a save the device digests what it has, behind the copy to the host; at a restore it digests what
has arrived. So a byte that changed on the way, or on the host meanwhile, is seen before a step
reads it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpupool._core import Driver, RunDigester, Verify
from gpupool.errors import DamagedMemoryError
from gpupool.kernels.layout import BlockLayout
from gpupool.kv.blocks import NO_BLOCKS, BlockRuns, Blocks, Flags, Words
from gpupool.kv.states import MovedBytes
from gpupool.kv.store import KvIdentity, name_of

SAMPLED_ONE_IN = 16
_STEP = 0x9E3779B97F4A7C15  # odd, so that no change of one run can go unseen


@dataclass(frozen=True)
class Digesting:
    """Digests of blocks that are made behind a move of them."""

    number: int
    blocks: Blocks


class BlockDigests:
    """What the blocks of a device's KV cache should digest to. For use under a cache's lock.

    Of a block that comes back wrong a second copy is asked for; one that is wrong again is damaged,
    until it is forgotten or the memory comes anew.
    """

    def __init__(
        self, driver: Driver, layout: BlockLayout, base_address: int, verify: Verify
    ) -> None:
        """Of blocks of ``layout`` from ``base_address`` on, and of those that ``verify`` says."""
        self._verify = verify
        self._digester = None if verify is Verify.off else RunDigester(driver)
        self._runs = BlockRuns(layout, base_address)
        self._row_bytes = layout.row_bytes
        weights = [pow(_STEP, place + 1, 1 << 64) for place in range(len(layout.pieces))]
        self._weights: Words = np.array(weights, np.uint64)  # by which the order of runs counts
        self._saved: Words = np.zeros(layout.blocks, np.uint64)
        self._again: Flags = np.zeros(layout.blocks, np.bool_)
        self._damaged: Flags = np.zeros(layout.blocks, np.bool_)
        self._turn = 0

    @property
    def verifies(self) -> bool:
        """Whether it looks at any block."""
        return self._digester is not None

    def begin(self, blocks: Blocks, stream: int, *, to_device: bool) -> Digesting | None:
        """Digest blocks behind a move of them on that stream; None if none of them is looked at.

        Raises DriverError or OSError.
        """
        if self._digester is None:
            return None
        looked = blocks
        if to_device and self._verify is Verify.sample:
            is_due = (blocks + self._turn) % SAMPLED_ONE_IN == 0
            looked = blocks[is_due | self._again[blocks]]
        if len(looked) == 0:
            return None
        addresses, sizes = self._runs.of(looked)
        return Digesting(self._digester.enqueue(addresses.data, sizes.data, stream), looked)

    def saved(self, digesting: Digesting | None) -> None:
        """The blocks are on the host: so they must come back."""
        if digesting is not None:
            self._saved[digesting.blocks] = self._digests(digesting)

    def wrong(self, digesting: Digesting | None, arrived: Blocks, moved: MovedBytes) -> Blocks:
        """Which of the blocks that have arrived must be copied again, or are damaged."""
        if digesting is None:
            return NO_BLOCKS
        digests = self._digests(digesting)
        counts = np.isin(digesting.blocks, arrived)
        blocks = digesting.blocks[counts]
        is_right = digests[counts] == self._saved[blocks]
        right: Blocks = blocks[is_right]
        wrong: Blocks = blocks[~is_right]
        moved.verified += len(right) * self._row_bytes
        moved.recopied += int(np.count_nonzero(self._again[right])) * self._row_bytes
        self._damaged[wrong] = self._again[wrong]
        self._again[right], self._again[wrong] = False, True
        return wrong

    def sound(self, blocks: Blocks) -> Blocks:
        """Those that are not damaged."""
        found: Blocks = blocks[~self._damaged[blocks]]
        return found

    def check(self, blocks: Blocks, identity: KvIdentity) -> None:
        """Raise DamagedMemoryError, which says whose they are, if one is damaged."""
        damaged = blocks[self._damaged[blocks]]
        if len(damaged):
            more = f" and {len(damaged) - 1} more" if len(damaged) > 1 else ""
            raise DamagedMemoryError(
                f"KV block {damaged[0]}{more} of {name_of(identity)} came back otherwise than "
                "saved, also when copied again: memory is faulty, or something wrote to the copies "
                "on the host"
            )

    def forget(self, blocks: Blocks) -> None:
        """Nothing that was in them matters any more."""
        self._again[blocks] = self._damaged[blocks] = False

    def anew(self) -> None:
        """The device memory comes again: what was damaged is looked at again."""
        self._turn += 1
        self._again[:] = self._damaged[:] = False

    def close(self) -> None:
        """Give the memory for digests back, which nothing in flight touches; idempotent."""
        self._digester = None

    def _digests(self, digesting: Digesting) -> Words:
        assert self._digester is not None
        sums = np.frombuffer(self._digester.take(digesting.number), np.uint64)
        runs: Words = sums.reshape(len(digesting.blocks), -1)
        digests: Words = (runs * self._weights).sum(axis=1, dtype=np.uint64)
        return digests
