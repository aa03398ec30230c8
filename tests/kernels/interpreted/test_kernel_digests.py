"""The digest as a kernel, against the core's and the one in torch."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from kernel_worlds import settings_for

from gpupool import _core
from gpupool.errors import UsageError
from gpupool.kernels import reference
from gpupool.kernels.digest import WORDS_AT_ONCE, digest_runs, unsigned

FIRST_WORDS = st.sampled_from([0, 0, 1, 1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1]) | (
    st.integers(0, (1 << 64) - 1)
)
# Some of more than one program, and of more than one turn of a program.
SIZES = st.integers(0, 70) | st.sampled_from([8 * WORDS_AT_ONCE, 8 * WORDS_AT_ONCE * 3 + 13])


@settings_for(250)
@given(
    st.lists(st.tuples(SIZES, FIRST_WORDS, st.integers(0, 16)), max_size=2),
    st.integers(0, 1 << 32),
    st.integers(1, 6),
)
def test_it_is_the_cores(
    cases: Counter[str], drawn: list[tuple[int, int, int]], seed: int, programs: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    size_of_all = sum(size + 16 for size, _, _ in drawn) + 1
    memory = torch.randint(0, 256, (size_of_all,), dtype=torch.uint8, generator=generator)
    before, at, runs = memory.clone(), 0, []
    for size, _, offset in drawn:
        runs.append(memory[at + offset : at + offset + size])
        at += size + offset
    firsts = [first for _, first, _ in drawn]
    given_as = [
        run if index % 2 else (run.data_ptr(), run.nbytes) for index, run in enumerate(runs)
    ]
    found = unsigned(digest_runs(given_as, "cpu", first_words=firsts, programs=programs))
    assert found == [
        _core.digest(bytes(run.tolist()), first) for run, first in zip(runs, firsts, strict=True)
    ]
    assert found == [reference.digest(run, first) for run, first in zip(runs, firsts, strict=True)]
    assert torch.equal(memory, before)
    cases["digest"] += 1


def test_parts_add_up() -> None:
    memory = torch.arange(3000, dtype=torch.int32).view(torch.uint8)[:-3]
    parts = [memory[:80], memory[80:4088], memory[4088:]]
    found = unsigned(digest_runs(parts, "cpu", first_words=[0, 10, 511]))
    assert sum(found) % (1 << 64) == unsigned(digest_runs([memory], "cpu"))[0]


@pytest.mark.parametrize(
    ("runs", "first_words", "message"),
    [
        ([(0, -1)], None, "not within 64-bit"),
        ([(-8, 8)], None, "not within 64-bit"),
        ([((1 << 63) - 8, 8)], None, "not within 64-bit"),
        ([(0.5, 8)], None, "whole numbers"),
        ([(0, 8)], [0, 1], "as many first words"),
        ([(0, 0)], [-1], "first word"),
        ([(0, 0)], [1 << 64], "first word"),
        ([torch.zeros(8, 2)[:, 0]], None, "gaps"),
    ],
)
def test_what_cannot_be_digested_is_refused(runs, first_words, message) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UsageError, match=message):
        digest_runs(runs, "cpu", first_words=first_words)
