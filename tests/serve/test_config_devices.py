"""Pools of several devices in pool.yaml."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from test_config import GOOD, Make, changed, refusal, write

from gpupool.serve.config import load_config


def several(**more: Any) -> dict[str, Any]:
    content = changed("pool", "device", value=["host", "host"])
    content["models"][0] |= more
    return content


def test_a_pool_of_several_devices(tmp_path: Path, make_checkpoint: Make) -> None:
    make_checkpoint("a")
    config = load_config(write(tmp_path, several(args={"tensor-parallel-size": 2})))
    assert config.pool.devices == ["host", "host"]
    one = load_config(write(tmp_path, GOOD))
    assert one.pool.devices == ["host"]


def test_what_several_devices_cannot_have(tmp_path: Path, make_checkpoint: Make) -> None:
    make_checkpoint("a")
    policy = several()
    policy["pool"]["policy"] = "deadlines"
    parking = several() | {"parking": {"folder": "parked"}}
    for content, words in (
        (policy, "choose for one device; use turns"),
        (parking, "parking: is for pools of one device"),
        (several(share=True), "for pools of one device"),
        (several(kv_store="1MiB"), "for pools of one device"),
        (several(loading="1MiB"), "for pools of one device"),
        (several(args={"tp": 3}), "the pool's devices, which are 2"),
    ):
        assert words in refusal(write(tmp_path, content))
