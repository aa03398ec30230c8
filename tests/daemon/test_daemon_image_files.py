"""Files of images and a daemon's account of host memory: an error holds on to nothing."""

from __future__ import annotations

import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from daemon_bench import Daemon, until

pytest.importorskip("torch")

import torch

from gpupool import adopt as adopt_module
from gpupool.adopt import adopt
from gpupool.daemon.client import DaemonSession
from gpupool.errors import DamagedMemoryError, ImageDamagedError, ImageReadError, ImageWriteError
from gpupool.images.modules import load_image, save_image
from gpupool.model import Model

KEY = {"of": "this"}


def member(daemon: Daemon) -> Model:
    return Model("a", DaemonSession(daemon.socket_path, "a"))


def layer(seed: int) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Linear(700, 900)


def counted(daemon: Daemon) -> int:
    return daemon.status().host_bytes


def saved(daemon: Daemon, folder: Path) -> Path:
    """The file of a model that has left."""
    path = folder / "image"
    model, module = member(daemon), layer(1)
    adopt(module, model)
    save_image(path, module, model, KEY)
    model.close()
    until(lambda: counted(daemon) == 0)
    return path


def test_a_damaged_file_leaves_nothing_on_the_account(daemon: Daemon, tmp_path: Path) -> None:
    path = saved(daemon, tmp_path)
    content = bytearray(path.read_bytes())
    content[-5000] ^= 1
    path.write_bytes(content)
    model = member(daemon)
    for _ in range(3):
        try:
            load_image(path, layer(2), model, KEY)
        except ImageDamagedError as error:
            assert counted(daemon) == 0, error  # already
        else:
            pytest.fail("it was not found")
    adopt(layer(3), model)  # as whoever loads from the checkpoint then
    model.close()


def test_a_disk_that_fails_leaves_nothing_on_the_account(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(daemon, tmp_path)
    real, size_bytes = os.preadv, path.stat().st_size
    model = member(daemon)
    for bad in (4096, size_bytes // 8192 * 4096, size_bytes - 4096):

        def preadv(fd: int, buffers: list[memoryview], offset: int, bad: int = bad) -> int:
            if offset <= bad < offset + len(buffers[0]):
                raise OSError(errno.EIO, "Input/output error")
            return real(fd, buffers, offset)

        again = layer(2)
        before = [parameter.clone() for parameter in again.parameters()]
        with monkeypatch.context() as patched:
            patched.setattr(os, "preadv", preadv)
            try:
                load_image(path, again, model, KEY)
            except ImageReadError as error:
                assert counted(daemon) == 0, error  # already
            else:
                pytest.fail("it was read")
        assert all(map(torch.equal, before, again.parameters()))
        assert model.regions("weights") == []
    load_image(path, layer(2), model, KEY)  # the disk is well again
    model.close()


def test_a_damaged_image_is_told_and_leaves_nothing_on_the_account(
    daemon: Daemon, tmp_path: Path
) -> None:
    model, module = member(daemon), layer(1)
    adopt(module, model)
    with memoryview(model.regions("weights")[0].image()) as image:  # type: ignore[arg-type]
        image.cast("B")[2_500_000] ^= 1

    def told(times: int) -> bool:
        return daemon.status().models[0].damaged == times

    for number in (1, 2):
        try:
            save_image(tmp_path / "image", module, model, KEY)
        except DamagedMemoryError as error:
            assert "model 'a': bytes 2097152 to " in str(error)
            until(partial(told, number))
            if number == 2:
                model.close()
                assert counted(daemon) == 0
        else:
            pytest.fail("it was written")
        assert list(tmp_path.iterdir()) == []


def test_a_model_can_be_closed_while_the_error_is_handled(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    model, module = member(daemon), layer(1)
    adopt(module, model)
    with monkeypatch.context() as patched:
        patched.setattr(os, "pwrite", full)
        try:
            save_image(tmp_path / "image", module, model, KEY)
        except ImageWriteError:
            model.close()
            model = member(daemon)  # the name is free

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(adopt_module._Span, "place", interrupted)
        try:
            adopt(layer(2), model)
        except KeyboardInterrupt:
            model.close()
            model = member(daemon)
    assert counted(daemon) == 0
    model.close()
