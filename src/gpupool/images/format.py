"""What a file of images is: safetensors, aligned for direct reads, with digests of every chunk.

The data are the bytes of a model's regions one behind the other, each from a multiple of 4096 bytes
of the file on. So that any reader of safetensors finds the tensors by name, each run of bytes that
is one contiguous tensor of a dtype that safetensors knows is an entry of that dtype and shape;
storages that several tensors share are entries of bytes, and so is what lies between.
``__metadata__`` has under ``gpupool`` the manifest, and under ``digest`` that of the header, with
zeros in its own place.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterable

import msgspec

from gpupool._core import DIGEST_PIECE_BYTES
from gpupool.errors import ImageDamagedError

FORMAT = 2
ALIGNMENT_BYTES = 4096  # of direct reads
CHUNK_BYTES = DIGEST_PIECE_BYTES  # that a digest is of
HEADER_BYTES_MAX = 100 << 20  # that readers of safetensors put up with
_LENGTH = struct.Struct("<Q")
_NO_DIGEST = "0" * 64
DTYPES = {  # torch's names, and those of safetensors
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2",
    "int16": "I16",
    "float16": "F16",
    "bfloat16": "BF16",
    "int32": "I32",
    "float32": "F32",
    "int64": "I64",
    "float64": "F64",
}


class Place(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor of a module, and where in its part its first element is."""

    name: str
    part: int
    """By its number in the file; -1 for a tensor without elements, which is in none."""
    offset: int
    """In bytes."""
    dtype: str
    shape: list[int]
    stride: list[int]
    """In elements."""
    item_bytes: int
    kind: str = "attribute"
    """``parameter``, ``buffer``, ``volatile`` (a buffer in no state dict) or ``attribute``."""
    type: str = ""
    """Of the Python object."""
    same_as: str = ""
    """The first name of the same tensor object; its own where it is the first."""
    values: dict[str, str] = {}
    """Attributes of the tensor that are plain values, as JSON."""
    others: list[str] = []
    """Names of those that are not."""

    @property
    def extent_bytes(self) -> int:
        """From its first element to behind its last."""
        if 0 in self.shape:
            return 0
        last = sum((n - 1) * step for n, step in zip(self.shape, self.stride, strict=True))
        return (last + 1) * self.item_bytes


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The bytes of one region: its tag, its length, and a digest of each chunk."""

    tag: str
    size_bytes: int
    digests: str
    """Of 16 hexadecimal digits each."""

    def digest_of(self, chunk: int) -> int:
        """Of a chunk by its number."""
        return int(self.digests[16 * chunk : 16 * (chunk + 1)], 16)

    def all_digests(self) -> list[int]:
        """Of every chunk, in order."""
        return [self.digest_of(chunk) for chunk in range(len(self.digests) // 16)]


class Made(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A module as it is made, before it has weights: what an image of it can be loaded into."""

    layouts: dict[str, str]
    """Of each tensor, by its name."""
    values: dict[str, dict[str, str]]
    """Plain Python attributes of each submodule, as JSON."""
    elsewhere: dict[str, str]
    """What tensors had that are no attribute of a submodule, but in its containers and objects."""


class Shape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What besides its tensors makes a module what it became by loading and processing."""

    made: dict[str, str] = {}
    """``Made.layouts`` of the module that it became from."""
    nothing: dict[str, str] = {}
    """Parameters and buffers that are None, with their kinds."""
    values: dict[str, dict[str, str]] = {}
    """Plain Python attributes of each submodule that are not what they were, as JSON."""
    prints: dict[str, str] = {}
    """A digest of the attributes of each submodule: names, types and plain values."""


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a file holds, and whose it is."""

    format: int
    chunk_bytes: int
    key: dict[str, str]
    parts: list[Part]
    places: list[Place]
    shape: Shape


def padded(size_bytes: int) -> int:
    """Up to the next multiple of the alignment."""
    return -(-size_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def starts(manifest: Manifest) -> list[int]:
    """Where each part begins, from the end of the header on; behind them, where the file ends."""
    found = [0]
    for part in manifest.parts:
        found.append(found[-1] + padded(part.size_bytes))
    return found


def header_of(manifest: Manifest) -> bytes:
    """The header of the file and the length in front of it."""
    content: dict[str, object] = {
        "__metadata__": {
            "digest": _NO_DIGEST,
            "gpupool": msgspec.json.encode(manifest).decode(),
        }
    }
    begins = starts(manifest)
    for number, part in enumerate(manifest.parts):
        places = [place for place in manifest.places if place.part == number]
        content |= _entries(f"{part.tag}.{number}", begins[number], begins[number + 1], places)
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (padded(len(text) + _LENGTH.size) - _LENGTH.size - len(text))
    sealed = text.replace(_NO_DIGEST.encode(), _digest(text).encode(), 1)
    return _LENGTH.pack(len(sealed)) + sealed


def read_header(name: str, content: bytes) -> Manifest:
    """The manifest of a header and the length in front of it. Raises ImageDamagedError."""
    text = content[_LENGTH.size :]
    try:
        metadata = json.loads(text)["__metadata__"]
        said = str(metadata["digest"])
        zeroed = text.replace(said.encode(), _NO_DIGEST.encode(), 1) if len(said) == 64 else b""
        if said != _digest(zeroed):
            raise ImageDamagedError(f"{name}: its header is not what was written")
        manifest = msgspec.json.decode(metadata["gpupool"], type=Manifest)
    except (KeyError, TypeError, ValueError, msgspec.DecodeError) as error:
        raise ImageDamagedError(f"{name} is no file of images: {error}") from None
    if (manifest.format, manifest.chunk_bytes) != (FORMAT, CHUNK_BYTES):
        raise ImageDamagedError(f"{name} is of format {manifest.format}, and {FORMAT} is read here")
    return manifest


def header_bytes(name: str, begin: bytes) -> int:
    """How long the header is with the length in front, of whose file this is the begin."""
    if len(begin) < _LENGTH.size:
        raise ImageDamagedError(f"{name} ends after {len(begin)} bytes")
    (length,) = _LENGTH.unpack(begin[: _LENGTH.size])
    total = int(length) + _LENGTH.size
    if total % ALIGNMENT_BYTES or total > HEADER_BYTES_MAX:
        raise ImageDamagedError(f"{name} is no file of images: its header has {length} bytes")
    return total


def _digest(text: bytes) -> str:
    return hashlib.blake2b(text, digest_size=32).hexdigest()


def _entries(prefix: str, begin: int, end: int, places: Iterable[Place]) -> dict[str, object]:
    """All bytes of a part, without a gap: tensors where they are alone, and bytes."""
    entries: dict[str, object] = {}
    at = begin

    def add(name: str, dtype: str, shape: list[int], until: int) -> None:
        nonlocal at
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, until]}
        at = until

    for run in _runs(places):
        if begin + run[0].offset > at:
            add(f"{prefix}.{at - begin}", "U8", [begin + run[0].offset - at], begin + run[0].offset)
        until = begin + max(place.offset + place.extent_bytes for place in run)
        known = DTYPES.get(run[0].dtype)
        if len(run) == 1 and known is not None and _is_contiguous(run[0]):
            add(run[0].name, known, run[0].shape, until)
        else:
            add(f"{prefix}.{at - begin}", "U8", [until - at], until)
    if end > at:
        add(f"{prefix}.{at - begin}", "U8", [end - at], end)
    return entries


def _runs(places: Iterable[Place]) -> list[list[Place]]:
    """Places that overlap are together."""
    runs: list[list[Place]] = []
    end = 0
    for place in sorted(places, key=lambda place: (place.offset, place.name)):
        if runs and place.offset < end:
            runs[-1].append(place)
        else:
            runs.append([place])
        end = max(end, place.offset + place.extent_bytes)
    return runs


def _is_contiguous(place: Place) -> bool:
    step = 1
    for n, stride in zip(reversed(place.shape), reversed(place.stride), strict=True):
        if n != 1 and stride != step:
            return False
        step *= n
    return True
