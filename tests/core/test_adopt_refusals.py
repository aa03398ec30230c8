"""What adopt refuses, or fails at: the module and the model are as they were before."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest

torch = pytest.importorskip("torch")

from pool_bench import pool_of  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402

from gpupool import Model  # noqa: E402
from gpupool.adopt import adopt  # noqa: E402
from gpupool.errors import UsageError  # noqa: E402


def on(device: str, tensor: torch.Tensor) -> torch.Tensor:
    """As if it were on a device that this machine need not have."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        return mode.from_tensor(tensor).to(device)


@contextlib.contextmanager
def nothing_changes(module: torch.nn.Module, model: Model) -> Iterator[None]:
    """Of the module's plain tensors and the model's regions; and the module may be used."""
    named = [*module.named_parameters(), *module.named_buffers()]
    plain = [tensor for name, tensor in named if name != "odd"]
    before = [(t.untyped_storage().data_ptr(), t.tolist()) for t in plain]
    yield
    assert [(t.untyped_storage().data_ptr(), t.tolist()) for t in plain] == before
    assert model.regions("weights") == model.regions("runtime") == []
    assert model.footprint_bytes == 0
    adopt(module, model)


def module_of(*, odd: object = None) -> torch.nn.Module:
    module = torch.nn.Linear(13, 7).requires_grad_(False)
    module.register_buffer("steps", torch.ones(5))
    module.odd = odd
    return module


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])


def wrapper() -> torch.Tensor:
    class Wrapper(torch.Tensor):
        @classmethod
        def __torch_dispatch__(cls, *called: object) -> None:
            raise NotImplementedError

    return torch.Tensor._make_wrapper_subclass(Wrapper, (4,))


QUANTIZED = [torch.qint8, torch.quint8, torch.qint32, torch.quint4x2, torch.quint2x4]
KINDS: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.eye(3).to_sparse(),
    "compressed": lambda: torch.eye(3).to_sparse_csr(),
    "nested": nested,
    "wrapper": wrapper,
    "fake": lambda: FakeTensorMode().from_tensor(torch.ones(4)),
    "zero": lambda: torch._efficientzerotensor((4,)),
    "conjugate": lambda: torch.ones(3, dtype=torch.complex64).conj(),
    "negative": lambda: torch.ones(3, dtype=torch.complex64).conj().imag,
    "both": lambda: torch._neg_view(torch.ones(3, dtype=torch.complex64).conj()),
    "not initialized": torch.nn.UninitializedBuffer,
}
KINDS |= {str(dtype)[6:]: lambda dtype=dtype: torch.empty(4, dtype=dtype) for dtype in QUANTIZED}
if torch.backends.mkldnn.is_available():
    KINDS["mkldnn"] = lambda: torch.ones(3, 4).to_mkldnn()


@pytest.mark.filterwarnings("ignore::UserWarning")  # torch on its own quantized, nested, sparse
@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_that_cannot_be_moved_is_refused_at_the_door(kind: str) -> None:
    module, model = module_of(odd=KINDS[kind]()), pool_of().model("a")
    with nothing_changes(module, model):
        with pytest.raises(UsageError, match=r"tensor '.?odd'.* or keep it outside the module"):
            adopt(module, model)
        module.odd = None


@pytest.mark.parametrize("device", ["cuda:0", "cuda:1", "xpu:0"])
def test_a_parameter_on_another_device_is_refused(device: str) -> None:
    module, model = module_of(), pool_of().model("a")
    weight = module.weight
    with nothing_changes(module, model):
        module.weight = torch.nn.Parameter(on(device, weight), requires_grad=False)
        told = rf"parameter 'weight' is on {device} and model 'a' on cpu: .*module\.to\('cpu'\)"
        with pytest.raises(UsageError, match=told):
            adopt(module, model)
        module.weight = weight


def test_other_tensors_on_another_device_stay_there() -> None:
    module, model = module_of(odd=on("cuda:0", torch.ones(5))), pool_of().model("a")
    module.register_buffer("other", on("cuda:1", torch.ones(3)))
    module.listed = [on("cuda:0", torch.ones(7)), module.odd, torch.ones(11)]
    module.empty = torch.nn.Parameter(on("cuda:0", torch.ones(0)), requires_grad=False)
    adopted = adopt(module, model)
    assert adopted.outside_bytes == 4 * (5 + 3 + 7)
    assert adopted.runtime_bytes == 2 * 256  # of steps, and of what is on the model's device
    assert [str(t.device) for t in module.listed] == ["cuda:0", "cuda:0", "cpu"]
    with model.resident():
        assert module.steps.tolist() == [1.0] * 5 and module.listed[2].tolist() == [1.0] * 11


def test_a_tensor_that_will_not_be_moved_puts_all_others_back() -> None:
    class Stubborn(torch.Tensor):
        @property
        def data(self) -> torch.Tensor:
            return super().data

        @data.setter
        def data(self, other: torch.Tensor) -> None:
            raise RuntimeError("this one stays")

    module, model = module_of(), pool_of().model("a")
    module.register_buffer("zzz_last", torch.Tensor._make_subclass(Stubborn, torch.ones(6)))
    with nothing_changes(module, model):
        with pytest.raises(RuntimeError, match="stays"):
            adopt(module, model)
        module.zzz_last = None
