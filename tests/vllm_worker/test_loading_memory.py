"""Room in the pool that weights are loaded into: the loader alone uses it, and it goes back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from loading_engine import (  # noqa: E402
    BUDGET_BYTES,
    COUNT,
    PAGE_BYTES,
    ROOM_BYTES,
    WARM_BYTES,
    Loader,
    Loading,
    Pooled,
    Run,
    on_a_gpu,
)
from vllm.model_executor.model_loader import register_model_loader  # noqa: E402

from gpupool import Model  # noqa: E402
from gpupool.adopt import adopt  # noqa: E402
from gpupool.daemon.client import DaemonSession  # noqa: E402
from gpupool.errors import DoesNotFitError, UsageError  # noqa: E402
from gpupool.vllm import (  # noqa: E402
    compat,
    destination,
    loading_memory,
    pool_worker,
    settings,
    waiting,
)


@pytest.fixture(autouse=True)
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    with on_a_gpu(monkeypatch) as run:
        yield run


@pytest.fixture(params=["embedded", "daemon"])
def pooled(run: Run, request: pytest.FixtureRequest) -> Iterator[Pooled]:
    with ExitStack() as stack:
        yield Pooled(stack, request.param)


def test_weights_are_loaded_into_the_pool_and_move(run: Run, pooled: Pooled) -> None:
    def load() -> Any:
        run.told.append(f"loader: {len(run.memory.routed)} routed")
        beside = {"other": WARM_BYTES, "a": 0}
        assert pooled.held() == {**beside, "a (loading)": ROOM_BYTES}
        run.memory.full(COUNT, 1)  # some are made only to be dropped
        module = run.module(2)
        assert run.memory.routed[0].arena.statistics().live_bytes >= 2 * PAGE_BYTES
        return module

    run.load = load
    engine = pooled.engine()
    engine.load_model()
    assert run.told == ["workspaces", "loader: 1 routed", "runner: 0 routed"]
    assert pooled.held() == {"other": WARM_BYTES, "a": 0}
    module = engine._pool_runner.get_model()
    with engine.pool_model.resident():
        assert module.weight0.unique().tolist() == [2]
        assert module.scales.tolist() == [2] * 10
    assert run.kept[0].unique().tolist() == [8]  # what the runner made is beside the pool
    pooled.check(engine)


def test_too_little_room_says_what_to_raise(run: Run, pooled: Pooled) -> None:
    run.load = lambda: run.module(1, 2, 3, 4)
    engine = pooled.engine()
    with pytest.raises(UsageError, match=f"the {ROOM_BYTES} bytes of 'loading_bytes': raise it"):
        engine.load_model()
    pooled.check(engine)


def test_a_room_that_no_pool_has_is_refused(pooled: Pooled) -> None:
    engine = pooled.engine(loading_bytes=BUDGET_BYTES + 1)
    with pytest.raises(DoesNotFitError, match="loading"):
        engine.load_model()
    pooled.check(engine)


class BrokenError(RuntimeError):
    pass


@pytest.mark.parametrize(
    ("where", "closes"),
    [("loader", True), ("memory", True), ("beside", True), ("adopt", True), ("adopt", False)],
)
def test_the_first_error_is_the_one_that_is_raised(
    run: Run, pooled: Pooled, where: str, closes: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = torch.OutOfMemoryError("beside the pool") if where == "memory" else BrokenError(where)
    told: list[str] = []

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    def load() -> Any:
        module = run.module(2)
        if where in ("loader", "memory"):
            fail()
        return module

    def closed(model: Model, close: Callable[[Model], None] = Model.close) -> None:
        close(model)
        if model.name == "a (loading)":
            raise OSError("and this failed too")

    run.load = load
    engine = pooled.engine()
    with monkeypatch.context() as patch:
        if where == "beside":
            run.beside = fail
        elif where == "adopt":
            patch.setattr(pool_worker, "adopt", fail)
        if not closes:
            patch.setattr(Model, "close", closed)
        patch.setattr(loading_memory.logger, "exception", told.append)
        with pytest.raises(type(error)) as caught:
            engine.load_model()
    assert caught.value is error
    assert told == ([] if closes else ["gpupool: the room for loading could not be given back"])
    pooled.check(engine)


@pytest.mark.parametrize("what", ["model", "resident", "use_mem_pool", "workspaces"])
def test_a_room_that_cannot_be_made_leaves_nothing(
    pooled: Pooled, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise BrokenError(what)

    engine = pooled.engine()
    with monkeypatch.context() as patch:
        if what == "model":
            patch.setattr(loading_memory, "Model", fail)
        elif what == "resident":
            patch.setattr(Model, "resident", fail)
        elif what == "use_mem_pool":
            patch.setattr(torch.cuda, "use_mem_pool", fail)
        else:
            patch.setattr(compat, "make_workspaces", fail)
        with pytest.raises(BrokenError, match=what):
            engine.load_model()
    pooled.check(engine)


def test_a_loader_that_moves_weights_itself_gives_the_room_back(run: Run, pooled: Pooled) -> None:
    def load() -> Any:
        into = destination.current()
        assert into is not None
        for round_ in range(2):  # as where an image is found out only once it is in place
            into.room.begin()
            module = run.module(2 + round_)
            regions = (*into.model.regions("weights"), *into.model.regions("runtime"))
            for region in regions:
                into.model.remove_region(region)
            adopt(module, into.model)
            into.room.end()
            assert pooled.held() == {"other": WARM_BYTES, "a": 0}
            with into.model.resident():  # for which there is no room beside
                assert module.weight0.unique().tolist() == [2 + round_]
            into.model.swap_out()
        into.until_loaded.enter_context(into.model.resident())
        return module

    run.load = load
    engine = pooled.engine()
    engine.load_model()
    with engine.pool_model.resident():
        assert engine._pool_runner.get_model().weight0.unique().tolist() == [3]
    pooled.check(engine)


def test_a_loader_that_has_its_ways_from_another_has_them_again(run: Run) -> None:
    @register_model_loader("inherits")
    class Inherits(Loader):
        pass

    config = SimpleNamespace(
        model_config=SimpleNamespace(), load_config=SimpleNamespace(load_format="inherits")
    )
    run.load = lambda: run.told.append("loads")

    @contextmanager
    def around() -> Iterator[None]:
        run.told.append("before")
        yield

    for told in (["before", "loads"], ["loads"]):
        with compat.loader_within(config, around) if "before" in told else nullcontext():
            Inherits(config.load_config).load_model(config, config.model_config)
        assert run.told == told
        run.told.clear()
        assert "load_model" not in vars(Inherits)


def test_a_vllm_that_loads_past_the_room_is_told(
    run: Run, pooled: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load_model(self: Any) -> None:
        module = run.module(1)
        self.model_runner = SimpleNamespace(get_model=lambda: module)

    told: list[str] = []
    monkeypatch.setattr(loading_memory.logger, "warning", told.append)
    monkeypatch.setattr(Loading, "load_model", load_model)
    engine = pooled.engine()
    engine.load_model()
    assert [line for line in told if "omit loading_bytes" in line] == told != []
    pooled.check(engine)


def test_an_engine_without_a_gpu_has_no_such_room(
    pooled: Pooled, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Model, "device_kind", "host")
    engine = pooled.engine()
    with pytest.raises(UsageError, match="for engines on a GPU"):
        engine.load_model()
    pooled.check(engine)


def test_a_name_that_is_too_long_is_refused_at_once(run: Run, pooled: Pooled) -> None:
    longest = settings.NAME_CHARACTERS_MAX - len(" (loading)")
    run.load = lambda: run.module(1)
    engine = pooled.engine(model="n" * longest)
    engine.load_model()
    engine.pool_model.close()
    with pytest.raises(UsageError, match=f"at most {longest} characters"):
        pooled.engine(model="n" * (longest + 1))
    pooled.check(pooled.engine())


def test_a_pool_that_parks_images_has_no_such_room() -> None:
    given: Any = SimpleNamespace(loading_bytes=1)
    own: Any = SimpleNamespace(device_kind="cuda", parks=True)
    with pytest.raises(UsageError, match="pools that park no images"):
        loading_memory.room(given, own, None)


def test_who_loads_for_long_says_so_and_others_wait(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    lasting = DaemonSession.lasting

    def record(session: DaemonSession, step_s: float) -> Any:
        told.append(step_s)
        return lasting(session, step_s)

    monkeypatch.setattr(DaemonSession, "lasting", record)
    with ExitStack() as stack:
        pooled = Pooled(stack, "daemon", "--revoke-timeout-s", "3600")
        others = stack.enter_context(ThreadPoolExecutor(1))
        waits: list[Any] = []

        def wanted() -> None:
            with pooled.other.resident():
                pass

        def load() -> Any:
            waits.append(others.submit(wanted))
            end_s = time.monotonic() + 60  # which only a broken program meets
            while pooled.states()["a (loading)"] != "leaving":
                assert time.monotonic() < end_s
            assert not waits[0].done()
            return run.module(2)

        run.load = load
        engine = pooled.engine()
        engine.load_model()
        assert told == 2 * [waiting.long_step_s()]  # for the start, and for the room
        waits[0].result()  # it came once the room was given back
        pooled.check(engine)
