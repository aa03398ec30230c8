"""Where in a file each image is that is parked there."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from gpupool._core import ImageBuffer, Region
from gpupool.residency.parked_file import Part, padded


@dataclass
class Slot:
    """A region's place in the file."""

    region: Region
    size_bytes: int
    offset: int
    changes: int = -1
    """``Region.image_changes`` of what was written there; -1 for nothing that counts."""
    digests: list[int] = field(default_factory=list)


def slots_for(regions: Sequence[Region]) -> tuple[list[Slot], int]:
    """A place for each, and how long that makes the file."""
    slots: list[Slot] = []
    end = 0
    for region in regions:
        slots.append(Slot(region, region.bytes, end))
        end += padded(region.bytes)
    return slots, end


def parts_of(
    stack: contextlib.ExitStack, slots: Sequence[Slot], images: Sequence[ImageBuffer]
) -> list[Part]:
    """What is to be in the slots, in memory that nobody looks at any more after ``stack``.

    No error may know of the images, which could not go while it does.
    """
    parts: list[Part] = []
    for slot, image in zip(slots, images, strict=True):
        whole = stack.enter_context(memoryview(image))  # type: ignore[arg-type]
        parts.append(Part(slot.offset, stack.enter_context(whole.cast("B")), slot.digests))
    return parts
