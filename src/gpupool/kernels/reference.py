"""What the kernels do, in plain torch, on any device: to compare with, and to read."""

from __future__ import annotations

import torch

from gpupool.kernels.layout import BlockLayout, Piece


def gather(memory: torch.Tensor, layout: BlockLayout, blocks: list[int]) -> torch.Tensor:
    """The rows of those blocks of a tensor of bytes."""
    ids = torch.tensor(blocks, dtype=torch.int64, device=memory.device)
    return torch.cat([_piece(memory, layout, p)[ids] for p in layout.pieces], dim=1)


def scatter(
    memory: torch.Tensor, layout: BlockLayout, blocks: list[int], rows: torch.Tensor
) -> None:
    """Write the rows into those blocks."""
    ids = torch.tensor(blocks, dtype=torch.int64, device=memory.device)
    for piece, offset in zip(layout.pieces, layout.row_offsets, strict=True):
        _piece(memory, layout, piece)[ids] = rows[:, offset : offset + piece.bytes]


def copy(memory: torch.Tensor, layout: BlockLayout, sources: list[int], targets: list[int]) -> None:
    """Copy each source block into its target."""
    scatter(memory, layout, targets, gather(memory, layout, sources))


def digest(run: torch.Tensor, first_word: int = 0) -> int:
    """As csrc/digest/digest.h defines it, of a tensor of bytes."""
    words = run.numel() // 8
    rest = run[8 * words :]
    # Copied, since only what is aligned to 8 bytes can be viewed as words.
    whole = run[: 8 * words].clone().view(torch.int64)
    numbers = torch.arange(words, dtype=torch.int64, device=run.device) + _signed(first_word)
    total = int(_mix(whole, numbers).sum())
    if rest.numel() > 0:
        last = bytes(rest.tolist()).ljust(7, b"\0") + bytes([rest.numel()])
        word = torch.tensor([_signed(int.from_bytes(last, "little"))])
        total += int(_mix(word, torch.tensor([_signed(-1 - first_word - words)])))
    return total % (1 << 64)


def _piece(memory: torch.Tensor, layout: BlockLayout, piece: Piece) -> torch.Tensor:
    """The piece of every block, as a view."""
    return memory.as_strided(
        (layout.blocks, piece.bytes), (piece.stride, 1), memory.storage_offset() + piece.offset
    )


def _mix(word: torch.Tensor, number: torch.Tensor) -> torch.Tensor:
    """Numbers of 64 bits as signed ones: torch's arithmetic on them is modulo 2**64."""
    half = 0xFFFFFFFF
    z = word ^ ((number + 1) * _signed(0x9E3779B97F4A7C15))
    for multiplier in (0xD2511F53, 0xCD9E8D57, 0x9E3779B1, 0x85EBCA77):
        product = (z & half) * multiplier
        z = product << 32 | ((product >> 32) & half ^ (z >> 32) & half)
    return z


def _signed(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)
