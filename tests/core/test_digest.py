"""The digest from Python, against its definition in plain integers."""

from __future__ import annotations

import array
import doctest
import random
import sys
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gpupool
from gpupool import copy_with_digest, digest
from gpupool.errors import UsageError


def test_the_doctests_of_the_package() -> None:
    assert doctest.testmod(gpupool, raise_on_error=True).attempted >= 8
    for name in gpupool.__all__:
        assert getattr(gpupool, name).__doc__, name


MASK = (1 << 64) - 1


def mix(word: int, index: int) -> int:
    z = word ^ ((index + 1) * 0x9E3779B97F4A7C15 & MASK)
    for multiplier in (0xD2511F53, 0xCD9E8D57, 0x9E3779B1, 0x85EBCA77):
        high, low = divmod((z & 0xFFFFFFFF) * multiplier, 1 << 32)
        z = low << 32 | (high ^ z >> 32)
    return z


def defined(content: bytes, first_word: int = 0) -> int:
    words, rest = divmod(len(content), 8)
    total = sum(
        mix(int.from_bytes(content[8 * i : 8 * i + 8], "little"), first_word + i)
        for i in range(words)
    )
    if rest:
        last = content[8 * words :] + bytes(7 - rest) + bytes([rest])
        total += mix(int.from_bytes(last, "little"), MASK - first_word - words)
    return total & MASK


RUNS = st.binary(max_size=300) | st.builds(
    lambda piece, times: piece * times, st.binary(max_size=9), st.integers(0, 40)
)
FIRST_WORDS = st.integers(0, MASK >> 1) | st.integers(0, 1000)


@given(RUNS, FIRST_WORDS, st.integers(0, 8))
def test_it_is_what_is_defined_at_any_address(content: bytes, first_word: int, offset: int) -> None:
    view = memoryview(bytes(offset) + content)[offset:]
    assert digest(view, first_word) == defined(content, first_word)


@given(RUNS, st.data())
def test_parts_add_up(content: bytes, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(content) // 8))
    parts = digest(content[8 * cut :], first_word=cut) + digest(content[: 8 * cut])
    assert parts & MASK == digest(content)


@given(RUNS, RUNS)
def test_other_bytes_have_another_digest(one: bytes, other: bytes) -> None:
    assert (digest(one) == digest(other)) == (one == other)


@given(RUNS, FIRST_WORDS, st.integers(0, 8))
def test_a_copy_is_exact_and_has_the_digest(content: bytes, first_word: int, offset: int) -> None:
    target = bytearray(b"\xee" * (len(content) + 16))
    into = memoryview(target)[offset : offset + len(content)]
    assert copy_with_digest(into, content, first_word) == defined(content, first_word)
    assert target == b"\xee" * offset + content + b"\xee" * (16 - offset)


@pytest.mark.parametrize("offset", [0, 3, 8])
def test_a_large_copy(offset: int) -> None:
    content = random.Random(offset).randbytes((4 << 20) + 5)
    target = bytearray(len(content) + offset)
    sum_of_copy = copy_with_digest(memoryview(target)[offset:], content)
    assert target[offset:] == content
    assert sum_of_copy == digest(content)


def test_any_contiguous_object_will_do() -> None:
    numbers = array.array("d", [1.5, -2.0, 3.25])
    square = memoryview(numbers.tobytes()).cast("B", (4, 6))
    assert digest(numbers) == digest(square) == defined(numbers.tobytes())
    target = array.array("d", [0.0] * 3)
    copy_with_digest(target, numbers)
    assert target == numbers


def test_bytes_in_pieces_are_refused() -> None:
    content = bytearray(range(64))
    pieces = memoryview(content)[::2]
    with pytest.raises(BufferError):
        digest(pieces)
    with pytest.raises(BufferError):
        copy_with_digest(bytearray(32), pieces)
    with pytest.raises(BufferError):
        copy_with_digest(pieces, bytes(32))
    assert content == bytearray(range(64))
    pieces.release()
    content.append(1)  # no view of it is left behind


def test_a_destination_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(BufferError):
        copy_with_digest(bytes(8), bytes(8))


@pytest.mark.parametrize("sizes", [(7, 8), (8, 7), (0, 1)])
def test_unequal_sizes_are_refused(sizes: tuple[int, int]) -> None:
    target = bytearray(b"\xee" * sizes[0])
    with pytest.raises(UsageError, match=f"{sizes[0]} bytes, the source {sizes[1]}"):
        copy_with_digest(target, bytes(sizes[1]))
    assert target == b"\xee" * sizes[0]


@pytest.mark.parametrize("at", [0, 1, 31, 32, 33, 63, 64])
def test_only_overlap_is_refused(at: int) -> None:
    content = bytearray(range(96))
    view = memoryview(content)
    if abs(at - 32) < 32:
        with pytest.raises(UsageError, match="overlaps"):
            copy_with_digest(view[at : at + 32], view[32:64])
        assert content == bytearray(range(96))
    else:
        copy_with_digest(view[at : at + 32], view[32:64])
        assert content[at : at + 32] == bytes(range(32, 64))


def test_objects_without_bytes_and_numbers_out_of_range_are_refused() -> None:
    for wrong in (None, 3, "text", [1, 2]):
        with pytest.raises(TypeError):
            digest(wrong)  # type: ignore[arg-type]
    for wrong_number in (-1, 1 << 64):
        with pytest.raises(UsageError):
            digest(b"", wrong_number)
    assert digest(b"word", np.uint64(7)) == digest(b"word", 7)  # what counts as an integer is one


@pytest.mark.parametrize("call", ["digest", "copy"])
def test_other_threads_run_meanwhile(call: str) -> None:
    """With the interpreter's own switching as good as off, only the calls let others run."""
    content, target = bytearray(1 << 20), bytearray(1 << 20)
    asked, seen = threading.Event(), threading.Event()

    def work() -> None:
        for _ in range(5000):
            if asked.is_set():
                seen.set()
                return
            if call == "digest":
                digest(content)
            else:
                copy_with_digest(target, content)

    interval_s = sys.getswitchinterval()
    thread = threading.Thread(target=work)
    sys.setswitchinterval(1000.0)
    try:
        thread.start()
        asked.set()
        thread.join(60.0)
    finally:
        sys.setswitchinterval(interval_s)
    assert seen.is_set()
