"""An embedded pool with less host memory than its models' images need: some go to files."""

from __future__ import annotations

import contextlib
import doctest
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from embedded_members import (
    HELD_BYTES,
    IMAGE_BYTES,
    PAGE_BYTES,
    PATIENCE_S,
    Member,
    beside,
    closed_at_the_end,
    parked,
    pool_of,
    until,
)

import gpupool.regions
from gpupool import Pool
from gpupool.errors import LeaseTimeoutError, RefusedError, SwapCancelledError, UsageError
from gpupool.residency import adding


def test_the_doctests_of_regions() -> None:
    assert doctest.testmod(gpupool.regions, raise_on_error=True).attempted >= 9


def test_models_that_do_not_fit_host_memory_take_turns(pool: Pool, folder: Path) -> None:
    models = [Member(pool, name) for name in "abc"]
    assert pool.statistics().host_bytes == 2 * HELD_BYTES
    for _ in range(3):
        for member in models:
            member.check()
            assert pool.statistics().host_bytes <= 2 * HELD_BYTES
            assert parked(*models) and not member.is_parked
            assert list(folder.iterdir()) == []
    a = models[0].statistics
    assert a.parks >= a.read_backs >= 2
    assert a.read_back_bytes == a.read_backs * IMAGE_BYTES
    assert a.read_back_s > 0
    assert a.parked_file_bytes == HELD_BYTES
    assert a.parked_bytes in (0, IMAGE_BYTES)
    assert folder.stat().st_mode & 0o777 == 0o700


def test_without_a_budget_nothing_is_parked(tmp_path: Path) -> None:
    with closed_at_the_end(pool_of(None, images=None)) as pool:
        models = [Member(pool, name) for name in "abcd"]
        for member in models:
            member.check()
        assert parked(*models) == []
        assert pool.statistics().host_bytes == 4 * HELD_BYTES
        assert pool.statistics().models[0].parks == 0
        pool.slabs([4096], slab_bytes=4096, pinned=True)


def test_a_budget_alone_refuses_what_does_not_fit() -> None:
    with closed_at_the_end(pool_of(None)) as pool:
        a, b = Member(pool, "a"), Member(pool, "b")
        said = rf"{HELD_BYTES} bytes of host memory were asked for and 0 of the host budget are "
        with pytest.raises(RefusedError, match=said + "free: raise the host budget"):
            Member(pool, "c")
        a.check()
        b.model.close()
        Member(pool, "c").check()


def test_what_can_never_fit_is_refused_and_has_changed_nothing(pool: Pool) -> None:
    a = Member(pool, "a")
    before = pool.statistics().host_bytes
    model = pool.model("large", lease_timeout_s=1e9)
    with pytest.raises(RefusedError) as caught:
        model.region("weights", 4 * PAGE_BYTES)
    assert str(caught.value) == (
        f"{4 * PAGE_BYTES} bytes of host memory were asked for and {HELD_BYTES} of the host budget "
        "are free: raise the host budget"
    )
    assert not a.is_parked
    model.region("weights", 2 * PAGE_BYTES)  # beside which there is no room for as much again
    assert a.is_parked
    with pytest.raises(RefusedError, match=r"no other model can park its images in .*: raise the"):
        model.region("weights", 2 * PAGE_BYTES)
    assert pool.statistics().host_bytes == 2 * PAGE_BYTES > before
    model.close()
    a.check()


def test_a_parked_model_that_gains_a_region_waits_no_longer_than_it_was_told(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b = Member(pool, "a"), Member(pool, "b")
    small = pool.model("small")
    small.region("weights", 4096)
    assert parked(a, b) == ["a"]
    session, now_s, limits_s = a.model._session, [0.0], []
    ask = session.host_memories

    def slowly(sizes: Any, timeout_s: float, *args: Any, **more: Any) -> Any:
        limits_s.append(timeout_s)
        now_s[0] += PATIENCE_S / 4
        return ask(sizes, timeout_s, *args, **more)

    monkeypatch.setattr(session, "host_memories", slowly)
    monkeypatch.setattr(adding, "time", SimpleNamespace(monotonic=lambda: now_s[0]))
    a.model.region("runtime", 4096)
    assert limits_s == [pytest.approx(PATIENCE_S, abs=1), PATIENCE_S * 3 / 4]
    a.check()


def test_the_one_used_least_recently_goes(pool: Pool) -> None:
    a, b = Member(pool, "a"), Member(pool, "b")
    a.check()
    b.check()
    with a.model.resident():
        pass
    c = Member(pool, "c")
    assert parked(a, b, c) == ["b"]
    assert b.region.image_bytes == 0
    assert b.model.parked_bytes == IMAGE_BYTES


def test_what_is_looked_at_or_pinned_stays(pool: Pool) -> None:
    a, b = Member(pool, "a"), Member(pool, "b")
    with memoryview(a.region.image()) as view:  # type: ignore[arg-type]
        c = Member(pool, "c")
        assert parked(a, b, c) == ["b"]
        assert bytes(view[:9]) == a.due[:9].tobytes()
    with pytest.raises(UsageError, match=r"parked in a file: look at it within Model\.pinned"):
        b.region.image()
    with b.model.pinned():
        assert np.array_equal(np.asarray(b.region.image()), b.due)
        (other,) = parked(a, c)
        rest = {"a": a, "c": c}
        asking, staying = rest[other], next(m for m in (a, c) if m.name != other)
        with staying.model.pinned(), pytest.raises(LeaseTimeoutError), asking.model.pinned(0.05):
            raise AssertionError("two of three are pinned")
    asking.check()


def test_a_model_in_a_step_is_asked_last_and_its_step_is_waited_for(pool: Pool) -> None:
    a, b = Member(pool, "a"), Member(pool, "b")
    b.check()
    a.model.gate.open_step()
    c = Member(pool, "c")
    assert parked(a, b, c) == ["b"]
    with c.model.pinned(), beside(b.check) as found:  # so that all that is left is the step's
        until(lambda: a.model.gate._revokes.count > 0)
        a.check_inside()
        assert not found
        a.model.gate.close_step()
    assert found == [None]
    assert parked(a, b, c) == ["a"]


def test_a_thread_in_a_step_is_told_that_only_its_own_model_could_go(folder: Path) -> None:
    with closed_at_the_end(pool_of(folder, images=1), folder) as pool:
        a, b = Member(pool, "a"), Member(pool, "b")
        said = r"no other model can park .* \(a thread cannot give up a model in whose step it is\)"
        with b.model.resident():
            for _ in range(2):
                with pytest.raises(RefusedError, match=said):
                    a.check()
            b.check_inside()
        a.check()
        assert parked(a, b) == ["b"]


def test_what_is_fetched_ahead_comes_from_the_file(pool: Pool) -> None:
    a, b = Member(pool, "a"), Member(pool, "b")
    c = Member(pool, "c")
    assert parked(a, b, c) == ["a"]
    assert a.model.prefetch()
    assert not a.is_parked
    assert parked(b, c) == ["b"]
    a.check()


def test_what_is_fetched_ahead_has_nobody_leave_who_works(pool: Pool) -> None:
    a, b, c = (Member(pool, name) for name in "abc")
    for member in (b, c):
        member.check()
        member.model.gate.set_idle(False)
    with pytest.raises(LeaseTimeoutError):
        a.model.prefetch(timeout_s=0.05)
    with beside(lambda: a.model.prefetch()) as found:
        until(lambda: pool._arbiter.host._line.first is not None)
        with a.model.gate.out():  # who would change it ends that
            pass
    assert isinstance(found[0], SwapCancelledError)
    with beside(lambda: a.model.prefetch()) as found:
        until(lambda: pool._arbiter.host._line.first is not None)
        a.check()  # who needs it hurries it, and then others leave
    assert found == [True]


def test_the_limit_on_files_holds(folder: Path) -> None:
    with closed_at_the_end(pool_of(folder, limit_bytes=2 * HELD_BYTES), folder) as pool:
        models = [Member(pool, name) for name in "abc"]
        for _ in range(2):
            for member in models:
                member.check()
                files = [model.parked_file_bytes for model in pool.statistics().models]
                assert sum(files) <= 2 * HELD_BYTES
        Member(pool, "d")
        with pytest.raises(RefusedError, match="no other model can park its images in"):
            Member(pool, "e")


def growing(pool: Pool, size_bytes: int) -> Member:
    """A model that may have three pages."""
    member = Member(pool, "a")
    member.model.remove_region(member.region)
    member.region = member.model.region("weights", size_bytes, capacity_bytes=3 * PAGE_BYTES)
    member.region.adopt_image()
    return member


@pytest.mark.parametrize("resident", [False, True])
def test_the_limit_on_files_holds_for_a_model_that_grew(folder: Path, resident: bool) -> None:
    with closed_at_the_end(pool_of(folder, limit_bytes=PAGE_BYTES), folder) as pool:
        a = growing(pool, PAGE_BYTES)
        a.model.declare()
        with a.model.resident() if resident else contextlib.nullcontext():
            a.model.resize(a.region, 3 * PAGE_BYTES)
        a.model.swap_out()
        a.region.adopt_image()
        with pytest.raises(RefusedError, match="no other model can park"):
            pool.model("b").region("weights", PAGE_BYTES)
        assert a.statistics.parked_file_bytes == 0
        with a.model.resident():
            pass


def test_a_model_that_grows_as_it_is_asked_to_park_is_asked_anew(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closed_at_the_end(pool_of(folder, limit_bytes=PAGE_BYTES), folder) as pool:
        a = growing(pool, 4096)
        gate = a.model.gate
        park, files = gate.park, []

        def park_late(deadline_s: float) -> None:
            if not files:
                a.model.resize(a.region, PAGE_BYTES)
                a.region.adopt_image()
            park(deadline_s)
            files.append(a.statistics.parked_file_bytes)

        monkeypatch.setattr(gate, "park", park_late)
        b = Member(pool, "b")
        with b.model.pinned():
            Member(pool, "c")
        assert files == [0, PAGE_BYTES]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"host_budget_bytes": 0}, "host_budget_bytes=0: it must be a whole number"),
        ({"host_budget_bytes": "much"}, "host_budget_bytes='much'"),
        ({"parking_folder": "."}, "parking_folder needs host_budget_bytes"),
        ({"host_budget_bytes": 1, "parking_limit_bytes": 1}, "needs a parking_folder"),
        (
            {"host_budget_bytes": 1, "parking_folder": ".", "parking_limit_bytes": -1},
            "parking_limit_bytes=-1",
        ),
    ],
)
def test_bad_arguments_are_refused_at_the_door(arguments: dict[str, object], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Pool(device="host", budget_bytes=PAGE_BYTES, page_bytes=PAGE_BYTES, **arguments)  # type: ignore[arg-type]


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(UsageError, match="must belong to this user"):
        pool_of(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        pool_of(tmp_path / "file")


def test_pinned_slabs_have_no_account(pool: Pool) -> None:
    with pytest.raises(UsageError, match="pinned slabs are on no account"):
        pool.slabs([4096], pinned=True)
