"""How the KV cache of an engine is kept while its model is out."""

from __future__ import annotations

from typing import Protocol

from gpupool._core import Region
from gpupool.kv.paged import PagedKv
from gpupool.model import Model
from gpupool.vllm.block_use import BlockUse


class KvKeeping(Protocol):
    """What the worker tells of its steps."""

    region: Region

    def announce(self, use: BlockUse) -> None:
        """A step is to come, whether the memory is there or not."""

    def begin(self, use: BlockUse) -> None:
        """The memory is there: return when what the step uses is."""

    def forget(self) -> None:
        """Nothing of what is in it will be read, as after a reset of the prefix cache."""


class KeptByBlocks:
    """Of each block what was written since it was last saved, and no more."""

    def __init__(self, kv: PagedKv) -> None:
        """Keep what is in ``kv``."""
        self._kv = kv
        self.region = kv.region

    def announce(self, use: BlockUse) -> None:
        """What the step gives out anew need not come back; what it uses comes first."""
        self._kv.cache.forget(use.fresh)
        self._kv.bring_first(use.all_blocks())

    def begin(self, use: BlockUse) -> None:
        """Wait for the blocks of the step. Raises DriverError or DamagedMemoryError."""
        self._kv.write(use.written)
        if not self._kv.cache.settled:
            self._kv.require(use.all_blocks())

    def forget(self) -> None:
        """No block is saved or brought back; others may have the place of their copies."""
        self._kv.cache.forget_all()


class KeptWhole:
    """All of it every time: for state that is not addressed by blocks of tokens."""

    def __init__(self, model: Model, region_bytes: int) -> None:
        """Add a region with an image as long as itself."""
        self.region = model.region("kv_cache", region_bytes)
        model.add_keeper(self)

    def announce(self, use: BlockUse) -> None:
        """Nothing to do."""

    def begin(self, use: BlockUse) -> None:
        """Nothing to do: all of it came in with the model."""

    def forget(self) -> None:
        """Nothing to do: its image is as long as itself whatever is in it."""

    # As a keeper.

    def arrived(self) -> None:
        """It has been restored with the rest."""

    def leaving(self) -> None:
        """Any byte may have been written. Raises DriverError."""
        self.region.mark_written([(0, self.region.bytes)])

    def save(self) -> None:
        """Its image has it."""

    def left(self) -> None:
        """Nothing to do."""

    def settle(self) -> None:
        """Nothing is in flight."""

    def forsake(self) -> None:
        """Its image goes with the model."""

    def close(self) -> None:
        """Its image goes with the model."""
