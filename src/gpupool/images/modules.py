"""A torch module's tensors to a file of images, and back into a model's regions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import cast

import torch

from gpupool._core import Region
from gpupool.adopt import own, owned_by, tensors_of
from gpupool.errors import UsageError
from gpupool.images.file import ImageFile, Progress, write_image
from gpupool.images.format import Place
from gpupool.model import Model

TAGS = ("weights", "runtime")


def places_in(module: torch.nn.Module, model: Model) -> list[Place]:
    """Where the module's tensors are in the model's weights and runtime regions.

    Raises UsageError for a tensor with memory that is in none of them: what it holds would not come
    back.
    """
    regions = _regions(model)
    found: dict[tuple[str, str], Place] = {}
    for name, tensor in tensors_of(module):
        if tensor.is_meta or tensor.untyped_storage().nbytes() == 0:
            continue
        at = tensor.data_ptr() if tensor.numel() else tensor.untyped_storage().data_ptr()
        region = next((r for r in regions if r.address <= at < r.address + r.bytes), None)
        if region is None:
            raise UsageError(f"tensor {name!r} is not in the memory of model {model.name!r}")
        found[name, region.tag.name] = Place(
            name,
            region.tag.name,
            at - region.address,
            str(tensor.dtype).removeprefix("torch."),
            list(tensor.shape),
            list(tensor.stride()),
            tensor.element_size(),
        )
    return sorted(found.values(), key=lambda place: (place.part, place.offset, place.name))


def save_image(
    path: Path,
    module: torch.nn.Module,
    model: Model,
    key: dict[str, str],
    *,
    progress: Progress = lambda done, of: None,
) -> None:
    """Write what an adopted module's regions have on the host; the model must be out.

    ``key`` is what the file is looked up by and must be equal when it is loaded. Raises UsageError,
    also for a module with tensors outside of the regions, and ImageWriteError.
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
    Raises FileNotFoundError, ImageDamagedError, UsageError if the file is of another key or its
    tensors are not those of the module, and what ``Model.region`` raises; module and model are as
    before then.
    """
    with ImageFile(path) as file:
        if file.manifest.key != key:
            different = sorted(k for k in key | file.manifest.key if _differs(k, key, file))
            raise UsageError(f"{path} is of another {', '.join(different)}")
        tensors = _matched(path, module, file.manifest.places)
        regions: list[Region] = []
        try:
            for part in file.manifest.parts:
                regions.append(model.region(part.tag, part.size_bytes))
            with _looked_at(regions) as views:
                file.read_into(views, progress=progress)
            for region in regions:
                region.adopt_image()
        except BaseException:
            for region in regions:
                model.remove_region(region)
            raise
    memory = {r.tag.name: torch.from_dlpack(r).untyped_storage() for r in regions}
    for place, tensor in tensors:
        whole = torch.empty(0, dtype=tensor.dtype, device=memory[place.part].device)
        begin = place.offset // place.item_bytes
        tensor.data = whole.set_(memory[place.part], begin, tensor.size(), tensor.stride())
        own(tensor, model)


def _differs(name: str, key: dict[str, str], file: ImageFile) -> bool:
    return key.get(name) != file.manifest.key.get(name)


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
    path: Path, module: torch.nn.Module, places: Sequence[Place]
) -> list[tuple[Place, torch.Tensor]]:
    by_name = {place.name: place for place in places}
    found: list[tuple[Place, torch.Tensor]] = []
    for name, tensor in tensors_of(module):
        if tensor.untyped_storage().nbytes() == 0 and not tensor.is_meta:
            continue
        if (owner := owned_by(tensor)) is not None:
            raise UsageError(f"tensor {name!r} is in the memory of model {owner!r} already")
        place = by_name.pop(name, None)
        is_so = (
            str(tensor.dtype).removeprefix("torch."),
            list(tensor.shape),
            list(tensor.stride()),
        )
        if place is None or is_so != (place.dtype, place.shape, place.stride):
            raise UsageError(f"{path} is of another module: tensor {name!r} is not as it has it")
        found.append((place, tensor))
    if by_name:
        raise UsageError(f"{path} is of another module: it has {sorted(by_name)[0]!r}")
    return found
