"""Bytes that say whose they are and of which generation, in all memory of a model."""

from __future__ import annotations

import ctypes
import hashlib

from gpupool._core import Region, Tag
from gpupool.model import Model


def pattern(owner: str, generation: int, place: str, size_bytes: int) -> bytes:
    """Bytes unlike zeros and unlike those of any other owner, generation or place."""
    word = hashlib.sha256(f"{owner}/{generation}/{place}".encode()).digest()
    return (word * (size_bytes // len(word) + 1))[:size_bytes]


class Stamps:
    """What the memory of a model must hold, whether it has been out meanwhile or not."""

    def __init__(self, model: Model, owner: str) -> None:
        self._model = model
        self._owner = owner
        self._written: dict[Region, bytes] = {}
        self._saved: dict[Region, bytes] = {}
        self._written_in = -1  # how many swap-ins there had been
        for tag in Tag:
            for region in model.regions(tag.name):
                self._saved[region] = bytes(region.span_bytes)

    def forget(self, region: Region) -> None:
        """It is the model's no more."""
        del self._saved[region], self._written[region]

    def adopt(self, generation: int) -> None:
        """Fill the images of the weights, as loading a model does; it must be out."""
        for region in self._model.regions("weights"):
            data = pattern(self._owner, generation, "weights", region.bytes)
            memoryview(region.image())[:] = data  # type: ignore[arg-type]
            region.adopt_image()
            self._saved[region] = data.ljust(region.span_bytes, b"\0")

    def write(self, generation: int) -> None:
        """Write everywhere, padding included; the model must be resident.

        Of a KV cache only three quarters are said to be written: the rest reads as zeros once the
        model has been out, as do workspaces and padding.
        """
        for region in self._saved:
            data = pattern(self._owner, generation, region.tag.name, region.span_bytes)
            ctypes.memmove(region.address, data, len(data))
            self._written[region] = data
            kept = region.bytes
            if region.tag is Tag.workspace:
                kept = 0
            elif region.tag is Tag.kv_cache:
                kept = region.bytes * 3 // 4
            if region.tag in (Tag.weights, Tag.kv_cache):
                region.mark_written([(0, kept)])
            self._saved[region] = data[:kept].ljust(region.span_bytes, b"\0")
        self._written_in = self._model.swap_ins

    def check(self) -> None:
        """Every byte of the memory is what it should be; the model must be resident."""
        still_in = self._written_in == self._model.swap_ins
        for region, due in (self._written if still_in else self._saved).items():
            found = ctypes.string_at(region.address, region.span_bytes)
            if found != due:
                at = next(i for i, byte in enumerate(found) if byte != due[i])
                raise AssertionError(
                    f"{self._model.name}: byte {at} of {region.tag.name} is not its own: "
                    f"{found[at : at + 32].hex()} for {due[at : at + 32].hex()}"
                )
