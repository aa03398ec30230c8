"""Numbers of blocks and what is known of each, as arrays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
import numpy.typing as npt

from gpupool.errors import UsageError
from gpupool.kernels.layout import BlockLayout

Blocks = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Words = npt.NDArray[np.uint64]  # handles and addresses

NO_BLOCKS: Blocks = np.empty(0, np.int64)


def as_blocks(blocks: Iterable[int], count: int) -> Blocks:
    """Each block once, in the order of its first mention. Raises UsageError beyond ``count``."""
    given = blocks if isinstance(blocks, np.ndarray) else np.array(list(blocks) or NO_BLOCKS)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise UsageError("blocks are named by whole numbers, in one dimension")
    if len(given) and not (given.min() >= 0 and given.max() < count):
        raise UsageError(
            f"blocks {given.min()} to {given.max()} were named: there are 0 to {count - 1}"
        )
    whole = given.astype(np.int64)
    _, first = np.unique(whole, return_index=True)
    return whole if len(first) == len(whole) else whole[np.sort(first)]


def in_chunks(blocks: Blocks, most: int) -> Iterator[Blocks]:
    """All of them in order, at most so many at a time."""
    for start in range(0, len(blocks), most):
        yield blocks[start : start + most]


def ahead_of(first: Blocks, rest: Blocks) -> Blocks:
    """The first ones, and behind them those of the rest that are not among them."""
    return np.concatenate([first, rest[~np.isin(rest, first)]]) if len(first) else rest


class BlockRuns:
    """Where on the device the pieces of blocks are."""

    def __init__(self, layout: BlockLayout, base_address: int) -> None:
        """Of blocks of ``layout`` from ``base_address`` on."""
        pieces = layout.pieces
        self._starts = np.array([base_address + piece.offset for piece in pieces], np.uint64)
        self._strides = np.array([piece.stride for piece in pieces], np.uint64)
        self._sizes = np.array([piece.bytes for piece in pieces], np.uint64)

    def of(self, blocks: Blocks) -> tuple[Words, Words]:
        """Addresses and sizes, all of one block after all of another."""
        addresses = self._starts + blocks.astype(np.uint64)[:, None] * self._strides
        return addresses.ravel(), np.tile(self._sizes, len(blocks))
