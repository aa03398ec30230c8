"""A swap-out that fails leaves images of then and of now: no file is made of both."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("torch")

import torch

from gpupool import Model, Pool
from gpupool._core import FaultPlan, open_host_driver, with_faults
from gpupool.adopt import adopt
from gpupool.errors import DriverError, UsageError
from gpupool.images.modules import load_image, save_image

KEY = {"of": "this"}
PAGE = 2 << 20
MUST_LEAVE = "a model torn by a failed swap must be swapped out again first"


def pool_of(plan: FaultPlan) -> Pool:
    driver = with_faults(open_host_driver(), plan)
    return Pool(device="host", budget_bytes=16 * PAGE, page_bytes=PAGE, driver=driver)


def made() -> torch.nn.Module:
    """Two pages of weights, and some of what every step may write to."""
    module = torch.nn.Linear(512, 2048, bias=False)
    module.register_buffer("buffer", torch.zeros(1000))
    return module


def values(module: torch.nn.Module) -> list[torch.Tensor]:
    return [tensor.detach().clone() for tensor in module.state_dict().values()]


def changed(module: torch.nn.Module, model: Model) -> list[torch.Tensor]:
    """What every tensor of it has now, which is not what it had."""
    with model.resident(writes=True):
        for tensor in module.state_dict().values():
            tensor.add_(1.0)
        return values(module)


def check_loaded(path: Path, due: list[torch.Tensor]) -> None:
    pool, module = pool_of(FaultPlan()), made()
    model = pool.model("again")
    load_image(path, module, model, KEY)
    with model.resident():
        for tensor, value in zip(values(module), due, strict=True):
            assert torch.equal(tensor, value)
    pool.close()


@pytest.mark.parametrize("verify", ["always", "off"])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_file_has_what_the_module_has_or_is_refused(
    tmp_path: Path, persistent: bool, verify: str
) -> None:
    """Whichever call of the driver fails as the model leaves."""
    path, said = tmp_path / "image", []
    for nth in range(1, 60):
        plan = FaultPlan()
        pool, module = pool_of(plan), made()
        model = pool.model("a", verify=verify)
        adopt(module, model)
        model.region("workspace", PAGE)  # which goes before anything is saved
        due = changed(module, model)
        plan.arm(nth, 999, persistent=persistent)
        try:
            model.swap_out()
        except DriverError:
            with pytest.raises(UsageError) as refused:
                save_image(path, module, model, KEY)
            said.append(str(refused.value))
            plan.disarm()
            with pytest.raises(UsageError, match=said[-1]):
                save_image(path, module, model, KEY)
            assert not path.exists()
            model.swap_out()
        injected = plan.injected
        plan.disarm()
        save_image(path, module, model, KEY)
        check_loaded(path, due)
        path.unlink()
        pool.close()
        if not injected:
            break
    else:
        pytest.fail("a swap-out has more calls than that")
    assert set(said) == {"an image is written while its model is out", MUST_LEAVE}


def test_no_file_is_made_of_a_model_that_is_closed(tmp_path: Path) -> None:
    pool, module = pool_of(FaultPlan()), made()
    model = pool.model("a")
    adopt(module, model)
    model.close()
    with pytest.raises(UsageError, match="a closed model cannot be used"):
        save_image(tmp_path / "image", module, model, KEY)
    assert list(tmp_path.iterdir()) == []
