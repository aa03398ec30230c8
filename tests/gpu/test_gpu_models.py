"""Torch models that share a pool which holds one of them compute what they computed alone."""

from __future__ import annotations

import importlib
from collections.abc import Iterator

import pytest
from conftest import missing

from gpupool import Pool
from gpupool.devices import open_driver
from gpupool.errors import DriverError, UsageError

torch = pytest.importorskip("torch")

WIDTH, LAYERS, MODELS = 512, 4, 3
PAGE_BYTES = 2 << 20


def model_of(seed: int, where: str) -> torch.nn.Module:
    torch.manual_seed(seed)
    layers = []
    for _ in range(LAYERS):
        layers += [torch.nn.Linear(WIDTH, WIDTH), torch.nn.BatchNorm1d(WIDTH), torch.nn.GELU()]
    return torch.nn.Sequential(*layers).eval().requires_grad_(False).to(where)


@pytest.fixture(params=["host", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[str]:
    """The same on both, so that what is asked of a GPU has run somewhere."""
    if request.param == "cuda":
        try:
            open_driver("cuda").page_granularity()
        except (DriverError, RuntimeError) as error:
            missing(f"no GPU: {error}")
        if not torch.cuda.is_available():
            missing("this torch has no CUDA or sees no GPU")
    yield request.param


def test_what_is_on_the_host_is_not_moved_to_a_gpu(device: str) -> None:
    adopt = importlib.import_module("gpupool.adopt").adopt
    pool = Pool(device=device, budget_bytes=8 * PAGE_BYTES, page_bytes=PAGE_BYTES)
    module, model = torch.nn.Module(), pool.model("a")
    module.register_buffer("table", torch.arange(5.0))
    address = module.table.data_ptr()
    if device == "cuda":
        assert adopt(module, model).outside_bytes == module.table.nbytes
        assert module.table.device.type == "cpu" and module.table.data_ptr() == address
        module.weight = torch.nn.Parameter(torch.ones(3), requires_grad=False)
        with pytest.raises(UsageError, match=r"parameter 'weight' is on cpu"):
            adopt(module, model)
    else:
        assert adopt(module, model).outside_bytes == 0 and module.table.data_ptr() != address
    pool.close()


def test_models_that_take_turns(device: str) -> None:
    where = "cuda" if device == "cuda" else "cpu"
    adopt = importlib.import_module("gpupool.adopt").adopt
    modules = [model_of(seed, where) for seed in range(MODELS)]
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(7)).to(where)
    expected = [module(x) for module in modules]
    size = sum(
        tensor.numel() * tensor.element_size()
        for tensor in [*modules[0].parameters(), *modules[0].buffers()]
    )
    budget_bytes = (size * 3 // 2 // PAGE_BYTES + 2) * PAGE_BYTES  # room for one and not for two
    pool = Pool(device=device, budget_bytes=budget_bytes, page_bytes=PAGE_BYTES)
    models = [pool.model(f"m{index}", verify="always") for index in range(MODELS)]
    for module, model in zip(modules, models, strict=True):
        adopt(module, model)
    for turn in range(12):
        index = turn * 2 % MODELS
        before = models[index].last_swap_in
        with models[index].resident():
            found = modules[index](x)
            assert torch.equal(found, expected[index])
        assert models[index].last_swap_in is not before  # the others had its room
    pool.close()
