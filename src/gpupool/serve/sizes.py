"""Sizes in bytes, as people write them: `192MiB`."""

from __future__ import annotations

import re

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

_UNITS = {"KiB": KIB, "MiB": MIB, "GiB": GIB}
_PATTERN = re.compile(r"([0-9]{1,19})\s*(KiB|MiB|GiB)?")
_MAX_BYTES = (1 << 63) - 1


class ByteSize(int):
    """A number of bytes, at least 1 and at most 2**63 - 1."""


def parse_size(raw: object) -> ByteSize:
    """The size that `raw` stands for: an integer number of bytes, or text such as `192MiB`.

    Raises ValueError, with a message that says what is accepted.
    """
    size: int | None = None
    if isinstance(raw, int) and not isinstance(raw, bool):
        size = raw
    elif isinstance(raw, str) and (match := _PATTERN.fullmatch(raw.strip())):
        size = int(match[1]) * (_UNITS[match[2]] if match[2] else 1)
    if size is None:
        raise ValueError(
            f"{raw!r} is not a size; write a whole number of bytes, or one with KiB, MiB or GiB,"
            " such as 192MiB"
        )
    if not 1 <= size <= _MAX_BYTES:
        raise ValueError(f"{raw!r} is out of range; write a size from 1 byte to 2**63 - 1 bytes")
    return ByteSize(size)


def format_size(size_bytes: int) -> str:
    """`size_bytes` in the largest unit that divides it, so that it can be read back exactly."""
    for unit, factor in (("GiB", GIB), ("MiB", MIB), ("KiB", KIB)):
        if size_bytes and size_bytes % factor == 0:
            return f"{size_bytes // factor} {unit}"
    return f"{size_bytes} bytes"
