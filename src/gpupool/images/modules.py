"""A torch module's tensors to a file of images, and back into a model's regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from gpupool._core import Region, Verify
from gpupool.adopt import check_known
from gpupool.errors import DamagedMemoryError, UsageError
from gpupool.images import state
from gpupool.images.digests import Known
from gpupool.images.file import ImageFile, Progress, Room, anywhere, write_image
from gpupool.images.format import Made, Place
from gpupool.images.restore import attributes_of, check_made_alike, restore
from gpupool.images.slots import dtype_name, slots_of, type_name
from gpupool.model import Model
from gpupool.module_tensors import has_memory, listed_tensors, tensors_with_memory

TAGS = ("weights", "runtime")


@dataclass(frozen=True)
class Loaded:
    """What was loaded from a file, to be given back if it turns out to be of no use."""

    path: Path
    regions: list[Region]
    size_bytes: int
    prints: dict[str, str]
    is_direct: bool
    """Whether it was read past the page cache, as it is where the file system can."""

    def check(self, module: torch.nn.Module) -> None:
        """Raises UsageError unless the module's attributes are what the written one's were.

        For whoever does more to it between ``load_image`` and its first use.
        """
        if (name := state.differing(self.prints, state.prints(module))) is not None:
            raise UsageError(f"{self.path} is of another module: {name!r} is not as it was written")


def places_in(module: torch.nn.Module, model: Model) -> list[Place]:
    """Where the module's tensors are in the model's weights and runtime regions.

    Raises UsageError for a tensor with memory that is in none of them: what it holds would not come
    back.
    """
    regions = list(enumerate(_regions(model)))
    with_memory = {id(tensor) for _, tensor in tensors_with_memory(module)}
    for name, tensor, _ in listed_tensors(module):
        if id(tensor) in with_memory or not has_memory(name, tensor):
            continue
        start = tensor.untyped_storage().data_ptr()
        if any(r.address <= start < r.address + r.bytes for _, r in regions):
            raise UsageError(
                f"tensor {name!r} is in a tuple or list, for which images have no place: use "
                "adopt(..., listed=False), and adopt(..., rest=True) once the image is written"
            )
    first: dict[int, str] = {}
    places: list[Place] = []
    for slot in slots_of(module):
        name, tensor = slot.name, slot.tensor
        if tensor is None:
            continue
        item_bytes = tensor.element_size()
        part, offset = -1, 0
        if id(tensor) in with_memory:
            at = tensor.untyped_storage().data_ptr() + tensor.storage_offset() * item_bytes
            home = [(i, r) for i, r in regions if r.address <= at < r.address + r.bytes]
            if not home or (at - home[0][1].address) % item_bytes:
                raise UsageError(f"tensor {name!r} is not in the memory of model {model.name!r}")
            part, offset = home[0][0], at - home[0][1].address
        elif tensor.is_meta:
            raise UsageError(f"tensor {name!r} has no memory")
        values, others = attributes_of(tensor)
        places.append(
            Place(
                name,
                part,
                offset,
                dtype_name(tensor),
                list(tensor.shape),
                list(tensor.stride()),
                item_bytes,
                kind=slot.kind,
                type=type_name(tensor),
                same_as=first.setdefault(id(tensor), name),
                values=values,
                others=others,
            )
        )
    return sorted(places, key=lambda place: (place.part, place.offset, place.name))


def save_image(
    path: Path,
    module: torch.nn.Module,
    model: Model,
    key: dict[str, str],
    *,
    before: Made | None = None,
    room: Room = anywhere,
    progress: Progress = lambda done, of: None,
) -> int:
    """Write what an adopted module's regions have on the host; returns the file's size in bytes.

    The model must be out, not torn, and nobody may bring it in meanwhile. ``key`` is what the file
    is looked up by and must be equal when it is loaded. ``before`` is what the module was when it
    had just been made (``gpupool.images.state.made``), if loading and processing its weights
    changed more than what its tensors hold; tensors that are in containers and objects of the
    module alone must be what they were then. ``room`` is called before anything is written, and may
    raise. What the model is verified by, each byte is held against before. Raises UsageError, also
    for a module with tensors outside of the regions or a region that was never saved,
    ImageWriteError, and DamagedMemoryError, of which the pool hears, for an image that is not what
    was saved; whatever was at ``path`` is there still then.
    """
    with model.gate.steady() as resident:  # neither does it leave in parts
        if resident:
            raise UsageError("an image is written while its model is out")
    places = places_in(module, model)  # which leaves nothing in containers that was adopted
    if before is not None and (name := state.filled_elsewhere(module, before)) is not None:
        raise UsageError(
            f"tensor {name!r} is not what it was when its module was made, and no attribute of a "
            "module: no image would have it"
        )
    shape = state.shape_of(module, before)
    with model.pinned(), _looked_at(_regions(model)) as views:
        parts = [(r.tag.name, view) for r, view in zip(_regions(model), views, strict=True)]
        known = [_known(region, model.verify) for region in _regions(model)]
        try:
            return write_image(
                path, key, parts, places, known=known, shape=shape, room=room, progress=progress
            )
        except DamagedMemoryError as error:
            model.damaged(str(error))
            raise DamagedMemoryError(f"model {model.name!r}: {error}") from None


def load_image(
    path: Path,
    module: torch.nn.Module,
    model: Model,
    key: dict[str, str],
    *,
    progress: Progress = lambda done, of: None,
) -> Loaded:
    """Make of a module, which was just made, what a file has; its tensors may hold nothing yet.

    Adds regions to the model, which must be out, and moves the tensors there as ``adopt`` does;
    those that loading and processing exchanged, added or took away are exchanged, added and taken
    away, and the plain Python attributes that they changed are set. Raises FileNotFoundError,
    OSError if the file cannot be opened, ImageReadError, ImageDamagedError, UsageError if it is of
    another key, the module is not made as the written one was or something outside of the module
    refers to its memory, and what ``Model.region`` raises; module and model are as before then.
    """
    check_known(module)
    with ImageFile(path) as file:
        manifest = file.manifest
        if manifest.key != key:
            names = sorted(k for k in key | manifest.key if key.get(k) != manifest.key.get(k))
            raise UsageError(f"{path} is of another {', '.join(names)}")
        check_made_alike(path, module, manifest)
        regions: list[Region] = []
        try:
            for part in manifest.parts:
                regions.append(model.region(part.tag, part.size_bytes))
            with _looked_at(regions) as views:
                file.read_into(views, progress=progress)
            for region, part in zip(regions, manifest.parts, strict=True):
                region.adopt_image(part.all_digests())  # of what was just read
            memory = [torch.from_dlpack(region).untyped_storage() for region in regions]
            restore(path, module, model, manifest, memory)
        except BaseException:
            for region in regions:
                model.remove_region(region)
            raise
    size_bytes = sum(part.size_bytes for part in manifest.parts)
    return Loaded(path, regions, size_bytes, manifest.shape.prints, file.is_direct)


def _known(region: Region, verify: Verify) -> Known:
    """What a region's image should digest to: all of it, unless nothing is verified."""
    known = region.known_digests()
    saved_bytes = sum(end - begin for begin, end, _ in known)
    if verify is Verify.off:
        saved_bytes = region.saved_bytes
    if saved_bytes != region.bytes:
        raise UsageError(
            f"a region of {region.tag.name} was not saved whole, and no image would have it: have "
            "the model in once, or fill it and call adopt_image"
        )
    return known


@contextmanager
def _looked_at(regions: Sequence[Region]) -> Iterator[list[memoryview]]:
    """The images of regions, at which nobody looks any more afterwards, whatever an error knows."""
    with ExitStack() as stack:
        yield [stack.enter_context(_bytes_of(region)) for region in regions]


def _bytes_of(region: Region) -> memoryview:
    with memoryview(cast("bytearray", region.image())) as whole:
        return whole.cast("B")


def _regions(model: Model) -> list[Region]:
    return [region for tag in TAGS for region in model.regions(tag)]
