"""Calls over many mappings at once, and other questions that a return code answers."""

from __future__ import annotations

import os
from collections.abc import Callable
from ctypes import byref, c_size_t
from typing import Any

from gpu_probe.device import MIB, Device, Settings
from gpu_probe.driver import NOT_INITIALIZED
from gpu_probe.timing import timed_s

PAGES = 64


def run(settings: Settings) -> dict[str, Any]:
    """What each is answered, and whether the bytes of what stayed are still there."""
    device = Device(settings)
    calls = _Calls(device, min(PAGES, max(8, settings.total_bytes // 8 // MIB)))
    for question in (
        calls.one_access_behind_others,
        calls.one_access_over_old_and_new,
        calls.unmap_of_the_last,
        calls.others_mapped_behind,
        calls.access_over_what_is_not_mapped,
        calls.unmap_of_part_of_a_mapping,
        calls.one_unmap_over_a_gap,
        calls.one_unmap_over_many,
        calls.a_call_in_a_forked_child,
    ):
        question()
    return calls.answers


class _Calls:
    """One reservation with room for all pages, and a question after the other about it."""

    def __init__(self, device: Device, count: int) -> None:
        self._device, self._half = device, count // 2
        self._page_bytes = max(2 * MIB, device.granularity())
        self._pages = [device.create(self._page_bytes) for _ in range(count)]
        self._address = device.reserve(count * self._page_bytes)
        self._stream = device.stream()
        self.answers: dict[str, Any] = {"mappings": count}
        self._map(0, self._half)
        device.access(self._address, self._half * self._page_bytes)
        self._fill(0, self._half)

    def one_access_behind_others(self) -> None:
        """Of pages just mapped, behind others that stay mapped."""
        self._map(self._half, len(self._pages))
        at = self._place(self._half)
        size = self._half * self._page_bytes
        self._asked(
            "one_access_to_new_pages_behind_others", lambda: self._device.access_code(at, size)
        )
        self._fill(self._half, len(self._pages))

    def one_access_over_old_and_new(self) -> None:
        """A run some of which has access already."""
        self._asked(
            "one_access_over_all_again",
            lambda: self._device.access_code(self._address, self._bytes(len(self._pages))),
        )

    def unmap_of_the_last(self) -> None:
        """While the first stay."""
        at, size = self._place(self._half), self._bytes(self._half)
        self._asked("one_unmap_of_the_last_half", lambda: self._unmap(at, size))

    def others_mapped_behind(self) -> None:
        """In another order than before."""
        for index in range(self._half, len(self._pages)):
            page = self._pages[len(self._pages) + self._half - 1 - index]
            self._device.map(self._place(index), self._page_bytes, page)
        at, size = self._place(self._half), self._bytes(self._half)
        self._asked(
            "one_access_to_others_in_their_place", lambda: self._device.access_code(at, size)
        )

    def access_over_what_is_not_mapped(self) -> None:
        """After the last page is gone."""
        last = len(self._pages) - 1
        self._device.unmap(self._place(last), self._page_bytes)
        self._asked(
            "one_access_over_a_gap_at_the_end",
            lambda: self._device.access_code(self._place(last - 1), self._bytes(2)),
        )

    def unmap_of_part_of_a_mapping(self) -> None:
        """Which cuda.h does not allow."""
        half = self._page_bytes // 2
        self._asked("unmap_of_half_a_page", lambda: self._unmap(self._address, half), looks=False)

    def one_unmap_over_a_gap(self) -> None:
        """Over the last page, which is there, and the place of one that is not."""
        last = len(self._pages) - 1
        self._asked(
            "one_unmap_over_a_gap_at_the_end",
            lambda: self._unmap(self._place(last - 1), self._bytes(2)),
        )

    def one_unmap_over_many(self) -> None:
        """Which the core rests on. What is mapped here is whole again before."""
        count = self._half
        self._asked(
            f"one_unmap_over_{count}_mappings",
            lambda: self._unmap(self._address, self._bytes(count)),
            looks=False,
        )

    def a_call_in_a_forked_child(self) -> None:
        """The conformance suite expects CUDA_ERROR_NOT_INITIALIZED."""
        child = os.fork()
        if child == 0:
            free, total = c_size_t(), c_size_t()
            code = self._device.cu.code("cuMemGetInfo", byref(free), byref(total))
            os._exit(0 if code == NOT_INITIALIZED else 1)
        _, status = os.waitpid(child, 0)
        self.answers["a_call_in_a_forked_child"] = {
            0: "CUDA_ERROR_NOT_INITIALIZED",
            1: "another answer",
        }.get(os.waitstatus_to_exitcode(status), f"ended with {os.waitstatus_to_exitcode(status)}")

    def _asked(self, name: str, call: Callable[[], int], looks: bool = True) -> None:
        code = 0

        def make() -> None:
            nonlocal code
            code = call()

        taken_ms = 1e3 * timed_s(make)
        self.answers[name] = {"answer": self._device.cu.name(code), "ms": taken_ms}
        if looks:
            self.answers[name]["first_half_is_whole"] = self._is_whole(0, self._half)

    def _unmap(self, address: int, size: int) -> int:
        return self._device.cu.code("cuMemUnmap", address, size)

    def _place(self, index: int) -> int:
        return self._address + index * self._page_bytes

    def _bytes(self, pages: int) -> int:
        return pages * self._page_bytes

    def _map(self, begin: int, end: int) -> None:
        for index in range(begin, end):
            self._device.map(self._place(index), self._page_bytes, self._pages[index])

    def _fill(self, begin: int, end: int) -> None:
        for index in range(begin, end):
            place = self._place(index)
            self._device.cu("cuMemsetD8Async", place, index + 1, self._page_bytes, self._stream)
        self._device.wait(self._stream)

    def _is_whole(self, begin: int, end: int) -> bool:
        return all(
            self._device.bytes_of(self._place(index), self._page_bytes).count(index + 1)
            == self._page_bytes
            for index in range(begin, end)
        )
