"""The folder of images: what is looked up, what goes when there is no room, and what stays."""

from __future__ import annotations

import errno
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from failing import Failing
from hypothesis import given
from hypothesis import strategies as st

from gpupool.errors import ImageWriteError, UsageError
from gpupool.images.cache import SUFFIX, ImageCache, verify
from gpupool.images.checkpoint import checkpoint_digest
from gpupool.images.file import UNFINISHED, ImageFile, write_image

KEY = {"vllm": "0.32.0", "checkpoint": "ab"}


def put(cache: ImageCache, name: str, size_bytes: int, used_s: int) -> Path:
    path = cache.path_of(name, KEY)
    content = random.Random(name).randbytes(size_bytes)
    write_image(path, KEY, [("weights", memoryview(content))], [])
    os.utime(path, (used_s, used_s))
    return path


@given(
    st.dictionaries(st.sampled_from("abcd"), st.text(max_size=3), max_size=3),
    st.dictionaries(st.sampled_from("abcd"), st.text(max_size=3), max_size=3),
    st.text(max_size=200),
)
def test_a_key_has_a_path_of_its_own(one: dict[str, str], other: dict[str, str], name: str) -> None:
    cache = ImageCache(Path("/nowhere"))
    path = cache.path_of(name, one)
    assert path.parent == cache.folder
    assert len(os.fsencode(path.name)) < 200
    assert not path.name.startswith(UNFINISHED)
    assert (path == cache.path_of(name, other)) == (one == other)
    assert path == cache.path_of(name, dict(reversed(one.items())))


def test_what_was_used_longest_ago_goes_and_what_is_in_use_stays(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    for seed in range(40):
        chooser = random.Random(seed)
        limit_bytes = chooser.randint(20_000, 120_000)
        cache = ImageCache(folder, limit_bytes)
        paths = [put(cache, f"m{i}", chooser.randint(1, 20_000), i * 10) for i in range(6)]
        chooser.shuffle(paths)
        for at, path in enumerate(paths):
            os.utime(path, (100 + at, 100 + at))
        sizes = {path: path.stat().st_size for path in paths}
        used = chooser.randrange(6)
        asked = chooser.randint(1, 40_000)
        with ImageFile(paths[used]):
            try:
                gone = cache.make_room(asked)
            except ImageWriteError as error:
                assert "raise image_cache_bytes" in str(error)
                left = [entry.path for entry in cache.entries()]
                assert left == paths
                assert asked > limit_bytes or sizes[paths[used]] + asked > limit_bytes
            else:
                left = [path for path in paths if path.exists()]
                assert paths[used] in left
                assert sum(sizes[path] for path in left) + asked <= limit_bytes
                # In the order of their last use, and no more than had to.
                assert gone == [p for p in paths if p != paths[used]][: len(gone)]
                if gone:
                    assert sum(sizes[p] for p in [*left, gone[-1]]) + asked > limit_bytes
        for path in paths:
            cache.remove(path)


def test_a_file_that_is_replaced_needs_no_room_of_its_own(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "images", 60_000)
    first, second = put(cache, "a", 20_000, 1), put(cache, "b", 20_000, 2)
    assert cache.make_room(30_000, but=first) == []
    assert cache.make_room(30_000, but=second) == []
    cache.mark_used(first)
    assert cache.make_room(30_000) == [second]


def room_for(cache: ImageCache, path: Path, size_bytes: int, allocate: Callable[[], None]) -> None:
    cache.make_room(size_bytes, allocate, but=path)


@pytest.mark.parametrize("count", [2, 5])
def test_of_several_that_miss_at_once_no_more_write_than_there_is_room_for(
    tmp_path: Path, count: int
) -> None:
    """Each writes once all have asked for room: the first to ask has it, the others are told."""
    cache = ImageCache(tmp_path / "images", 100_000)
    data = memoryview(random.Random(1).randbytes(60_000))
    asked = threading.Barrier(count)

    def write(name: str) -> bool:
        path = cache.path_of(name, KEY)

        def room(size_bytes: int, allocate: Callable[[], None]) -> None:
            try:
                cache.make_room(size_bytes, allocate, but=path)
            finally:
                asked.wait(30)

        try:
            write_image(path, KEY, [("weights", data)], [], room=room)
        except ImageWriteError as error:
            assert "raise image_cache_bytes" in str(error)
            return False
        return True

    with ThreadPoolExecutor(count) as threads:
        written = list(threads.map(write, "abcdefgh"[:count]))
    assert sum(written) == 1 == len(cache.entries())
    assert len(list(cache.folder.iterdir())) == 1


@pytest.mark.parametrize("helps", [False, True])
def test_nothing_goes_for_an_image_that_the_disk_does_not_take(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, helps: bool
) -> None:
    """Unless it has no room for it but what goes gives it."""
    cache = ImageCache(tmp_path / "images", 60_000)
    old, new = put(cache, "a", 20_000, 1), put(cache, "b", 20_000, 2)
    path = cache.path_of("c", KEY)
    full = Failing(os.posix_fallocate, 1, lambda: OSError(errno.ENOSPC, "No space left on device"))
    system = os.statvfs(cache.folder)
    fields = list(system)
    fields[3] = fields[4] = 0 if not helps else 16_000 // system.f_frsize  # free blocks
    monkeypatch.setattr(os, "statvfs", lambda _: os.statvfs_result(fields))
    monkeypatch.setattr(os, "posix_fallocate", full)
    data = memoryview(random.Random(3).randbytes(24_000))
    try:
        write_image(path, KEY, [("weights", data)], [], room=partial(room_for, cache, path))
    except ImageWriteError as error:
        assert not helps and "No space left on device" in str(error)
    left = {old.name, new.name} if not helps else {new.name, path.name}
    assert {found.name for found in cache.folder.iterdir()} == left


def test_the_folder_never_has_more_than_its_limit(tmp_path: Path) -> None:
    for seed in range(10):
        chooser = random.Random(seed)
        limit_bytes = chooser.randint(30_000, 100_000)
        cache = ImageCache(tmp_path / f"images {seed}", limit_bytes)
        written = 0
        for _ in range(20):
            path = cache.path_of(chooser.choice("abcdef"), KEY)
            data = memoryview(chooser.randbytes(chooser.randint(1, 40_000)))

            try:
                write_image(path, KEY, [("weights", data)], [], room=partial(room_for, cache, path))
            except ImageWriteError:
                assert len(data) + 2 * 4096 > limit_bytes
            else:
                written += 1
                assert verify(path) is None
            assert sum(entry.size_bytes for entry in cache.entries()) <= limit_bytes
        assert written > 0


def test_what_a_killed_writer_left_goes_and_what_one_writes_stays(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "images", 10_000_000)
    left = cache.folder / f"{UNFINISHED}left"
    cache.make_room(0)
    left.write_bytes(b"x" * 100)
    seen: list[int] = []

    def another_makes_room(done: int, of: int) -> None:
        cache.make_room(0)
        seen.append(len(list(cache.folder.glob(f"{UNFINISHED}*"))))

    path = cache.path_of("a", KEY)
    data = memoryview(random.Random(1).randbytes(1000))
    write_image(path, KEY, [("weights", data)], [], progress=another_makes_room)
    assert seen == [1]
    assert not left.exists()
    assert [found.name for found in cache.folder.iterdir()] == [path.name]
    assert verify(path) is None


def test_a_folder_that_others_can_write_to_is_refused(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "images")
    assert cache.is_private()
    cache.make_room(1)
    assert cache.folder.stat().st_mode & 0o777 == 0o700
    cache.folder.chmod(0o777)
    assert not cache.is_private()
    with pytest.raises(ImageWriteError, match="written by others"):
        cache.make_room(1)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(ImageWriteError, match="cannot take an image"):
        ImageCache(blocked / "images").make_room(1)


def test_a_damaged_file_is_told_from_a_sound_one(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path / "images")
    path = put(cache, "a", 9_000_000, 1)
    assert verify(path) is None
    content = bytearray(path.read_bytes())
    content[-300_000] ^= 4
    path.write_bytes(content)
    assert "is not what was written" in (verify(path) or "")
    path.write_bytes(content[:-4096])
    assert "and should have" in (verify(path) or "")
    assert cache.remove(path)
    assert not cache.remove(path)
    assert "No such file" in (verify(path) or "")
    assert path.name.endswith(SUFFIX)


def checkpoint(folder: Path) -> Path:
    folder.mkdir()
    for name in ("model-1.safetensors", "model-2.safetensors"):
        (folder / name).write_bytes(name.encode() * 10)
    for name in ("config.json", "model.safetensors.index.json", "modeling_x.py"):
        (folder / name).write_text("{}")
    for name in ("tokenizer.json", "generation_config.json", "README.md"):
        (folder / name).write_text("{}")
    return folder


def rewritten(path: Path) -> None:
    """Other content of the same length in place, with the times of before."""
    before = path.stat()
    path.write_bytes(b"y" * before.st_size)
    while True:  # the clock of the file system may stand still for some milliseconds
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        if path.stat().st_ctime_ns != before.st_ctime_ns:
            break


def replaced(path: Path) -> None:
    fresh = path.with_name("fresh")
    fresh.write_bytes(path.read_bytes())
    before = path.stat()
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.replace(path)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *[("model-1.safetensors", change) for change in (rewritten, replaced, os.truncate)],
        ("model-2.safetensors", Path.unlink),
        ("config.json", rewritten),
        ("model.safetensors.index.json", Path.unlink),
        ("modeling_x.py", rewritten),
    ],
)
def test_another_checkpoint_has_another_digest(tmp_path: Path, name: str, change: object) -> None:
    folder = checkpoint(tmp_path / "c")
    before = checkpoint_digest(folder)
    assert checkpoint_digest(folder) == before
    if change is os.truncate:
        os.truncate(folder / name, 7)
    else:
        change(folder / name)  # type: ignore[operator]
    assert checkpoint_digest(folder) != before


def test_what_no_weight_depends_on_is_not_in_the_digest(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "c")
    before = checkpoint_digest(folder)
    for name in ("tokenizer.json", "generation_config.json", "README.md"):
        rewritten(folder / name)
    replaced(folder / "config.json")  # the same content
    assert checkpoint_digest(folder) == before
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(UsageError, match="no file of weights"):
        checkpoint_digest(folder)


def test_a_file_named_by_its_content_is_known_by_its_name(tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "1"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    (blobs / ("a" * 64)).write_bytes(b"x" * 100)
    (blobs / ("b" * 64)).write_bytes(b"x" * 100)
    link = snapshot / "model.safetensors"
    link.symlink_to(f"../../blobs/{'a' * 64}")
    before = checkpoint_digest(snapshot)
    replaced(blobs / ("a" * 64))  # as a download elsewhere is another inode
    assert checkpoint_digest(snapshot) == before
    link.unlink()
    link.symlink_to(f"../../blobs/{'b' * 64}")
    assert checkpoint_digest(snapshot) != before
