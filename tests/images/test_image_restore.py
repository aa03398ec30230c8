"""A module that processing made something else of becomes that again, or stays as it was."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import torch
from failing import Failing

from gpupool import Pool
from gpupool.adopt import adopt
from gpupool.errors import UsageError
from gpupool.images import restore, slots, state
from gpupool.images.modules import Loaded, load_image, save_image

MIB = 1 << 20
KEY = {"of": "this"}


class Special(torch.nn.Parameter):
    """As vLLM's parameters: of a class of their own, with attributes."""


class Layer(torch.nn.Module):
    def __init__(self, sizes: random.Random) -> None:
        super().__init__()
        for name in ("weight", "scale", "bias"):
            kind: Any = Special if name == "weight" else torch.nn.Parameter
            content = torch.empty(sizes.randint(1, 9), sizes.randint(1, 9))
            self.register_parameter(name, kind(content, requires_grad=False))
        self.weight.weight_loader = print
        self.register_buffer("table", torch.zeros(3))
        self.register_buffer("spare", None)
        self.plain = torch.zeros(4)
        self.is_ready, self.factor, self.widths = False, 1.0, [1, 2]


class Net(torch.nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        sizes = random.Random(seed)
        self.layers = torch.nn.ModuleList([Layer(sizes) for _ in range(3)])
        self.shared = self.layers[0]
        self.layers[2].tied = self.layers[1].bias
        self.head = torch.nn.Parameter(torch.empty(2, 2), requires_grad=False)


def process(net: Net, seed: int) -> None:
    """Some of all that loading and processing weights may do to a module."""
    rng = random.Random(f"process {seed}")
    torch.manual_seed(seed)
    for tensor in net.parameters():
        tensor.data.normal_()
    for layer in net.layers:
        layer.table.normal_()
        layer.plain.normal_()
        acts: list[Callable[[], None]] = [
            lambda at=layer: renew(at, "weight", at.weight.t()),
            lambda at=layer: renew(at, "weight", at.weight.to(torch.int8)),
            lambda at=layer: renew(at, "scale", torch.randn(5)),
            lambda at=layer: renew(at, "tied", at.tied.clone() if hasattr(at, "tied") else None),
            lambda at=layer: delattr(at, "scale"),
            lambda at=layer: setattr(at, "bias", None),
            lambda at=layer: setattr(at, "bias", torch.nn.Parameter(torch.empty(0), False)),
            lambda at=layer: at.register_buffer("spare", torch.randn(2), persistent=False),
            lambda at=layer: setattr(at, "extra", torch.randn(3, 2)),
            lambda at=layer: setattr(at, "view", part_of(at.plain)),
            lambda at=layer: setattr(at, "plain", at.table),
            lambda at=layer: setattr(net, "head", at.weight),
            lambda at=layer: setattr(at, "factor", rng.choice([float("nan"), 0.1, -1e300])),
            lambda at=layer: setattr(at, "is_ready", True),
            lambda at=layer: setattr(at, "added", rng.choice([None, "a\n", 7])),
            lambda at=layer: setattr(at.weight, "is_shuffled", True),
        ]
        # In this order: a tensor of a class of its own stays in a place that it had.
        for index in sorted(rng.sample(range(len(acts)), rng.randint(0, 6))):
            acts[index]()


def renew(layer: Layer, name: str, content: Any) -> None:
    """As vLLM's replace_parameter does."""
    if isinstance(old := getattr(layer, name, None), torch.Tensor):
        fresh = torch.nn.Parameter(content.contiguous(), requires_grad=False)
        if hasattr(old, "weight_loader"):
            fresh.weight_loader = old.weight_loader
        setattr(layer, name, fresh)


def part_of(tensor: Any) -> Any:
    """Not a view, which would keep the whole tensor alive unseen."""
    return torch.empty(0).set_(tensor.untyped_storage(), 1, (2,), (1,))


def described(net: Net) -> dict[str, Any]:
    """Everything that a module is, in terms of which two can be compared. It must be resident."""
    found: dict[str, Any] = {"layouts": state.layouts(net), "values": state.made(net).values}
    found["prints"] = state.prints(net)
    found["bits"] = {
        slot.name: slot.tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        for slot in slots.slots_of(net)
        if slot.tensor is not None and slot.tensor.numel() > 0
    }
    found["attributes"] = {
        slot.name: {n: v for n, v in vars(slot.tensor).items() if n != "_gpupool_owner"}
        for slot in slots.slots_of(net)
        if slot.tensor is not None
    }
    found["states"] = sorted(net.state_dict())
    return found


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(device="host", budget_bytes=8 * MIB, page_bytes=2 * MIB)
    yield pool
    pool.close()


def saved(pool: Pool, path: Path, seed: int) -> dict[str, Any]:
    net, model = Net(seed), pool.model(f"first-{seed}")
    before = state.made(net)
    process(net, seed)
    adopt(net, model)
    save_image(path, net, model, KEY, before=before)
    with model.resident():
        found = described(net)
    model.close()
    return found


def loaded(pool: Pool, path: Path, seed: int) -> tuple[dict[str, Any], Loaded, Net]:
    net, model = Net(seed), pool.model(f"again-{seed}")
    was = load_image(path, net, model, KEY)
    with model.resident():
        found = described(net)
        was.check(net)
        for slot in slots.slots_of(net):
            if slot.name.endswith(".view"):  # shares what it was a view of
                slot.module.plain[1] = 7.0
                assert slot.tensor is not None
                assert slot.tensor[0] == 7.0 or slot.module.plain is slot.module.table
    model.close()
    return found, was, net


@pytest.mark.parametrize("seed", range(60))
def test_a_fresh_module_becomes_what_processing_made(pool: Pool, tmp_path: Path, seed: int) -> None:
    expected = saved(pool, tmp_path / "image", seed)
    found, was, net = loaded(pool, tmp_path / "image", seed)
    assert found == expected
    net.layers[1].is_ready = 5
    with pytest.raises(UsageError, match=r"'layers\.1' is not as it was written"):
        was.check(net)


@pytest.mark.parametrize(
    ("where", "name"),
    [(restore, "over_place"), (slots, "fill"), (slots, "vacate"), (state, "put")],
)
@pytest.mark.parametrize("seed", [4, 11, 12])
def test_a_failure_halfway_leaves_the_module_as_it_was(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int, where: Any, name: str
) -> None:
    path = tmp_path / "image"
    expected = saved(pool, path, seed)
    real = getattr(where, name)
    net, model = Net(seed), pool.model("careful")
    for tensor in net.parameters():
        tensor.data.fill_(3.0)
    before = described(net)
    objects = {slot.name: id(slot.tensor) for slot in slots.slots_of(net)}
    failures = 0
    for nth in range(1, 200):
        failing = Failing(real, nth, InterruptedError)
        with monkeypatch.context() as patched:
            patched.setattr(where, name, failing)
            try:
                load_image(path, net, model, KEY)
            except InterruptedError:
                failures += 1
            else:
                break
        assert described(net) == before
        assert {slot.name: id(slot.tensor) for slot in slots.slots_of(net)} == objects
        assert model.regions("weights") == model.regions("runtime") == []
    assert failures > 0
    with model.resident():
        assert described(net) == expected
    model.close()


def test_what_cannot_be_made_again_is_refused(pool: Pool, tmp_path: Path) -> None:
    def fails(change: Callable[[Net], None], match: str) -> None:
        net, model = Net(1), pool.model("a")
        before = state.made(net)
        change(net)
        adopt(net, model)
        save_image(tmp_path / "image", net, model, KEY, before=before)
        model.close()
        fresh, model = Net(1), pool.model("a")
        was = described(fresh)
        with pytest.raises(UsageError, match=match):
            load_image(tmp_path / "image", fresh, model, KEY)
        assert described(fresh) == was
        model.close()

    fails(lambda net: setattr(net, "head", Special(torch.ones(3), False)), "cannot be made")
    fails(lambda net: setattr(net.head, "kernel", print), "has an attribute 'kernel'")
    fails(lambda net: setattr(net, "more", Layer(random.Random(1))), "of another module")


def test_a_module_made_otherwise_is_refused_by_the_name_of_what_differs(
    pool: Pool, tmp_path: Path
) -> None:
    saved(pool, tmp_path / "image", 1)
    for change in (
        lambda net: net.layers[1].register_buffer("table", torch.zeros(4)),
        lambda net: setattr(net.layers[1], "table", net.layers[2].table),
        lambda net: delattr(net.layers[1], "table"),
    ):
        net, model = Net(1), pool.model("a")
        change(net)
        with pytest.raises(UsageError, match=r"'layers\.[12]\.table' is not as it has it"):
            load_image(tmp_path / "image", net, model, KEY)
        model.close()


def test_a_parameter_that_was_packed_away_is_found() -> None:
    net = Net(1)
    before = state.made(net)
    assert state.emptied(net, before) is None
    net.layers[2].weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
    assert state.emptied(net, before) == "layers.2.weight"
    assert state.emptied(net, state.made(net)) is None


def test_an_address_is_no_value_of_a_module() -> None:
    net = Net(1)
    before = state.made(net)
    net.layers[0].pointer = 0x7F00_0000_0000
    net.layers[0].size = 3
    changed = state.shape_of(net, before).values["layers.0"]
    assert changed == {"size": "3"}
