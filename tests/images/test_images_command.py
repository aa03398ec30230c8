"""``gpupool images``: what is there, whether it is sound, and out with it."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest
from click.testing import CliRunner

from gpupool.cli import main
from gpupool.images.cache import ImageCache
from gpupool.images.file import write_image

KEYS = [{"vllm": "0.32.0", "checkpoint": "a"}, {"vllm": "0.33.0", "checkpoint": "b"}]


@pytest.fixture
def paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two images where engines keep them by default, the first used last."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = ImageCache(tmp_path / "gpupool" / "images")
    found = [cache.path_of("org/model", key) for key in KEYS]
    for path, key in zip(found, KEYS, strict=True):
        data = random.Random(path.name).randbytes(3_000_000)
        write_image(path, key, [("weights", memoryview(data))], [])
        os.utime(path, (1000 - found.index(path), 1000 - found.index(path)))
    return found


def run(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["images", *arguments])
    return done.exit_code, done.output


def test_they_are_listed(paths: list[Path]) -> None:
    code, text = run("list", "--json")
    assert code == 0
    found = json.loads(text)
    assert [one["file"] for one in found] == [path.name for path in paths]
    assert [one["key"] for one in found] == KEYS
    assert [one["used_s"] for one in found] == [1000, 999]
    assert [one["size_bytes"] for one in found] == [path.stat().st_size for path in paths]
    code, text = run("list")
    assert [line.split()[0] for line in text.splitlines()] == [*(p.name for p in paths), "2"]
    assert "vLLM 0.33.0" in text
    paths[0].write_bytes(b"nonsense" * 1000)
    assert "no file of images" in run("list")[1]
    assert run("list", "--folder", str(paths[0].parent / "none")) == (0, "0 images, 0 bytes\n")


def test_a_damaged_one_is_told(paths: list[Path]) -> None:
    code, text = run("verify")
    assert (code, text.count("every byte is what was written")) == (0, 2)
    content = bytearray(paths[1].read_bytes())
    content[-2_000_000] ^= 16
    paths[1].write_bytes(content)
    code, text = run("verify")
    assert code == 1
    assert f"{paths[1]}: from byte 4096 on, in weights, it is not what was written" in text
    assert "1 of the images are damaged" in text
    assert run("verify", paths[0].name)[0] == 0


def test_they_are_removed_by_name(paths: list[Path], tmp_path: Path) -> None:
    other = tmp_path / "other.image.safetensors"
    other.write_text("")
    assert run("remove")[0] == 2
    assert run("remove", "--all", paths[0].name)[0] == 2
    code, text = run("remove", f"../../{other.name}")
    assert (code, "has no image" in text) == (1, True)
    assert run("remove", paths[0].name)[0] == 0
    assert [path.exists() for path in (*paths, other)] == [False, True, True]
    assert run("remove", "--all")[0] == 0
    assert [path.exists() for path in (*paths, other)] == [False, False, True]
