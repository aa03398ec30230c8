"""gpupool's plugin is in the way of no engine."""

from __future__ import annotations

import logging
import sys

import pytest

pytest.importorskip("vllm")

from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import get_model_loader

from gpupool.vllm import plugin


def test_the_load_format_is_known() -> None:
    plugin.register()
    plugin.register()
    assert type(get_model_loader(LoadConfig(load_format="gpupool"))).__name__ == "ImageLoader"


@pytest.mark.parametrize(
    ("ours", "moved", "option"),
    [
        ("image_loader", "vllm.model_executor.model_loader.default_loader", "--load-format"),
        ("sleep_backend", "vllm.device_allocator.sleep_mode_backend", "--sleep-mode-backend"),
    ],
)
def test_a_vllm_of_another_shape_goes_on_without_it(
    ours: str,
    moved: str,
    option: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.delitem(sys.modules, f"gpupool.vllm.{ours}", raising=False)
    monkeypatch.delattr(f"gpupool.vllm.{ours}", raising=False)
    monkeypatch.setitem(sys.modules, moved, None)  # as if a later vLLM had moved it
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    plugin.register()
    (line,) = (record.getMessage() for record in caplog.records)
    assert f"{option} gpupool is absent" in line
    assert moved in line
