"""Moves the tensors of a torch module into a model's regions, storage by storage.

Tensors stay the objects they were; aliases and views keep sharing, also those that are storages of
their own over the same bytes; only what lies beneath moves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING

import torch

from gpupool.errors import UsageError
from gpupool.model import Model
from gpupool.module_tensors import Found, has_memory, listed_tensors, own_tensors

if TYPE_CHECKING:
    from gpupool._core import Region

ALIGNMENT_BYTES = 256
_ELEMENT_BYTES_MAX = 16
OWNER = "_gpupool_owner"
_TAGS = ("weights", "runtime")
Move = Callable[[torch.Tensor, torch.Tensor], None]  # a tensor, and one over what it is to be over


@dataclass
class _Span:
    """The bytes of one storage, or of several that overlap, and where they go."""

    first_name: str
    start: int
    end: int
    storages: list[list[torch.Tensor]]  # of each, the tensors that were found over it
    only_parameters: bool
    offset: int = 0  # of ``start`` in the region

    def take(self, other: _Span) -> None:
        """Cover what ``other`` does, too."""
        self.first_name = min(self.first_name, other.first_name)
        self.end = max(self.end, other.end)
        self.storages += other.storages
        self.only_parameters &= other.only_parameters

    @property
    def known_elsewhere(self) -> bool:
        """Whether tensors that were not found are over one of its storages."""
        return any(_references(tensors[0]) > len(tensors) for tensors in self.storages)

    def place(self, storage: torch.UntypedStorage) -> slice:
        """Which bytes of the region one of the storages gets."""
        begin = self.offset + storage.data_ptr() - self.start
        return slice(begin, begin + storage.nbytes())


@dataclass(frozen=True)
class Adopted:
    """What went where, in bytes."""

    weights_bytes: int
    runtime_bytes: int
    outside_bytes: int
    """Left alone, because something unknown also refers to them, or on another device."""


def adopt(
    module: torch.nn.Module, model: Model, *, rest: bool = False, listed: bool = True
) -> Adopted:
    """Move the module's tensors into ``model``, which must be out.

    Storages held by parameters alone go to a weights region, packed in the order of their names
    and aligned to 256 bytes; those of buffers and of tensors that are attributes, or in attributes
    that are tuples or lists, go to a runtime region.
    Their bytes go to the regions' host images; the next swap-in puts them in place, and until
    then no tensor of the module may be touched. A storage that some tensor not found here refers
    to stays where it is, with those that overlap it; a NumPy array over it goes unseen. So does a
    buffer or attribute that is on another device than the model. With ``rest``, tensors over memory
    of ``model``'s own regions stay what they are: the others follow. Unless ``listed``, tuples and
    lists are left for that: a file of images has no place for what is in them.

    Raises UsageError if a parameter is on another device, or a tensor is in another model already
    or of a kind that cannot be moved (sparse, quantized, nested, lazily conjugate or negative,
    without memory of its own), and what ``Model.region`` raises; the module and the model are as
    before then.
    """
    weights: list[_Span] = []
    runtime: list[_Span] = []
    found = chain(own_tensors(module), listed_tensors(module) if listed else ())
    here, outside_bytes = _on_device(model, found)
    for span in _find(here, model if rest else None):
        if span.known_elsewhere:
            outside_bytes += span.end - span.start
        elif span.only_parameters:
            weights.append(span)
        else:
            runtime.append(span)
    sizes = _pack(weights), _pack(runtime)
    # Both regions first: if one is refused, no tensor has moved.
    adopted: list[tuple[Region, list[_Span]]] = []
    try:
        for tag, size_bytes, spans in zip(_TAGS, sizes, (weights, runtime), strict=True):
            if size_bytes > 0:
                adopted.append((model.region(tag, size_bytes), spans))
        for region, spans in adopted:
            _fill_image(region, spans)
            region.adopt_image()
        with moving(model) as move:
            for region, spans in adopted:
                _rebind(spans, region, move)
    except BaseException:
        for region, _ in adopted:
            model.remove_region(region)
        raise
    return Adopted(*sizes, outside_bytes)


@contextmanager
def moving(model: Model) -> Iterator[Move]:
    """Exchanges what lies beneath tensors, which are the model's then: all of them or, on an error,
    none.
    """
    moved: list[tuple[torch.Tensor, torch.Tensor]] = []  # each with what it was

    def move(tensor: torch.Tensor, data: torch.Tensor) -> None:
        moved.append((tensor, tensor.data))
        tensor.data = data

    try:
        yield move
    except BaseException:
        for tensor, before in reversed(moved):
            if tensor.untyped_storage().data_ptr() != before.untyped_storage().data_ptr():
                tensor.data = before
        raise
    for tensor, _ in moved:
        setattr(tensor, OWNER, model.name)


def check_known(module: torch.nn.Module) -> None:
    """Raises UsageError if some tensor that is not the module's own shares memory with one of its.

    Those in its tuples and lists count as others: an image has no place for them.
    """
    for span in _find(own_tensors(module)):
        if span.known_elsewhere:
            raise UsageError(
                f"something outside of the module also refers to the memory of {span.first_name!r}"
            )


def _on_device(model: Model, tensors: Iterable[Found]) -> tuple[list[Found], int]:
    """Those on the model's device, and how many bytes others are over, which stay there."""
    kind, ordinal = model.device_kind, model.device_ordinal
    device = torch.device("cpu") if kind == "host" else torch.device(kind, ordinal)
    here: list[Found] = []
    elsewhere: dict[int, int] = {}
    for found in tensors:
        tensor = found.tensor
        if tensor.device == device or tensor.is_meta or tensor.layout != torch.strided:
            here.append(found)
            continue
        storage = tensor.untyped_storage()
        if found.is_parameter and storage.nbytes() > 0:
            raise UsageError(
                f"parameter {found.name!r} is on {tensor.device} and model {model.name!r} on "
                f"{device}: move the module there first, with module.to('{device}')"
            )
        elsewhere[storage._cdata] = storage.nbytes()
    return here, sum(elsewhere.values())


def _find(tensors: Iterable[Found], but_of: Model | None = None) -> list[_Span]:
    """What all that is not over memory of that model is over."""
    found: dict[int, _Span] = {}
    seen: set[int] = set()
    for name, tensor, is_parameter in tensors:
        if id(tensor) in seen or not has_memory(name, tensor):
            continue
        if but_of is not None and _is_in(but_of, tensor):
            continue
        if (owner := getattr(tensor, OWNER, None)) is not None:
            raise UsageError(
                f"tensor {name!r} is in the memory of model {owner!r} already: two models cannot "
                "share a tensor"
            )
        seen.add(id(tensor))
        storage = tensor.untyped_storage()
        start = storage.data_ptr()
        span = _Span(name, start, start + storage.nbytes(), [[]], True)
        span = found.setdefault(storage._cdata, span)
        span.storages[0].append(tensor)
        span.only_parameters &= is_parameter
    apart: list[_Span] = []
    for span in sorted(found.values(), key=lambda span: span.start):
        if apart and span.start < apart[-1].end:
            apart[-1].take(span)
        else:
            apart.append(span)
    return sorted(apart, key=lambda span: span.first_name)


def _is_in(model: Model, tensor: torch.Tensor) -> bool:
    start = tensor.untyped_storage().data_ptr()
    return any(r.address <= start < r.address + r.bytes for t in _TAGS for r in model.regions(t))


def _references(tensor: torch.Tensor) -> int:
    """How many tensors share the storage, known to us or not."""
    storage = tensor.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1  # one is `storage` itself


def _pack(spans: list[_Span]) -> int:
    """Give each its offset; the size of the region they need."""
    end = 0
    for span in spans:
        # What begins within keeps the alignment it had.
        span.offset = end + span.start % _ELEMENT_BYTES_MAX
        last = span.offset + span.end - span.start
        end = -(-last // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    return end


def _rebind(spans: list[_Span], region: Region, move: Move) -> None:
    memory = torch.from_dlpack(region).untyped_storage()
    for span in spans:
        for tensors in span.storages:
            storage = memory[span.place(tensors[0].untyped_storage())]
            for tensor in tensors:
                move(tensor, over(storage, tensor, tensor.storage_offset()))


def over(storage: torch.UntypedStorage, like: torch.Tensor, offset: int) -> torch.Tensor:
    """What ``like`` is, over another storage, from its element ``offset`` on."""
    tensor = torch.empty(0, dtype=like.dtype, device=storage.device)
    return tensor.set_(storage, offset, like.size(), like.stride())


def _fill_image(region: Region, spans: list[_Span]) -> None:
    image = torch.frombuffer(region.image(), dtype=torch.uint8)
    try:
        end = 0
        for span in spans:
            image[end : span.offset].zero_()
            end = span.offset + span.end - span.start
            for tensors in span.storages:
                source = tensors[0].untyped_storage()
                flat = torch.empty(0, dtype=torch.uint8, device=source.device).set_(source)
                image[span.place(source)].copy_(flat)
        image[end:].zero_()
    finally:
        del image  # an error that knows this frame does not look at it
