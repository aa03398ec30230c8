"""Where the bytes of a KV block lie: pieces, whatever is in them.

An engine keeps a block's keys and values in one tensor for each layer, or in one buffer for all of
them, heads before tokens or after, keys beside values or in a half of their own, or only a latent
vector. To whoever moves a block all of these are the same: some pieces, each at an equal distance
from that of the next block.

>>> split = BlockLayout.of([(0, 64, 64), (640, 64, 64)], blocks=10)  # keys, then values
>>> split.row_bytes, split.extent_bytes
(128, 1280)
>>> BlockLayout.merged([(0, 128, 64), (64, 128, 64)], blocks=10).pieces  # keys beside values
(Piece(offset=0, stride=128, bytes=128),)
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, combinations

from gpupool.errors import UsageError

# Addresses and offsets are signed 64-bit numbers on the device.
LIMIT = 1 << 63


@dataclass(frozen=True, slots=True)
class Piece:
    """Bytes [offset + b * stride, offset + b * stride + bytes) from the base belong to block b."""

    offset: int
    stride: int
    bytes: int


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of a piece that one program moves at once, and where it lies in a row."""

    offset: int
    stride: int
    bytes: int
    row_offset: int


@dataclass(frozen=True)
class BlockLayout:
    """The pieces of blocks 0 to ``blocks`` - 1, no two of which share a byte.

    A *row* is the contiguous copy of a block: its pieces in order, with nothing in between.
    """

    pieces: tuple[Piece, ...]
    blocks: int

    def __post_init__(self) -> None:
        """Raises UsageError for what cannot be moved."""
        _check_number("the number of blocks", self.blocks, 1)
        if not self.pieces:
            raise UsageError("a block has no pieces: give at least one")
        for index, piece in enumerate(self.pieces):
            _check_number(f"the offset of piece {index}", piece.offset, 0)
            _check_number(f"the stride of piece {index}", piece.stride, 1)
            _check_number(f"the size of piece {index}", piece.bytes, 1)
            if self.blocks > 1 and piece.stride < piece.bytes:
                raise UsageError(
                    f"piece {index} has {piece.bytes} bytes and its next block begins after "
                    f"{piece.stride}: they overlap"
                )
        if self.extent_bytes >= LIMIT or self.row_bytes >= LIMIT:
            raise UsageError("the blocks do not fit into 64-bit addresses")
        for (i, one), (j, other) in combinations(enumerate(self.pieces), 2):
            if _overlap(one, other, self.blocks):
                raise UsageError(
                    f"pieces {i} and {j} share bytes: where groups of layers lie over each other, "
                    "use BlockLayout.merged"
                )

    @classmethod
    def of(cls, pieces: Iterable[tuple[int, int, int]], blocks: int) -> BlockLayout:
        """From (offset, stride, bytes) in bytes, kept as they are."""
        return cls(tuple(Piece(*piece) for piece in pieces), blocks)

    @classmethod
    def merged(cls, pieces: Iterable[tuple[int, int, int]], blocks: int) -> BlockLayout:
        """As few pieces as cover those given: what touches or overlaps becomes one.

        Hybrid models lay their groups of layers over each other, since a block belongs to one group
        at a time. Whoever does not know to which moves the bytes of all.
        """
        found: list[Piece] = []
        for piece in sorted(
            (Piece(*piece) for piece in pieces), key=lambda p: (p.stride, p.offset)
        ):
            last = found[-1] if found else None
            if last is not None and piece.stride == last.stride:
                end = max(last.offset + last.bytes, piece.offset + piece.bytes)
                meets = piece.offset <= last.offset + last.bytes
                if meets and end - last.offset <= last.stride:
                    found[-1] = Piece(last.offset, last.stride, end - last.offset)
                    continue
            found.append(piece)
        return cls(tuple(sorted(found, key=lambda p: p.offset)), blocks)

    @cached_property
    def row_bytes(self) -> int:
        """The bytes of one block."""
        return sum(piece.bytes for piece in self.pieces)

    @cached_property
    def row_offsets(self) -> tuple[int, ...]:
        """Where in a row each piece begins."""
        return tuple(accumulate((piece.bytes for piece in self.pieces[:-1]), initial=0))

    @cached_property
    def extent_bytes(self) -> int:
        """How many bytes from the base the last block reaches."""
        return max(p.offset + (self.blocks - 1) * p.stride + p.bytes for p in self.pieces)

    def tiles(self, tile_bytes: int) -> list[Tile]:
        """All pieces in parts of at most ``tile_bytes``, in the order of a row."""
        return [
            Tile(
                piece.offset + start,
                piece.stride,
                min(tile_bytes, piece.bytes - start),
                row_offset + start,
            )
            for piece, row_offset in zip(self.pieces, self.row_offsets, strict=True)
            for start in range(0, piece.bytes, tile_bytes)
        ]


def _check_number(what: str, number: int, least: int) -> None:
    if isinstance(number, bool) or not isinstance(number, int):
        raise UsageError(f"{what} is not a whole number: {number!r}")
    if not least <= number < LIMIT:
        raise UsageError(f"{what} is {number}: it must be at least {least} and below 2**63")


def _overlap(one: Piece, other: Piece, blocks: int) -> bool:
    """Whether any block's bytes of one piece are any block's of the other."""
    if one.stride == other.stride:
        # Block b of one meets block b + k of the other, whatever b is.
        low, high = _blocks_that_meet(one, 0, other)
        return max(low, 1 - blocks) <= min(high, blocks - 1)
    hulls_meet = (
        one.offset < other.offset + (blocks - 1) * other.stride + other.bytes
        and other.offset < one.offset + (blocks - 1) * one.stride + one.bytes
    )
    if not hulls_meet:
        return False
    for block in range(blocks):
        low, high = _blocks_that_meet(one, block, other)
        if max(low, 0) <= min(high, blocks - 1):
            return True
    return False


def _blocks_that_meet(one: Piece, block: int, other: Piece) -> tuple[int, int]:
    """The first and last block, of any number, of which ``other`` shares bytes with this one."""
    begins = one.offset + block * one.stride - other.offset
    low = (begins - other.bytes) // other.stride + 1
    high = -(-(begins + one.bytes) // other.stride) - 1
    return low, high
