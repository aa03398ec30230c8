"""Real vLLM on the CPU: engines from images answer as those from checkpoints, or are those."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from variants import write_experts, write_linked, write_plain, write_quantized, write_tied
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import (
    CompressedTensorsLinearMethod,
)

from gpupool.vllm import compat

ROOT = Path(__file__).resolve().parents[2]
Starts = dict[str, list[dict[str, Any]]]

# What may be wrong with an image, and what is told of it.
SPOILT = {
    "flip": "is not what was written",
    "cut": "and should have",
    "grow": "and should have",
    "unfit": "it cannot be processed again",
    "otherwise": "'model.layers.1' is not as it was written",
}
# Each with a folder of images of its own: what is done before a start, and what may differ in it.
STORIES: dict[str, tuple[str, list[dict[str, Any]]]] = {
    # First, when nobody but vLLM's plugins has made the format known, and with experts, for whom
    # vLLM makes a process group only if the first model of a process has some.
    "no worker": ("experts", [{"pooled": False}]),
    "plain": ("plain", [{}, {"swap": True}, {"damage": "open"}]),
    "tied": ("tied", [{}, {}]),
    "retied": ("retied", [{}, {}]),
    "experts": ("experts", [{}, {}]),
    "linked": ("linked", [{}, {"damage": "checkpoint"}]),
    "adapters": ("plain", [{"more": {"enable_lora": True, "max_lora_rank": 8}}] * 2),
    "spoilt": ("plain", [{}, *({"damage": how} for how in SPOILT), {}]),
    "foreign": ("plain", [{}, {"more": {"dtype": "float32"}}, {"damage": "foreign"}, {}]),
    "unreadable": ("plain", [{}, {"damage": "folder"}]),
    "full disk": ("plain", [{"damage": "full"}, {}]),
    "unknown": ("plain", [{"damage": "unknown"}]),
    "no room": ("plain", [{"settings": {"image_cache_bytes": 4096}}]),
    "quantized": ("quantized", [{}]),
    "damaged memory": ("plain", [{"damage": "memory"}, {}]),
    "sampled": ("plain", [{"damage": "memory", "settings": {"verify": "sample"}}]),
    "changed": ("plain", [{"damage": "changing"}]),
}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base = tmp_path_factory.mktemp("checkpoints")
    return {
        "plain": write_plain(base / "plain"),
        "tied": write_tied(base / "tied", with_copy=False),
        "retied": write_tied(base / "retied", with_copy=True),
        "experts": write_experts(base / "experts"),
        "quantized": write_quantized(base / "quantized"),
        "linked": write_linked(base / "linked"),
    }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an installation would tell of this tree's entry points."""
    folder = tmp_path_factory.mktemp("site")
    about = folder / "gpupool-0.dist-info"
    about.mkdir()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: gpupool\nVersion: 0\n")
    lines = []
    for group, points in project["entry-points"].items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (about / "entry_points.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def starts(
    checkpoints: dict[str, Path], installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> Starts:
    """All stories, told in one process, so that vLLM is imported once."""
    base = tmp_path_factory.mktemp("images")
    told = [
        {
            "story": story,
            "model": str(checkpoints[name]),
            "cache": str(base / story),
            "load_format": "gpupool",
            **given,
        }
        for story, (name, all_given) in STORIES.items()
        for given in all_given
    ]
    for name, path in checkpoints.items():
        if name not in ("linked", "quantized"):  # one is spoilt by then
            plain = {"story": f"auto {name}", "model": str(path), "cache": str(base / "none")}
            told.append({**plain, "load_format": "auto"})
    first = {"story": "auto linked", "model": str(checkpoints["linked"]), "load_format": "auto"}
    told.insert(1, {**first, "cache": str(base / "none")})
    path = os.pathsep.join([str(installed), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("images_run.py"))],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    found: Starts = {}
    for given, one in zip(told, json.loads(done.stdout.splitlines()[-1]), strict=True):
        found.setdefault(given["story"], []).append(one)
    return found


def what(one: dict[str, Any]) -> str:
    """Whether it was a hit or a miss, and whether an image was written."""
    text = "\n".join(one["log"])
    assert ("image hit" in text) != ("image miss" in text), one
    return "hit" if "image hit" in text else "written" if "image written" in text else "kept none"


def warnings(one: dict[str, Any]) -> list[str]:
    return [line for line in one["log"] if line.startswith("WARNING")]


@pytest.mark.parametrize("story", ["plain", "tied", "retied", "experts", "adapters", "linked"])
def test_a_restart_answers_from_the_image_as_from_the_checkpoint(
    starts: Starts, story: str
) -> None:
    first, again, *_ = starts[story]
    (auto,) = starts[f"auto {STORIES[story][0]}"]
    assert (what(first), what(again)) == ("written", "hit")
    assert warnings(first) == warnings(again) == []
    assert first["tokens"] == again["tokens"] == auto["tokens"]
    assert first["files"] == again["files"]
    assert len(first["files"]) == 1


def test_the_room_for_loading_goes_before_the_model_comes(starts: Starts) -> None:
    for how, one in zip(("", *SPOILT, ""), starts["spoilt"], strict=True):
        late = how in ("unfit", "otherwise")  # found out in place: loaded anew
        assert one["rooms"] == [["end", "begin", "end"] if late else ["end"]]


def test_no_byte_of_the_weights_need_be_there(starts: Starts, checkpoints: dict[str, Path]) -> None:
    blob = (checkpoints["linked"] / "model.safetensors").resolve()
    with blob.open("rb") as file:
        header_bytes = 8 + int.from_bytes(file.read(8), "little")
    assert blob.stat().st_size == header_bytes  # it was cut before the second start
    assert what(starts["linked"][1]) == "hit"


def test_what_is_wrong_with_an_image_is_told_and_it_is_made_anew(starts: Starts) -> None:
    first, *spoilt, again = starts["spoilt"]
    for one, reason in zip(spoilt, SPOILT.values(), strict=True):
        assert what(one) == "written"
        (warning,) = warnings(one)
        assert reason in warning
        assert "made anew from the checkpoint" in warning
    assert (what(first), what(again)) == ("written", "hit")
    for one in (*spoilt, again):
        assert one["tokens"] == first["tokens"]
        assert one["files"] == first["files"]
        assert one["regions"] == 1  # and nothing of an image that was given up


def test_an_image_of_another_configuration_is_another_file(starts: Starts) -> None:
    first, other, spoilt, again = starts["foreign"]
    assert [what(one) for one in (first, other, spoilt, again)] == [*["written"] * 3, "hit"]
    assert len(other["files"]) == 2
    assert first["tokens"] != other["tokens"]
    # And one that lies where another should be is not taken for it.
    (warning,) = warnings(spoilt)
    assert "is of another configuration" in warning
    assert first["tokens"] == spoilt["tokens"] == again["tokens"]


@pytest.mark.parametrize(
    ("story", "reason"),
    [
        ("full disk", "No space left on device"),
        ("no room", "raise image_cache_bytes"),
        ("unknown", "no such configuration"),
        ("damaged memory", "are not what was saved"),
    ],
)
def test_an_engine_that_cannot_write_an_image_answers(
    starts: Starts, story: str, reason: str
) -> None:
    first, *rest = starts[story]
    (auto,) = starts["auto plain"]
    assert what(first) == "kept none"
    assert reason in warnings(first)[0]
    assert first["files"] == []
    assert [what(one) for one in rest] == ["written"] * len(rest)
    assert all(one["tokens"] == auto["tokens"] for one in starts[story])


def test_an_engine_that_would_not_look_at_a_damaged_image_does_not_start(starts: Starts) -> None:
    (one,) = starts["sampled"]
    assert "DamagedMemoryError" in one["error"] and "are not what was saved" in one["error"]


def test_an_image_that_cannot_be_read_stops_no_engine(starts: Starts) -> None:
    first, spoilt = starts["unreadable"]
    assert what(spoilt) == "kept none"  # a folder is in its place
    assert len(warnings(spoilt)) == 2
    assert first["tokens"] == spoilt["tokens"]


def test_a_folder_that_others_can_write_to_is_not_trusted(starts: Starts) -> None:
    first, _, opened = starts["plain"]
    assert what(opened) == "kept none"
    assert "others can write" in warnings(opened)[0]
    assert first["tokens"] == opened["tokens"]


def test_a_checkpoint_that_changes_while_it_is_read_makes_no_image(starts: Starts) -> None:
    (one,) = starts["changed"]
    assert what(one) == "kept none"
    assert "changed while it was read" in warnings(one)[0]


def test_weights_that_vllm_cannot_take_up_processed_are_not_kept() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    assert compat.not_for_images(module) is None
    module[1].quant_method = CompressedTensorsLinearMethod(None)
    assert "CompressedTensorsLinearMethod" in (compat.not_for_images(module) or "")


def test_weights_whose_addresses_onednn_keeps_are_refused(starts: Starts) -> None:
    (one,) = starts["quantized"]
    assert one["error"].startswith("UsageError: 8-bit integer weights cannot be pooled on a CPU")


def test_without_the_worker_there_is_one_clear_error(starts: Starts) -> None:
    (one,) = starts["no worker"]
    assert one["error"] == (
        "UsageError: --load-format gpupool loads into a pool: add --worker-cls gpupool.vllm.Worker"
    )
