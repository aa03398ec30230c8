"""A torch module's tensors to a file of images, and back into a model's regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import torch

from gpupool._core import Region
from gpupool.adopt import check_known, moving, over, tensors_of
from gpupool.errors import UsageError
from gpupool.images.file import ImageFile, Progress, write_image
from gpupool.images.format import Manifest, Place
from gpupool.model import Model

TAGS = ("weights", "runtime")


def places_in(module: torch.nn.Module, model: Model) -> list[Place]:
    """Where the module's tensors are in the model's weights and runtime regions.

    Raises UsageError for a tensor with memory that is in none of them: what it holds would not come
    back.
    """
    regions = list(enumerate(_regions(model)))
    places: list[Place] = []
    for name, tensor in tensors_of(module):
        item_bytes = tensor.element_size()
        at = tensor.untyped_storage().data_ptr() + tensor.storage_offset() * item_bytes
        home = [(i, r) for i, r in regions if r.address <= at < r.address + r.bytes]
        if not home or (at - home[0][1].address) % item_bytes:
            raise UsageError(f"tensor {name!r} is not in the memory of model {model.name!r}")
        part, region = home[0]
        dtype = str(tensor.dtype).removeprefix("torch.")
        shape, stride = list(tensor.shape), list(tensor.stride())
        places.append(Place(name, part, at - region.address, dtype, shape, stride, item_bytes))
    return sorted(places, key=lambda place: (place.part, place.offset, place.name))


def save_image(
    path: Path,
    module: torch.nn.Module,
    model: Model,
    key: dict[str, str],
    *,
    progress: Progress = lambda done, of: None,
) -> None:
    """Write what an adopted module's regions have on the host.

    The model must be out, and nobody may bring it in meanwhile. ``key`` is what the file is looked
    up by and must be equal when it is loaded. Raises UsageError, also for a module with tensors
    outside of the regions, and ImageWriteError.
    """
    if model.gate.is_resident:
        raise UsageError("an image is written while its model is out")
    places = places_in(module, model)
    with _looked_at(_regions(model)) as views:
        parts = [(r.tag.name, view) for r, view in zip(_regions(model), views, strict=True)]
        write_image(path, key, parts, places, progress=progress)


def load_image(
    path: Path,
    module: torch.nn.Module,
    model: Model,
    key: dict[str, str],
    *,
    progress: Progress = lambda done, of: None,
) -> None:
    """Give a module, whose tensors are made but hold nothing yet, what a file has for them.

    Adds regions to the model, which must be out, and moves the tensors there as ``adopt`` does.
    Raises FileNotFoundError, ImageDamagedError, UsageError if the file is of another key, its
    tensors are not those of the module or something outside of the module refers to one's memory,
    and what ``Model.region`` raises; module and model are as before then.
    """
    check_known(module)
    with ImageFile(path) as file:
        manifest = file.manifest
        if manifest.key != key:
            names = sorted(k for k in key | manifest.key if key.get(k) != manifest.key.get(k))
            raise UsageError(f"{path} is of another {', '.join(names)}")
        tensors = _matched(path, module, manifest)
        regions: list[Region] = []
        try:
            for part in manifest.parts:
                regions.append(model.region(part.tag, part.size_bytes))
            with _looked_at(regions) as views:
                file.read_into(views, progress=progress)
            for region in regions:
                region.adopt_image()
            memory = [torch.from_dlpack(region).untyped_storage() for region in regions]
            with moving(model) as move:
                for place, tensor in tensors:
                    offset = place.offset // place.item_bytes
                    move(tensor, over(memory[place.part], tensor, offset))
        except BaseException:
            for region in regions:
                model.remove_region(region)
            raise


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


def _matched(
    path: Path, module: torch.nn.Module, manifest: Manifest
) -> list[tuple[Place, torch.Tensor]]:
    by_name = {place.name: place for place in manifest.places}
    found: list[tuple[Place, torch.Tensor]] = []
    for name, tensor in tensors_of(module):
        place = by_name.pop(name, None)
        dtype = str(tensor.dtype).removeprefix("torch.")
        is_so = (dtype, list(tensor.shape), list(tensor.stride()), tensor.element_size())
        if place is None or is_so != (place.dtype, place.shape, place.stride, place.item_bytes):
            raise UsageError(f"{path} is of another module: tensor {name!r} is not as it has it")
        found.append((place, tensor))
    if by_name:
        raise UsageError(f"{path} is of another module: it has {sorted(by_name)[0]!r}")
    return found
