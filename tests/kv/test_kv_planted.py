"""Bugs planted in the store, the cache and what lies between them: random lives must notice each.

A text that has changed fails here until the list says what the bug is in the code as it is now.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
from kv_life import Life
from kv_world import Modules

from gpupool.errors import GpupoolError
from gpupool.kv import cache, digests, mover, moves, store

SEEDS = 60
STEPS = 60

# module, text, text with the bug
BUGS: dict[str, tuple[ModuleType, str, str]] = {
    # (a) what a step touches is there before it
    "a step does not wait": (
        cache,
        "                if self._moves.done >= number:\n                    break",
        "                break",
    ),
    "what a step needs is not brought": (
        cache,
        "self._bring(wanted[self._state[wanted] == State.AWAY])",
        "pass",
    ),
    "a block on its way counts as there": (
        cache,
        "            self._arrives[blocks] = move.number\n",
        "",
    ),
    # (b) nothing is in flight when the memory goes
    "a swap-out does not drain": (
        cache,
        "            number = self._moves.last\n        self._wait(number)",
        "            number = self._moves.last\n        self._moves._moves.clear()",
    ),
    "a wait ends too much": (moves, "return move.mark, move.number", "return move.mark, self.last"),
    # (c) nothing arrives late
    "a late restore meets a write": (cache, "        self.require(wanted)\n", ""),
    "rows are freed while a move touches them": (
        cache,
        "self._touched[held] > self._moves.done",
        "self._touched[held] < 0",
    ),
    "held rows are freed too early": (moves, "last <= self.done", "last <= self.done + 1"),
    "held rows are never freed": (moves, "self._free(rows)", "pass"),
    # all or nothing
    "some rows are reserved": (
        store,
        "                self._make_room(len(blocks))\n",
        "                for row in range(len(blocks)):\n"
        "                    self._make_room(1)\n"
        "                    self._live += 1\n"
        "                self._live -= len(blocks)\n",
    ),
    "memory for some of the rows stays": (
        store,
        "            except BaseException:\n                self._return_idle()\n",
        "            except BaseException:\n",
    ),
    "a budget is a slab too large": (store, "> self._slabs_max:", "> self._slabs_max + 1:"),
    "a slab given back is kept": (store, "for _ in range(slabs):", "for _ in range(slabs - 1):"),
    # saved is what has arrived
    "saved before the wait": (
        cache,
        "State.COMING if to_device else State.SAVING",
        "State.COMING if to_device else State.SAVED",
    ),
    "a save does not wait": (
        cache,
        "                if len(blocks):\n                    self._wait(number)\n",
        "",
    ),
    "a failed save has saved": (
        cache,
        "self._state[self._state == State.SAVING] = State.WRITTEN",
        "self._state[self._state == State.SAVING] = State.SAVED",
    ),
    "saved blocks are saved again": (
        cache,
        "np.flatnonzero(self._state == State.WRITTEN)\n                    for",
        "np.flatnonzero((self._state == State.WRITTEN) | (self._state == State.SAVED))\n"
        "                    for",
    ),
    "only some are saved": (cache, "for chunk in in_chunks(blocks, self._chunk):\n"
        "                        self._move", "for chunk in [blocks[: self._chunk]]:\n"
        "                        self._move"),
    "what an error left counts as arrived": (moves, "if move.mark is not None:\n", "if True:\n"),
    "what went is thought to be there": (
        cache,
        "self._state[self._state == State.SAVED] = State.AWAY",
        "self._state[self._state == State.SAVED] = State.SAVED",
    ),
    "unbacked blocks go": (
        cache,
        "self._reserve(self._unbacked())\n                    blocks = ",
        "blocks = ",
    ),
    # what comes back is what was saved
    "no block is held against its digest": (
        digests,
        "is_right = digests[counts] == self._saved[blocks]",
        "is_right = digests[counts] == digests[counts]",
    ),
    "of a save no digest is kept": (
        digests,
        "self._saved[digesting.blocks] = self._digests(digesting)",
        "self._digests(digesting)",
    ),
    "what came wrong counts as there": (cache, "self._state[wrong] = State.AWAY", "pass"),
    "what came wrong once is damaged": (
        digests,
        "self._damaged[wrong] = self._again[wrong]",
        "self._damaged[wrong] = True",
    ),
    "damage goes before its block does": (
        cache,
        "                self._digests.check(wanted, self._identity)\n",
        "                self._digests.check(wanted[1:], self._identity)\n"
        "                wanted = self._digests.sound(wanted)\n",
    ),
    "a forgotten block stays damaged": (cache, "            self._digests.forget(unwanted)\n", ""),
    "damage is for ever": (digests, "        self._again[:] = self._damaged[:] = False\n", ""),
    "digests are made before the copy": (
        cache,
        "            self._mover.to_device(blocks, rows)\n",
        "            early = self._digests.begin(blocks, self._mover.stream, to_device=True)\n"
        "            self._mover.to_device(blocks, rows)\n"
        "            move.mark = self._mover.mark()\n"
        "            move.digesting = early\n"
        "            self._state[blocks] = State.COMING\n"
        "            return\n",
    ),
    "digests are not waited for": (
        cache,
        "        move.digesting = self._digests.begin("
        "blocks, self._mover.stream, to_device=to_device)\n"
        "        move.mark = self._mover.mark()\n",
        "        move.mark = self._mover.mark()\n"
        "        move.digesting = self._digests.begin("
        "blocks, self._mover.stream, to_device=to_device)\n",
    ),
    # where things are
    "rows are mixed up": (mover, "rows[:, None] + self._places", "rows[::-1, None] + self._places"),
    "pieces are mixed up": (mover, "layout.row_offsets, np", "layout.row_offsets[::-1], np"),
    "a row is never freed": (store, "self._handles[blocks] = 0\n", "pass\n"),
}  # fmt: skip


@contextmanager
def planted(name: str) -> Iterator[Modules]:
    module, text, bug = BUGS[name]
    source = str(module.__spec__ and module.__spec__.loader.get_source(module.__name__))  # type: ignore[union-attr]
    assert source.count(text) == 1, f"{name}: the text must occur once; say what the bug is now"
    changed = {cache: cache, digests: digests, mover: mover, moves: moves, store: store}
    made: list[str] = []
    for of in {module, cache}:  # the cache has the moves' names
        copy = ModuleType(f"planted_{of.__name__}")
        sys.modules[copy.__name__] = copy
        made.append(copy.__name__)
        plain = str(of.__spec__ and of.__spec__.loader.get_source(of.__name__))  # type: ignore[union-attr]
        code = plain.replace(text, bug) if of is module else plain
        exec(compile(code, copy.__name__, "exec"), copy.__dict__)
        changed[of] = copy
    changed[cache].MoveList = changed[moves].MoveList  # type: ignore[attr-defined]
    try:
        yield Modules(changed[cache], changed[digests], changed[mover], changed[store])
    finally:
        for module_name in made:
            del sys.modules[module_name]


@pytest.mark.parametrize("name", BUGS)
def test_a_planted_bug_is_noticed(name: str) -> None:
    with planted(name) as modules:
        for seed in range(SEEDS):
            try:
                Life(seed, modules).run(STEPS)
            except (AssertionError, GpupoolError):
                return
    pytest.fail(f"{SEEDS} lives saw nothing of it")


def test_without_a_bug_there_is_nothing_to_notice() -> None:
    BUGS["canary"] = (cache, "unwanted = as_blocks", "unwanted  = as_blocks")
    try:
        with planted("canary") as modules:
            for seed in range(SEEDS):
                Life(seed, modules).run(STEPS)
    finally:
        del BUGS["canary"]
