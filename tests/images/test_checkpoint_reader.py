"""Checkpoints are read ahead as they are, and what is odd about one is said before it is used."""

from __future__ import annotations

import errno
import json
import mmap
import os
import random
import threading
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402
from image_parts import real_preadv  # noqa: E402

from gpupool.errors import ImageReadError, UsageError  # noqa: E402
from gpupool.images import checkpoint_reader  # noqa: E402
from gpupool.images.checkpoint_reader import Checkpoint  # noqa: E402

KINDS = list(checkpoint_reader._KINDS.values())


def same(one: Any, other: Any) -> bool:
    flat = (tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other))
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*flat)


def made(seed: int, kind: Any, shape: tuple[int, ...]) -> Any:
    count = torch.Size(shape).numel() * kind.itemsize
    content = bytearray(random.Random(seed).randbytes(max(count, 1)))
    if kind is torch.bool:
        content = bytearray(byte & 1 for byte in content)
    raw = torch.frombuffer(content, dtype=torch.uint8)[:count]
    return raw.view(kind).reshape(shape) if count else torch.empty(shape, dtype=kind)


@given(
    files=st.lists(
        st.lists(
            st.tuples(st.sampled_from(KINDS), st.lists(st.integers(0, 40), max_size=3)),
            max_size=5,
        ),
        min_size=1,
        max_size=3,
    ),
    window=st.sampled_from([1, 5000, 1 << 20]),
    read=st.sampled_from([4096, 3 * 4096, 8 << 20]),
    named=st.booleans(),
)
@settings(max_examples=60)
def test_it_is_what_the_formats_own_library_reads(
    tmp_path_factory: pytest.TempPathFactory,
    files: list[list[tuple[Any, list[int]]]],
    window: int,
    read: int,
    named: bool,
) -> None:
    folder = tmp_path_factory.mktemp("checkpoint")
    paths, due = [], {}
    for number, kinds in enumerate(files):
        tensors = {
            f"{number}.{at}": made(at, kind, tuple(shape)) for at, (kind, shape) in enumerate(kinds)
        }
        paths.append(folder / f"{number}.safetensors")
        metadata = {"format": "pt"} if named else None
        safetensors.save_file(tensors, paths[-1], metadata=metadata)
        due |= safetensors.load_file(paths[-1])
    heard: list[int] = []
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(checkpoint_reader, "_READ_BYTES", read)
        checkpoint = Checkpoint(paths)
        size_bytes = checkpoint.size_bytes
        found = dict(checkpoint.tensors(heard.append, window))
    assert found.keys() == due.keys()
    assert all(same(found[name], due[name]) for name in due)
    assert sum(heard) == size_bytes


def plain(folder: Path, tensors: int = 6) -> Path:
    path = folder / "model.safetensors"
    safetensors.save_file({f"w{n}": made(n, torch.float32, (50, 50)) for n in range(tensors)}, path)
    return path


def readers() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("gpupool-checkpoint")]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_who_takes_no_more_leaves_nobody_reading(tmp_path: Path, taken: int) -> None:
    checkpoint = Checkpoint([plain(tmp_path)])
    (file,) = {entry.file for entry in checkpoint.entries}
    tensors = checkpoint.tensors(window_bytes=30_000)
    for _ in range(taken):
        next(tensors)
    tensors.close()  # type: ignore[attr-defined]
    if taken == 0:  # it never began
        checkpoint.close()
    assert readers() == [] and file.fileno() == -1


@pytest.mark.parametrize("fails_at", range(8))
def test_a_read_that_fails_is_told_and_leaves_nobody_reading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails_at: int
) -> None:
    path = plain(tmp_path)
    calls = iter(range(1000))

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if next(calls) == fails_at:
            raise OSError(errno.EIO, "Input/output error")
        return real_preadv(fd, buffers, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    with pytest.raises(ImageReadError, match=r"cannot be read at byte .*Input/output error"):
        list(Checkpoint([path]).tensors())
    assert readers() == []


def test_a_file_that_is_cut_as_it_is_read_is_told(tmp_path: Path) -> None:
    path = plain(tmp_path)
    checkpoint = Checkpoint([path])
    os.truncate(path, path.stat().st_size - 1)
    with pytest.raises(UsageError, match="became shorter as it was read, within 'w5'"):
        list(checkpoint.tensors())


@pytest.mark.parametrize("size", [0, 7, 8, 50, 400])
def test_a_file_that_was_cut_is_not_understood(tmp_path: Path, size: int) -> None:
    path = plain(tmp_path)
    os.truncate(path, size)
    with pytest.raises(UsageError):
        Checkpoint([path])


def written(path: Path, header: object, data: bytes = bytes(16)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"[]", "is not understood"),
        (b"{", "is not understood"),
        ({"w": {"dtype": "F32", "shape": [4]}}, "is not understood"),
        ({"w": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]}}, "the type F4"),
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}, "does not lie where"),
        ({"w": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]}}, "does not lie where"),
        ({"w": {"dtype": "F32", "shape": [-1, -4], "data_offsets": [0, 16]}}, "does not lie where"),
        ({"w": {"dtype": "F32", "shape": [4], "data_offsets": [-4, 12]}}, "does not lie where"),
        ({"w": {"dtype": "F32", "shape": [2**62, 4], "data_offsets": [0, 16]}}, "does not lie"),
    ],
)
def test_what_is_not_understood_is_said_before_a_tensor_is_read(
    tmp_path: Path, header: object, said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        Checkpoint([written(tmp_path / "odd.safetensors", header)])


@given(st.binary(max_size=60), st.integers(0, 2**64 - 1))
def test_whatever_is_in_a_file_there_is_one_kind_of_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, length: int
) -> None:
    path = tmp_path_factory.mktemp("any") / "any.safetensors"
    for begin in (length, len(content)):
        path.write_bytes(begin.to_bytes(8, "little") + content)
        try:
            tensors = dict(Checkpoint([path]).tensors())
        except UsageError:
            continue
        assert tensors == {} and content.strip().startswith(b"{")


@given(
    kept=st.lists(st.sampled_from(["dropped", "tensor", "view", "storage", "array"]), max_size=30),
    window=st.sampled_from([20_000, 60_000, 1 << 20]),
)
@settings(max_examples=40)
def test_what_somebody_has_still_is_read_over_by_nobody(
    tmp_path_factory: pytest.TempPathFactory, kept: list[str], window: int
) -> None:
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    due = {f"w{n:02}": made(n, torch.float32, (50, 50 - n % 3)) for n in range(len(kept))}
    safetensors.save_file(due, path)
    held: dict[str, Any] = {}
    for (name, tensor), how in zip(
        Checkpoint([path]).tensors(window_bytes=window), kept, strict=True
    ):
        assert same(tensor, due[name])
        if how == "tensor":
            held[name] = tensor
        elif how == "view":
            held[name] = tensor[1:]
        elif how == "storage":
            held[name] = tensor.untyped_storage()
        elif how == "array":
            held[name] = tensor.numpy()
        del tensor
    for name, one in held.items():
        if isinstance(one, torch.UntypedStorage):
            raw = torch.tensor([], dtype=torch.uint8).set_(one)
            assert bytes(raw.numpy())[-due[name].nbytes :] == due[name].numpy().tobytes()
        elif isinstance(one, torch.Tensor):
            assert same(one, due[name][-len(one) :])
        else:
            assert one.tobytes() == due[name].numpy().tobytes()


def test_memory_is_read_into_again(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    due = {f"w{n:02}": made(n, torch.float32, (50, 50)) for n in range(40)}
    safetensors.save_file(due, path)
    places = set()
    for name, tensor in Checkpoint([path]).tensors(window_bytes=30_000):
        assert same(tensor, due[name])
        places.add(tensor.data_ptr() // mmap.PAGESIZE)
        del tensor
    assert len(places) <= 6  # three ahead, one that is taken, and two that waited for it
