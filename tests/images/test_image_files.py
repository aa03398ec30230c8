"""Files of images: whole or not at all, and never a wrong byte."""

from __future__ import annotations

import ctypes
import errno
import os
import random
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

import numpy as np
import torch
from failing import Failing

from gpupool import Pool
from gpupool.adopt import adopt
from gpupool.errors import GpupoolError, ImageDamagedError, ImageWriteError, UsageError
from gpupool.images import format as image_format
from gpupool.images import restore
from gpupool.images.file import ImageFile
from gpupool.images.modules import load_image, places_in, save_image
from gpupool.images.restore import over_place

MIB = 1 << 20
FULL = partial(OSError, errno.ENOSPC, "No space left on device")
KEY = {"checkpoint": "abc", "vllm": "0.32.0"}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool)


class Net(torch.nn.Module):
    """Parameters, tied ones and views of them, buffers and plain attributes of many dtypes."""

    def __init__(self, seed: int, *, filled: bool) -> None:
        super().__init__()
        shapes, content = random.Random(seed), random.Random(seed)

        def some(dtype: Any, *shape: int) -> Any:
            tensor = torch.zeros(shape, dtype=dtype)
            if filled:
                raw = np.frombuffer(content.randbytes(tensor.nbytes), np.uint8)
                bits = raw & 1 if dtype is torch.bool else raw
                ctypes.memmove(tensor.data_ptr(), bits.tobytes(), tensor.nbytes)
            return tensor

        def over(tensor: Any, start: int, shape: tuple[int, int], stride: tuple[int, int]) -> Any:
            """Not a view, which would know the tensor, but one over the same storage."""
            storage = tensor.untyped_storage()
            return torch.empty(0, dtype=tensor.dtype).set_(storage, start, shape, stride)

        def size() -> int:
            return shapes.randint(1, 40)

        for index in range(shapes.randint(1, 4)):
            weight = torch.nn.Parameter(some(torch.float32, size(), size()), requires_grad=False)
            self.register_parameter(f"p{index}", weight)
        self.tied = self.p0
        high, wide = size(), size()
        turned = over(some(torch.float32, high, wide), 0, (wide, high), (1, wide))
        self.turned = torch.nn.Parameter(turned, requires_grad=False)
        for index in range(shapes.randint(0, 3)):
            self.register_buffer(f"b{index}", some(shapes.choice(DTYPES), size(), size()))
        self.plain = some(shapes.choice(DTYPES), size())
        both = some(torch.float32, 5, 4)
        self.first, self.rest = over(both, 0, (2, 4), (4, 1)), over(both, 4, (4, 4), (4, 1))

    def bits(self) -> dict[str, bytes]:
        names = dict(self.named_parameters(remove_duplicate=False)) | dict(self.named_buffers())
        names |= {name: getattr(self, name) for name in ("plain", "first", "rest", "tied")}
        return {n: t.detach().reshape(-1).view(torch.uint8).numpy().tobytes() for n, t in
                names.items()}  # fmt: skip


@pytest.fixture
def pool() -> Iterator[Pool]:
    pool = Pool(device="host", budget_bytes=8 * MIB, page_bytes=2 * MIB)
    yield pool
    pool.close()


def saved(pool: Pool, path: Path, seed: int) -> dict[str, bytes]:
    """What the tensors of a module are, which is written to a file."""
    module, model = Net(seed, filled=True), pool.model(f"first-{seed}")
    expected = module.bits()
    adopt(module, model)
    save_image(path, module, model, KEY)
    model.close()
    return expected


def loaded(pool: Pool, path: Path, seed: int) -> dict[str, bytes]:
    module, model = Net(seed, filled=False), pool.model(f"again-{seed}")
    load_image(path, module, model, KEY)
    with model.resident():
        bits = module.bits()
        assert module.tied is module.p0
        module.first[1] = 7.0
        assert module.rest[0, 0] == 7.0
    model.close()
    return bits


@pytest.mark.parametrize("seed", range(40))
def test_every_tensor_comes_back_bit_for_bit(pool: Pool, tmp_path: Path, seed: int) -> None:
    path = tmp_path / "folder" / "image.safetensors"
    expected = saved(pool, path, seed)
    assert loaded(pool, path, seed) == expected
    assert path.parent.stat().st_mode & 0o077 == 0
    assert [found.name for found in path.parent.iterdir()] == [path.name]
    # And so anybody finds them who reads safetensors.
    safetensors = pytest.importorskip("safetensors.torch")
    tensors = safetensors.load_file(path)
    alone = [name for name in expected if name in tensors]
    assert "p1" in tensors or "p1" not in expected
    for name in alone:
        assert tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes() == expected[name]


def unharmed(pool: Pool, path: Path, seed: int) -> None:
    """A file that is refused changes neither module nor model."""
    module, model = Net(seed, filled=True), pool.model("careful")
    before = module.bits()
    with pytest.raises(ImageDamagedError):
        load_image(path, module, model, KEY)
    assert module.bits() == before
    assert model.regions("weights") == model.regions("runtime") == []
    model.close()


def test_a_file_that_was_cut_is_found(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "image"
    saved(pool, path, 5)
    content = path.read_bytes()
    for end in [*range(0, len(content), 4096), len(content) - 1, 7, 9]:
        path.write_bytes(content[:end])
        unharmed(pool, path, 5)
    path.write_bytes(content + bytes(4096))
    unharmed(pool, path, 5)


def test_a_bit_that_flipped_is_found_wherever_it_is(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "image"
    saved(pool, path, 5)
    content = bytearray(path.read_bytes())
    with ImageFile(path) as file:
        parts = file.manifest.parts
        starts = image_format.starts(file.manifest)
        data = len(content) - starts[-1]
    padding = [
        range(data + start + part.size_bytes, data + end)
        for start, end, part in zip(starts, starts[1:], parts, strict=False)
    ]
    chooser = random.Random(1)
    # All but the padding, which nobody reads.
    read = [at for at in range(len(content)) if not any(at in between for between in padding)]
    for at in chooser.sample(read, 400):
        content[at] ^= 1 << (bit := chooser.randrange(8))
        path.write_bytes(content)
        unharmed(pool, path, 5)
        content[at] ^= 1 << bit


@pytest.mark.parametrize("call", ["posix_fallocate", "pwrite", "fsync"])
def test_a_disk_that_fills_up_leaves_what_was_there(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "image"
    expected = saved(pool, path, 1)
    module, model = Net(2, filled=True), pool.model("second")
    adopt(module, model)
    for nth in range(1, 20):
        failing = Failing(getattr(os, call), nth, FULL)
        with monkeypatch.context() as patched:
            patched.setattr(os, call, failing)
            try:
                save_image(path, module, model, KEY)
            except ImageWriteError as error:
                assert "No space left on device" in str(error)
                replaced = call == "fsync" and nth == 2  # the folder's
            else:
                assert failing.calls < nth
                break
        assert [found.name for found in tmp_path.iterdir()] == ["image"]
        if not replaced:
            assert loaded(pool, path, 1) == expected
    assert nth > 1
    model.close()


def test_a_file_of_something_else_is_refused(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "image"
    saved(pool, path, 5)
    module, model = Net(5, filled=False), pool.model("a")
    with pytest.raises(UsageError, match="is of another vllm"):
        load_image(path, module, model, KEY | {"vllm": "0.33.0"})
    with pytest.raises(UsageError, match="is of another rank"):
        load_image(path, module, model, KEY | {"rank": "1"})
    with pytest.raises(UsageError, match="is of another module"):
        load_image(path, Net(6, filled=False), model, KEY)
    with pytest.raises(FileNotFoundError):
        load_image(tmp_path / "none", module, model, KEY)
    for content in (b"", b"x" * 5000, (4088).to_bytes(8, "little") + b" " * 4088):
        path.write_bytes(content)
        with pytest.raises(GpupoolError):
            load_image(path, module, model, KEY)
    assert model.regions("weights") == []


def test_a_module_that_is_not_all_in_the_model_is_not_written(pool: Pool, tmp_path: Path) -> None:
    module, model = Net(1, filled=True), pool.model("a")
    with pytest.raises(UsageError, match="is not in the memory of model 'a'"):
        save_image(tmp_path / "image", module, model, KEY)
    adopt(module, model)
    with model.resident(), pytest.raises(UsageError, match="while its model is out"):
        save_image(tmp_path / "image", module, model, KEY)
    model.swap_out()
    module.late = torch.zeros(3)
    with pytest.raises(UsageError, match=r"'\.late' is not in the memory"):
        places_in(module, model)


def test_a_module_with_tensors_in_a_list_is_not_written(pool: Pool, tmp_path: Path) -> None:
    module, model = Net(3, filled=True), pool.model("a")
    module.listed = [module.p0, torch.empty(0)]  # of these an image has all
    module.more = (1, [torch.ones(3)])
    adopt(module, model)
    with pytest.raises(UsageError, match=r"'\.more\[1\]\[0\]' is in a tuple or list"):
        save_image(tmp_path / "x", module, model, KEY)
    del module.more
    save_image(tmp_path / "x", module, model, KEY)


def test_a_view_in_a_list_is_not_left_behind(pool: Pool, tmp_path: Path) -> None:
    saved(pool, tmp_path / "x", 3)
    module, model = Net(3, filled=False), pool.model("a")
    module.listed = [module.p0.data[:1]]
    with pytest.raises(UsageError, match="outside of the module also refers to"):
        load_image(tmp_path / "x", module, model, KEY)


def test_memory_that_something_else_refers_to_is_not_exchanged(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "image"
    saved(pool, path, 5)
    module, model = Net(5, filled=True), pool.model("a")
    before, alias = module.bits(), module.p0.detach()
    with pytest.raises(UsageError, match="outside of the module also refers to"):
        load_image(path, module, model, KEY)
    del alias
    assert module.bits() == before
    load_image(path, module, model, KEY)
    with pytest.raises(UsageError, match="in the memory of model 'a' already"):
        load_image(path, module, model, KEY)


def test_a_module_whose_tensors_cannot_all_be_moved_is_as_before(
    pool: Pool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "image"
    saved(pool, path, 5)
    for nth in range(1, 100):
        module, model = Net(5, filled=True), pool.model(f"try {nth}")
        before = module.bits()
        monkeypatch.setattr(restore, "over_place", Failing(over_place, nth, FULL))
        try:
            load_image(path, module, model, KEY)
        except OSError:
            assert module.bits() == before
            assert model.regions("weights") == model.regions("runtime") == []
        else:
            break
        model.close()
    assert nth > 5


def test_two_modules_of_one_model_have_regions_of_their_own(pool: Pool, tmp_path: Path) -> None:
    model, again = pool.model("both"), pool.model("both again")
    modules_of = torch.nn.ModuleList([Net(1, filled=True), Net(2, filled=True)])
    expected = [module.bits() for module in modules_of]
    for module in modules_of:
        adopt(module, model)
    save_image(tmp_path / "image", modules_of, model, KEY)
    fresh = torch.nn.ModuleList([Net(1, filled=False), Net(2, filled=False)])
    load_image(tmp_path / "image", fresh, again, KEY)
    with again.resident():
        assert [module.bits() for module in fresh] == expected
