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


def test_a_vllm_of_another_shape_goes_on_without_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delitem(sys.modules, "gpupool.vllm.image_loader", raising=False)
    monkeypatch.delattr("gpupool.vllm.image_loader", raising=False)
    # As if a later vLLM had moved what the loader imports.
    monkeypatch.setitem(sys.modules, "vllm.model_executor.model_loader.default_loader", None)
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    plugin.register()
    assert "--load-format gpupool is absent" in caplog.text
    assert "default_loader" in caplog.text
