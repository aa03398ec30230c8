"""What is made as weights are loaded, and lives on where they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

from loading_engine import Pooled, Run, on_a_gpu  # noqa: E402

from gpupool.errors import UsageError  # noqa: E402
from gpupool.vllm.living_on import _storage, _tensors  # noqa: E402


@pytest.fixture(autouse=True)
def run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    with on_a_gpu(monkeypatch) as run:
        yield run


@pytest.fixture
def pooled(run: Run) -> Iterator[Pooled]:
    with ExitStack() as stack:
        yield Pooled(stack, "embedded")


def test_tensors_that_live_on_get_memory_of_their_own(run: Run, pooled: Pooled) -> None:
    def load() -> Any:
        module = run.module(2)
        table = run.memory.full(10, 7)
        table[3] = 4
        # Tables, views of them and of what is in the model, views that alone are known, cycles.
        run.kept += [table, table[3:5], module.scales[2:], run.memory.full(10, 6)[1:]]
        run.kept.append(run.kept)
        return module

    run.load = load
    engine = pooled.engine()
    engine.load_model()
    table, view, scales, alone = run.kept[:4]
    module = engine._pool_runner.get_model()
    table[4] = 5
    module.scales[3] = 8
    assert table.tolist() == [7, 7, 7, 4, 5, 7, 7, 7, 7, 7]
    assert (view.tolist(), scales[:2].tolist(), alone.tolist()) == ([4, 5], [2, 8], [6] * 9)
    with engine.pool_model.resident():
        assert module.weight0.unique().tolist() == [2]
    pooled.check(engine)


def test_what_a_tensor_is_a_view_of_is_known_too() -> None:
    view = torch.einsum("ij,jk->ki", torch.ones(3, 4), torch.ones(4, 5))  # of one nobody has seen
    storage = view.untyped_storage()
    known = [t for t in _tensors() if (found := _storage(t)) and found._cdata == storage._cdata]
    assert len({id(tensor) for tensor in known}) == 2
    assert torch._C._storage_Use_Count(storage._cdata) == 2 + 1  # and `storage`


def test_what_lives_on_in_the_room_otherwise_is_an_error(run: Run, pooled: Pooled) -> None:
    def load() -> Any:
        run.kept.append(run.memory.full(10, 7).untyped_storage())
        return run.module(2)

    run.load = load
    engine = pooled.engine()
    with pytest.raises(UsageError, match=r"lives on in 512 bytes of .*: leave 'loading_bytes' out"):
        engine.load_model()
    pooled.check(engine)


def test_what_libraries_keep_outlives_a_start_that_failed(run: Run, pooled: Pooled) -> None:
    def load() -> Any:
        run.kept.append(run.memory.full(10, 7))
        run.module(2)
        raise KeyError

    run.load = load
    engine = pooled.engine()
    with pytest.raises(KeyError):
        engine.load_model()
    assert run.kept[0].tolist() == [7] * 10
    pooled.check(engine)


@pytest.mark.parametrize("seed", range(6))
def test_whatever_is_made_and_dropped_as_it_loads(run: Run, pooled: Pooled, seed: int) -> None:
    chance = random.Random(seed)
    values = [chance.randrange(1, 1000) for _ in range(chance.randrange(1, 20))]

    def load() -> Any:
        module: Any = torch.nn.Module()
        passing: list[Any] = [run.memory.full(1, 0)]
        for index, value in enumerate(values):
            for _ in range(chance.randrange(4)):
                passing.append(run.memory.full(chance.randrange(1, 2000), index))
            tensor = run.memory.full(chance.randrange(1, 3000), value)
            if chance.random() < 0.5:
                weight = torch.nn.Parameter(tensor, requires_grad=False)
                module.register_parameter(f"weight{index}", weight)
            else:
                setattr(module, f"plain{index}", tensor)
            while len(passing) > 1 and chance.random() < 0.5:
                passing.pop(chance.randrange(len(passing)))
        run.kept += passing
        passing.append(passing)  # which the garbage collector finds alone
        return module

    run.load = load
    engine = pooled.engine()
    engine.load_model()
    module = engine._pool_runner.get_model()
    plain = [value for name, value in vars(module).items() if "plain" in name]
    with engine.pool_model.resident():
        found = [tensor.unique().tolist() for tensor in (*module.parameters(), *plain)]
    assert sorted(found) == sorted([value] for value in values)
    assert all(int(each.min()) == int(each.max()) < len(values) for each in run.kept[:-2])
    pooled.check(engine)
