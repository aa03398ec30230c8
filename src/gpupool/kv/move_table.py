"""Which way of moving blocks is the quickest, by what was measured on the device.

The rate of each way depends on how long the pieces are and how many go at once, and is not known
to be smooth in either. So nothing is computed from a formula: a few sizes and counts are measured
(`gpupool tune`), and what lies between is interpolated in their logarithms.
"""

from __future__ import annotations

import math
import os
import re
import tempfile
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

from gpupool.cache_folder import cache_folder
from gpupool.errors import UsageError

Direction = Literal["to_host", "to_device"]
_FORMAT = 1


class Figure(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long one way took with so many pieces of one size."""

    direction: Direction
    method: str
    piece_bytes: int
    pieces: int
    seconds: float


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    device: str
    figures: list[Figure]


class MoveTable:
    """Measured times of moves on one device.

    >>> each = [Figure("to_host", "each", 4096, n, n * 1e-6) for n in (16, 64)]
    >>> batch = [Figure("to_host", "batch", 4096, n, 17e-6) for n in (16, 64)]
    >>> table = MoveTable("host", each + batch)
    >>> table.best("to_host", 4096, 16), table.best("to_host", 4096, 64)
    ('each', 'batch')
    >>> round(table.seconds("to_host", "each", 4096, 32) * 1e6, 3)
    32.0
    """

    def __init__(self, device: str, figures: Iterable[Figure]) -> None:
        """Raises UsageError without figures, or for a time or an amount that cannot be."""
        self.device = device
        self.figures = tuple(figures)
        self._grid: dict[tuple[str, str], dict[int, dict[int, float]]] = defaultdict(dict)
        for f in self.figures:
            if not (f.seconds > 0 and math.isfinite(f.seconds) and f.piece_bytes > 0 < f.pieces):
                raise UsageError(f"a move cannot take {f.seconds} s for {f.pieces} pieces")
            by_count = self._grid[f.direction, f.method].setdefault(f.piece_bytes, {})
            by_count[f.pieces] = f.seconds
        if not self.figures:
            raise UsageError("a table of moves needs at least one figure")

    def methods(self, direction: Direction) -> list[str]:
        """The ways that were measured."""
        return sorted(method for towards, method in self._grid if towards == direction)

    def seconds(self, direction: Direction, method: str, piece_bytes: int, pieces: int) -> float:
        """How long such a move may take. Raises UsageError for a way that was not measured."""
        grid = self._grid.get((direction, method))
        if not grid:
            raise UsageError(f"{method!r} {direction} was not measured on {self.device}")
        return _between(
            {size: _between(by_count, pieces) for size, by_count in grid.items()}, piece_bytes
        )

    def best(self, direction: Direction, piece_bytes: int, pieces: int) -> str:
        """The quickest way. Raises UsageError if none was measured in that direction."""
        methods = self.methods(direction)
        if not methods:
            raise UsageError(f"nothing was measured {direction} on {self.device}")
        return min(methods, key=lambda m: self.seconds(direction, m, piece_bytes, pieces))

    def save(self, path: Path | None = None) -> Path:
        """Write it for ``load``, by default where the device's is kept. Raises OSError."""
        path = table_path(self.device) if path is None else path
        path.parent.mkdir(parents=True, exist_ok=True)
        content = msgspec.json.encode(_File(_FORMAT, self.device, list(self.figures)))
        descriptor, name = tempfile.mkstemp(prefix=".moves-", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(msgspec.json.format(content, indent=1))
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
        return path

    @classmethod
    def load(cls, path: Path, device: str) -> MoveTable:
        """Raises UsageError for a file of something or somewhere else, and OSError."""
        try:
            read = msgspec.json.decode(path.read_bytes(), type=_File)
        except msgspec.DecodeError as error:
            raise UsageError(f"{path} is no table of moves ({error}): run gpupool tune") from None
        if (read.format, read.device) != (_FORMAT, device):
            raise UsageError(f"{path} was measured on {read.device!r}: run gpupool tune here")
        return cls(read.device, read.figures)


def table_path(device: str) -> Path:
    """Where the table of a device is kept."""
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return cache_folder() / f"moves-{name}.json"


def _between(known: dict[int, float], x: int) -> float:
    """The value at ``x``, on a line through its neighbours in logarithms.

    Below what is known the least, since a call costs something whatever it moves; above in
    proportion to the greatest.
    """
    least, most = min(known), max(known)
    if x <= least:
        return known[least]
    if x >= most:
        return known[most] * x / most
    below, above = next(pair for pair in pairwise(sorted(known)) if pair[0] <= x <= pair[1])
    share = math.log(x / below) / math.log(above / below)
    return math.exp(math.log(known[below]) * (1 - share) + math.log(known[above]) * share)
