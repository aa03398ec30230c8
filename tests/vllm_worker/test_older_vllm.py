"""What gpupool does where an older vLLM lacks something that 0.32 has."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")

import vllm.model_executor.utils as model_utils  # noqa: E402

from gpupool.vllm import compat  # noqa: E402


@pytest.mark.parametrize("has_accelerator", [True, False])
def test_a_worker_without_a_way_to_wait(
    has_accelerator: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: has_accelerator)
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda: waited.append("torch"))
    compat.wait_for_device(SimpleNamespace(synchronize_device=lambda: waited.append("worker")))
    assert waited == ["worker"]
    compat.wait_for_device(SimpleNamespace())
    assert waited == ["worker", "torch"][: 1 + has_accelerator]


def test_no_image_where_processed_weights_cannot_be_taken_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = torch.nn.Linear(2, 2)
    assert compat.not_for_images(module) is None
    monkeypatch.delattr(model_utils, "weights_already_processed")
    assert "takes up no processed weights" in str(compat.not_for_images(module))
