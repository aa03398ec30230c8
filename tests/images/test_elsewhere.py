"""What a module keeps in containers and helper objects is in no image: then none is kept."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch

from gpupool import Pool
from gpupool.adopt import adopt
from gpupool.errors import UsageError
from gpupool.images import state
from gpupool.images.elsewhere import elsewhere
from gpupool.images.modules import load_image, save_image

MIB = 1 << 20


class Helper:
    """As vLLM's ``quant_method``."""

    def __init__(self, owner: object = None) -> None:
        self.owner = owner


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(8), requires_grad=False)
        self.tables: Any = [torch.zeros(4), (torch.zeros(2),)]
        self.by_name: Any = {"scale": torch.zeros(1), ("a", 1): [torch.zeros(3)]}
        self.quant_method: Any = Helper(Helper(self))
        self.quant_method.scale = torch.zeros((), dtype=torch.bfloat16)
        self.quant_method.owner.scales = [torch.zeros(2, 2).t()]
        self.unlisted: Any = [torch.nn.Linear(2, 2)]  # a list of modules, which torch does not see
        self.unlisted[0].weight.data.zero_()
        self.mine: Any = [self.weight]  # which has a slot
        self.child = torch.nn.Module()
        self.child.flags = {"is": [torch.zeros(2, dtype=torch.bool)]}


CHANGES: dict[str, Callable[[Net], object]] = {
    ".tables[0]": lambda net: net.tables[0].fill_(1),
    ".tables[1][0]": lambda net: net.tables[1][0].fill_(1),
    ".tables[2]": lambda net: net.tables.append(torch.zeros(1)),
    ".by_name['scale']": lambda net: net.by_name["scale"].fill_(1),
    ".by_name[('a', 1)][0]": lambda net: net.by_name.pop(("a", 1)),
    ".quant_method.scale": lambda net: net.quant_method.scale.fill_(1),
    ".quant_method.owner.scales[0]": lambda net: net.quant_method.owner.scales[0][0, 1].fill_(1),
    ".unlisted[0]._parameters['weight']": lambda net: net.unlisted[0].weight.data.fill_(1),
    "child.flags['is'][0]": lambda net: net.child.flags["is"][0].fill_(True),
}


def save(path: Path, change: Callable[[Net], object]) -> None:
    with_pool = Pool(device="host", budget_bytes=16 * MIB, page_bytes=2 * MIB)
    net = Net()
    before = state.made(net)
    net.weight.data.fill_(1)
    change(net)
    model = with_pool.model("a")
    adopt(net, model, listed=False)
    try:
        save_image(path, net, model, {"k": "v"}, before=before)
    finally:
        with_pool.close()


@pytest.mark.parametrize("name", CHANGES)
def test_no_image_is_kept_of_what_it_would_not_have(tmp_path: Path, name: str) -> None:
    path = tmp_path / "image"
    with pytest.raises(UsageError, match="no image would have it") as caught:
        save(path, CHANGES[name])
    assert repr(name) in str(caught.value)
    assert not path.exists()


def test_what_is_as_it_was_made_is_no_reason(tmp_path: Path) -> None:
    path = tmp_path / "image"
    save(path, lambda net: None)
    pool = Pool(device="host", budget_bytes=16 * MIB, page_bytes=2 * MIB)
    net, model = Net(), pool.model("b")
    loaded = load_image(path, net, model, {"k": "v"})
    with model.resident():
        loaded.check(net)
        assert net.weight.sum() == 8
    pool.close()


def test_every_one_is_found_and_those_with_a_slot_are_not() -> None:
    found = elsewhere(Net())
    assert set(CHANGES) - {".tables[2]"} <= set(found)
    assert len(found) == 9 and not any("mine" in name for name in found)  # the bias is the ninth
    assert not elsewhere(torch.nn.Linear(2, 2))
