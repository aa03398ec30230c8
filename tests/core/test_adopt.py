"""Moving a torch module's tensors into a model: what shares keeps sharing, and nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import pytest

torch = pytest.importorskip("torch")

from gpupool import Model, Pool  # noqa: E402
from gpupool._core import FaultPlan, open_host_driver, with_faults  # noqa: E402
from gpupool.adopt import ALIGNMENT_BYTES, Adopted, adopt  # noqa: E402
from gpupool.errors import DriverError, UsageError  # noqa: E402

PAGE_BYTES = 2 << 20


@pytest.fixture
def pool() -> Pool:
    return Pool(device="host", budget_bytes=8 * PAGE_BYTES, page_bytes=PAGE_BYTES)


def linear() -> torch.nn.Module:
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(13, 7), torch.nn.ReLU(), torch.nn.Linear(7, 3))
    return module.requires_grad_(False)  # no autograd graph that would refer to its tensors


def inside(tensor: torch.Tensor, model: Model, tag: str) -> bool:
    start, end = tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size()
    return any(r.address <= start and end <= r.address + r.bytes for r in model.regions(tag))


def round_trip(pool: Pool, model: Model) -> None:
    """Out and in again, on pages that somebody else used meanwhile."""
    model.swap_out()
    other = pool.model("other")
    other.region("workspace", 8 * PAGE_BYTES)
    with other.resident():
        torch.from_dlpack(other.regions("workspace")[0]).fill_(0xEE)
    other.close()


def test_a_module_computes_the_same_after_every_swap(pool: Pool) -> None:
    module, model = linear(), pool.model("a")
    x = torch.randn(5, 13)
    expected = module(x)
    objects = list(module.parameters())
    adopted = adopt(module, model)
    assert adopted.runtime_bytes == adopted.outside_bytes == 0
    assert adopted.weights_bytes % ALIGNMENT_BYTES == 0
    for _ in range(3):
        with model.resident():
            assert torch.equal(module(x), expected)
        round_trip(pool, model)
    assert all(a is b for a, b in zip(objects, module.parameters(), strict=True))
    assert all(inside(p, model, "weights") for p in objects)
    assert all(p.data_ptr() % ALIGNMENT_BYTES == 0 for p in objects)


def test_tied_weights_stay_tied(pool: Pool) -> None:
    module, model = torch.nn.ModuleDict(), pool.model("a")
    module["embed"] = torch.nn.Embedding(11, 4)
    module["head"] = torch.nn.Linear(4, 11, bias=False)
    module["head"].weight = module["embed"].weight
    size = module["embed"].weight.numel() * 4
    assert adopt(module, model).weights_bytes == -(-size // ALIGNMENT_BYTES) * ALIGNMENT_BYTES
    assert module["head"].weight is module["embed"].weight


def test_aliases_and_views_keep_sharing(pool: Pool) -> None:
    module, model = torch.nn.Module(), pool.model("a")
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    module.whole = torch.nn.Parameter(whole)
    module.turned = torch.nn.Parameter(module.whole.data.t())
    module.row = torch.nn.Parameter(module.whole.data[2])
    module.corner = torch.nn.Parameter(module.whole.data[1:3, 2:5])
    del whole
    expected = {name: p.detach().clone() for name, p in module.named_parameters()}
    strides = {name: p.stride() for name, p in module.named_parameters()}
    assert adopt(module, model).outside_bytes == 0
    with model.resident():
        for name, p in module.named_parameters():
            assert torch.equal(p, expected[name])
            assert p.stride() == strides[name]
        with torch.no_grad():
            module.whole[2, 3] = 99.0
        assert module.turned[3, 2] == module.row[3] == module.corner[1, 1] == 99.0


def test_buffers_and_plain_attributes_are_saved_every_time(pool: Pool) -> None:
    module, model = torch.nn.BatchNorm1d(6), pool.model("a")
    module.scale = torch.full((3,), 2.0)
    adopted = adopt(module, model)
    assert adopted.weights_bytes > 0 and adopted.runtime_bytes > 0
    tracked = module.num_batches_tracked
    assert inside(tracked, model, "runtime") and inside(module.scale, model, "runtime")
    for turn in range(3):
        with model.resident():
            assert tracked.item() == turn
            tracked.add_(1)  # nobody marks it
            assert module.scale.tolist() == [2.0] * 3
        round_trip(pool, model)


def test_tensors_in_lists_and_tuples_are_saved_every_time(pool: Pool) -> None:
    module, model = torch.nn.Module(), pool.model("a")
    module.weight = torch.nn.Parameter(torch.arange(8.0), requires_grad=False)
    module.slots = (torch.zeros(3, 4), [torch.zeros(5)])
    module.rows = [module.slots[0][1], module.weight]  # a parameter does not change by being listed
    module.of_others = {"table": torch.zeros(2)}
    objects = [*module.slots, *module.rows, module.slots[1][0]]
    adopted = adopt(module, model)
    assert adopted == Adopted(ALIGNMENT_BYTES, 2 * ALIGNMENT_BYTES, 0)
    assert inside(module.weight, model, "weights") and inside(module.slots[0], model, "runtime")
    assert not inside(module.of_others["table"], model, "runtime")
    for turn in range(3):
        with model.resident():
            assert module.slots[0].tolist() == [[0.0] * 4, [float(turn)] * 4, [0.0] * 4]
            assert module.slots[1][0].tolist() == [2.0 * turn] * 5
            module.rows[0].add_(1)
            module.slots[1][0].add_(2)
        round_trip(pool, model)
    again = [*module.slots, *module.rows, module.slots[1][0]]
    assert all(a is b for a, b in zip(objects, again, strict=True))


def test_what_does_not_change_in_a_list_is_not_copied_again(pool: Pool) -> None:
    module, model = torch.nn.Module(), pool.model("a")
    module.slots = [torch.zeros(PAGE_BYTES // 4) for _ in range(3)]
    adopt(module, model)
    for changed in ([], [1], [], [0, 2]):
        with model.resident():
            for index in changed:
                module.slots[index][7] += 1.0
        model.swap_out()
        assert model.last_swap_out is not None
        assert model.last_swap_out.copied_bytes == len(changed) * PAGE_BYTES


def test_a_parameter_that_shares_with_a_buffer_is_runtime(pool: Pool) -> None:
    module, model = torch.nn.Module(), pool.model("a")
    module.weight = torch.nn.Parameter(torch.arange(8.0))
    module.register_buffer("shadow", module.weight.data)
    adopted = adopt(module, model)
    assert adopted.weights_bytes == 0
    assert inside(module.weight, model, "runtime")


@pytest.mark.parametrize(
    "alias",
    [lambda t: t.data[1:], lambda t: t.data, lambda t: [t.data]],
    ids=["view", "alias", "listed"],
)
def test_what_something_unknown_refers_to_stays_outside(
    pool: Pool, alias: Callable[[torch.Tensor], object]
) -> None:
    module, model = linear(), pool.model("a")
    bias = module[0].bias
    kept, where = alias(bias), bias.data_ptr()
    expected = bias.detach().clone()
    adopted = adopt(module, model)
    assert adopted.outside_bytes == bias.numel() * 4
    assert bias.data_ptr() == where
    assert torch.equal(bias, expected)
    del kept


def test_types_of_every_size_and_empty_tensors(pool: Pool) -> None:
    module, model = torch.nn.Module(), pool.model("a")
    dtypes = [torch.bool, torch.int8, torch.float16, torch.bfloat16, torch.int64, torch.complex64]
    for dtype in dtypes:
        module.register_buffer(f"a_{str(dtype)[6:]}", torch.ones(3, 5).to(dtype))
    module.register_buffer("scalar", torch.tensor(7))
    module.register_buffer("nothing", torch.empty(0))
    adopt(module, model)
    with model.resident():
        for dtype in dtypes:
            buffer = module.get_buffer(f"a_{str(dtype)[6:]}")
            assert buffer.dtype is dtype
            assert torch.equal(buffer, torch.ones(3, 5).to(dtype))
        assert module.scalar.item() == 7
    assert module.nothing.numel() == 0


def test_a_tensor_of_two_models_is_refused(pool: Pool) -> None:
    first, second = linear(), linear()
    second[2] = first[2]
    adopt(first, pool.model("first"))
    untouched = second[0].weight.data_ptr()
    model = pool.model("second")
    with pytest.raises(UsageError, match="'first' already"):
        adopt(second, model)
    assert model.footprint_bytes == 0
    assert second[0].weight.data_ptr() == untouched


def test_a_module_without_tensors_needs_nothing(pool: Pool) -> None:
    assert adopt(torch.nn.ReLU(), pool.model("a")) == Adopted(0, 0, 0)


def test_a_tensor_keeps_its_addresses_after_its_model(pool: Pool) -> None:
    module, model = linear(), pool.model("a")
    adopt(module, model)
    taken = module[0].weight.data_ptr()
    model.close()
    del model
    again = linear()
    adopt(again, pool.model("b"))
    assert not any(p.data_ptr() <= taken < p.data_ptr() + p.numel() * 4 for p in again.parameters())


def test_a_refused_adoption_leaves_nothing_behind() -> None:
    module = linear()
    module.register_buffer("steps", torch.ones(5))
    before = [tensor.data_ptr() for tensor in [*module.parameters(), *module.buffers()]]
    for nth in range(1, 50):
        plan = FaultPlan()
        driver = with_faults(open_host_driver(), plan)
        pool = Pool(
            device="host", budget_bytes=4 * PAGE_BYTES, page_bytes=PAGE_BYTES, driver=driver
        )
        model = pool.model("a")
        plan.arm(nth, 999, persistent=False)
        try:
            adopt(module, model)
        except DriverError:
            assert [t.data_ptr() for t in [*module.parameters(), *module.buffers()]] == before
            assert model.regions("weights") == model.regions("runtime") == []
            plan.disarm()
            continue
        plan.disarm()
        assert nth > 4
        return
    raise AssertionError("adopting never ended without a failure")
