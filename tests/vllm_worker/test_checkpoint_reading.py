"""What `--load-format gpupool` reads of a checkpoint is what vLLM reads of it, or vLLM does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("vllm")
import torch
from safetensors.torch import save_file
from variants import write_experts, write_plain, write_quantized
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import default_loader

from gpupool.images.checkpoint_reader import Checkpoint
from gpupool.vllm.image_loader import ImageLoader


@pytest.fixture
def readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Who reads."""
    found: list[str] = []

    def noted(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def noting(*more: Any, **named: Any) -> Any:
            found.append(name)
            return call(*more, **named)

        return noting

    theirs = default_loader.safetensors_weights_iterator
    monkeypatch.setattr(default_loader, "safetensors_weights_iterator", noted("vLLM", theirs))
    monkeypatch.setattr(Checkpoint, "tensors", noted("gpupool", Checkpoint.tensors))
    return found


def read(folder: Path, kind: type = ImageLoader, **more: Any) -> dict[str, torch.Tensor]:
    loader = kind(LoadConfig(load_format="auto", **more))
    source = loader.Source(str(folder), revision=None, prefix="of.")
    return {name: tensor.clone() for name, tensor in loader._get_weights_iterator(source)}


def equal(found: dict[str, torch.Tensor], due: dict[str, torch.Tensor]) -> bool:
    def bits(tensor: torch.Tensor) -> torch.Tensor:
        return tensor.reshape(-1).view(torch.uint8)

    return found.keys() == due.keys() and all(
        found[name].dtype == due[name].dtype
        and found[name].shape == due[name].shape
        and torch.equal(bits(found[name]), bits(due[name]))
        for name in due
    )


@pytest.mark.parametrize("write", [write_plain, write_experts, write_quantized])
def test_it_is_what_vllm_reads(tmp_path: Path, readings: list[str], write: Any) -> None:
    write(tmp_path)
    found = read(tmp_path)
    assert readings == ["gpupool"]
    assert equal(found, read(tmp_path, default_loader.DefaultModelLoader))
    assert readings == ["gpupool", "vLLM"] and len(found) > 5


def test_of_several_files(tmp_path: Path, readings: list[str]) -> None:
    for number in range(3):
        weights = torch.randn(100, 7 + number, generator=torch.Generator().manual_seed(number))
        save_file({f"w{number}": weights}, tmp_path / f"model-{number}.safetensors")
    assert equal(read(tmp_path), read(tmp_path, default_loader.DefaultModelLoader))
    assert readings == ["gpupool", "vLLM"]


@pytest.mark.parametrize(
    "told",
    [
        {"safetensors_load_strategy": "eager"},
        {"safetensors_load_strategy": "prefetch"},
        {"model_loader_extra_config": {"enable_multithread_load": True, "num_threads": 2}},
    ],
)
def test_whoever_says_how_to_read_is_obeyed(
    tmp_path: Path, readings: list[str], told: dict[str, Any]
) -> None:
    write_plain(tmp_path)
    found = read(tmp_path, **told)
    assert "gpupool" not in readings
    assert equal(found, read(tmp_path))


def test_what_is_not_understood_vllm_reads(
    tmp_path: Path, readings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from gpupool.images import checkpoint_reader

    write_plain(tmp_path)
    known = dict(checkpoint_reader._KINDS)
    monkeypatch.setattr(checkpoint_reader, "_KINDS", {"BOOL": known["BOOL"]})
    found = read(tmp_path)
    assert readings == ["vLLM"]
    monkeypatch.undo()
    assert equal(found, read(tmp_path, default_loader.DefaultModelLoader))


def test_vllms_own_is_in_place_again(tmp_path: Path) -> None:
    before = default_loader.safetensors_weights_iterator
    with pytest.raises(RuntimeError, match="Cannot find any model weights"):
        read(tmp_path)
    assert default_loader.safetensors_weights_iterator is before
