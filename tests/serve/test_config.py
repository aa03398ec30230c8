from __future__ import annotations

import copy
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from gpupool.serve.config import ImagesConfig, ParkingConfig, load_config
from gpupool.serve.failures import ConfigError
from gpupool.serve.sizes import GIB, KIB, MIB, ByteSize, format_size, parse_size

Make = Callable[[str], Path]

GOOD: dict[str, Any] = {
    "pool": {"device": "host", "budget": "192MiB", "page": "2MiB"},
    "models": [{"name": "a", "model": "a", "kv_cache": "32MiB"}],
}


def write(tmp_path: Path, content: object) -> Path:
    path = tmp_path / "pool.yaml"
    path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def changed(*keys: str | int, value: Any) -> dict[str, Any]:
    content = copy.deepcopy(GOOD)
    at: Any = content
    for key in keys[:-1]:
        at = at[key] if isinstance(key, int) else at.setdefault(key, {})
    if value is ...:
        del at[keys[-1]]
    else:
        at[keys[-1]] = value
    return content


def refusal(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and message.endswith(".") and "\n" not in message
    return message


def test_reads_everything(tmp_path: Path, make_checkpoint: Make) -> None:
    make_checkpoint("a")
    content = changed("models", 0, "args", value={"dtype": "float32", "enforce-eager": True})
    content["server"] = {"host": "0.0.0.0", "port": 0, "max_body": "1MiB"}
    sizes = {"kv_cache": 7, "kv_store": "1KiB", "cudagraphs": "2KiB", "loading": "3KiB"}
    content["models"].append({"name": "org/b", "model": "org/b", **sizes})
    config = load_config(write(tmp_path, content))
    assert (config.pool.budget_bytes, config.pool.page_bytes) == (192 * MIB, 2 * MIB)
    assert (config.pool.turn_ms, config.pool.min_tokens) == (200, 8)
    assert config.pool.revoke_timeout_s == 30
    assert (config.server.port, config.server.max_body_bytes) == (0, MIB)
    a, b = config.models
    assert (a.model, a.is_local) == (str((tmp_path / "a").resolve()), True)
    assert a.args == {"dtype": "float32", "enforce-eager": True}
    assert (b.model, b.is_local, b.kv_cache_bytes) == ("org/b", False, 7)
    assert (b.kv_store_bytes, a.kv_store_bytes) == (1024, None)
    assert (b.cudagraph_bytes, a.cudagraph_bytes) == (2048, None)
    assert (b.loading_bytes, a.loading_bytes) == (3072, None)
    assert (a.verify, a.share, config.images) == ("always", False, None)


def test_parking_has_a_folder_of_its_own(tmp_path: Path, make_checkpoint: Make) -> None:
    make_checkpoint("a")
    assert load_config(write(tmp_path, GOOD)).parking is None
    content = {**GOOD, "parking": {"folder": "parked", "limit": "7MiB"}}
    content["pool"] = {**GOOD["pool"], "host_budget": "3GiB"}
    config = load_config(write(tmp_path, content))
    assert config.parking == ParkingConfig(str(tmp_path / "parked"), ByteSize(7 * MIB))
    assert config.pool.host_budget_bytes == 3 * GIB
    for parking, why in (
        ({}, "parking.folder is missing; add it"),
        ({"folder": "x", "size": 1}, "write one of folder, limit"),
        ({"folder": "x", "limit": 0}, "parking.limit: 0 is out of range"),
    ):
        assert why in refusal(write(tmp_path, {**GOOD, "parking": parking}))
    images = {**GOOD, "images": {"size": 1}}
    assert "images.size is not a known key; remove it or write one of folder, limit" in refusal(
        write(tmp_path, images)
    )


def test_images_are_kept_beside_the_file(tmp_path: Path, make_checkpoint: Make) -> None:
    make_checkpoint("a")
    for images, expected in (
        ({}, ImagesConfig()),
        ({"folder": "im", "limit": "2GiB"}, ImagesConfig(str(tmp_path / "im"), ByteSize(2 * GIB))),
        ({"folder": "/images"}, ImagesConfig("/images")),
    ):
        config = load_config(write(tmp_path, {**GOOD, "images": images}))
        assert config.images == expected


def test_defaults(tmp_path: Path, make_checkpoint: Make) -> None:
    make_checkpoint("a")
    config = load_config(write(tmp_path, changed("pool", "page", value=...)))
    assert config.pool.page_bytes == 64 * MIB
    assert (config.server.host, config.server.port) == ("127.0.0.1", 8000)
    assert config.server.max_body_bytes == 16 * MIB


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "at the top"),
        ("pool: [", "line"),
        ("pool: {device: host, device: cuda}\n", "`device` is given twice"),
        ("- 1\n", "at the top"),
        ("pool: !!python/object:os.system {}\n", "correct the YAML"),
        (changed("models", value=[]), "models is empty"),
        (changed("models", value=...), "models is missing"),
        (changed("pool", value=...), "pool is missing"),
        (changed("extra", value=1), "extra is not a known key"),
        (changed("pool", "bugdet", value=1), "pool.bugdet is not a known key"),
        (changed("server", "prot", value=1), "server.prot is not a known key"),
        (changed("models", 0, "kv", value=1), "models[0].kv is not a known key"),
        (changed("pool", "device", value=...), "pool.device is missing"),
        (changed("pool", "device", value="gpu"), "pool.device: 'gpu' is unknown"),
        (changed("pool", "device", value="cuda:x"), "pool.device"),
        (changed("pool", "page", value="3MiB"), "pool.page: 3 MiB"),
        (changed("pool", "page", value="1MiB"), "pool.page: 1 MiB"),
        (changed("pool", "page", value="6MiB"), "pool.page: 6 MiB"),
        (changed("pool", "budget", value="1MiB"), "pool.budget: 1 MiB is less than one page"),
        (changed("pool", "budget", value="lots"), "pool.budget: 'lots' is not a size"),
        (changed("pool", "budget", value=True), "pool.budget: True is not a size"),
        (changed("pool", "budget", value=0), "pool.budget: 0 is out of range"),
        (changed("pool", "budget", value=1.5), "pool.budget: 1.5 is not a size"),
        (changed("pool", "turn_ms", value=0), "pool.turn_ms"),
        (changed("pool", "policy", value="fair"), "pool.policy"),
        (changed("pool", "ttft_ms", value=0), "pool.ttft_ms"),
        (changed("pool", "record", value="x"), "pool.record: turns know of no requests"),
        (changed("pool", "patience_ms", value=5), "pool.patience_ms: turns know of no requests"),
        (changed("models", 0, "weight", value=0), "models[0].weight"),
        (changed("models", 0, "tbt_ms", value=9), "models[0].tbt_ms: only deadlines go by it"),
        (changed("pool", "min_tokens", value=0), "pool.min_tokens"),
        (changed("pool", "revoke_timeout_s", value=-1), "pool.revoke_timeout_s"),
        (changed("server", "port", value=65536), "server.port"),
        (changed("models", 0, "name", value=""), "models[0].name"),
        (changed("models", 0, "name", value="a b"), "models[0].name"),
        (changed("models", 0, "kv_cache", value="1GiB"), "models[0].kv_cache: needs 1073741824"),
        (
            changed("models", 0, "cudagraphs", value="192MiB"),
            "cudagraphs: needs 234881024 bytes with",
        ),
        (changed("models", 0, "loading", value="193MiB"), "models[0].loading: needs 202375168"),
        (changed("models", 0, "args", value={"port": 1}), "models[0].args.port"),
        (changed("models", 0, "args", value={"worker_cls": "x"}), "models[0].args.worker_cls"),
        (changed("models", 0, "args", value={"--dtype": "x"}), "'--dtype' is not an option"),
        (changed("models", 0, "args", value={"dtype": None}), "models[0].args"),
        (
            changed("models", 0, "args", value={"max-model-len": 1, "max_model_len": 2}),
            "same option as max-model-len",
        ),
        (
            changed("models", 0, "args", value={"tensor_parallel_size": 2}),
            "the pool's devices, which are 1",
        ),
        (
            changed("models", 0, "args", value={"dp": 2}),
            "tensor parallel alone",
        ),
        (changed("pool", "device", value=["host"]), "length >= 2"),
        (changed("pool", "device", value=["host", "gpu"]), "'gpu' is unknown"),
        (changed("pool", "device", value=["host", "cuda"]), "of one kind"),
        (changed("pool", "device", value=["cuda", "cuda:0"]), "names a device twice"),
        (changed("models", 0, "model", value="./none"), "models[0].model: "),
        (changed("models", 0, "model", value="/none/here"), "/none/here does not exist"),
        (changed("models", 0, "model", value="none"), "does not exist"),
        (changed("models", 0, "model", value="../x/y"), "does not exist"),
        (changed("models", 0, "model", value="pool.yaml"), "is not a directory"),
    ],
)
def test_refuses(tmp_path: Path, make_checkpoint: Make, content: object, says: str) -> None:
    make_checkpoint("a")
    assert says in refusal(write(tmp_path, content))


def test_refuses_a_name_given_twice(tmp_path: Path, make_checkpoint: Make) -> None:
    make_checkpoint("a")
    content = copy.deepcopy(GOOD)
    content["models"] *= 2
    assert "models[1].name: 'a' is already the name of models[0]" in refusal(
        write(tmp_path, yaml.safe_dump(content))
    )


def test_refuses_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "pool.yaml")
    (tmp_path / "pool.yaml").write_bytes(b"\xff\xfe\x00")
    assert "not UTF-8" in refusal(tmp_path / "pool.yaml")


def test_merges_of_anchors_are_allowed(tmp_path: Path, make_checkpoint: Make) -> None:
    make_checkpoint("a")
    text = """
pool: {device: host, budget: 192MiB, page: 2MiB}
models:
  - &first {name: a, model: a, kv_cache: 32MiB}
  - {<<: *first, name: b}
"""
    assert [m.name for m in load_config(write(tmp_path, text)).models] == ["a", "b"]


def shard(header: bytes, data: bytes = b"", length: int | None = None) -> bytes:
    return struct.pack("<Q", len(header) if length is None else length) + header + data


TENSOR = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()


@pytest.mark.parametrize(
    ("file", "content", "says"),
    [
        ("config.json", None, "holds no config.json"),
        ("config.json", b"{", "config.json is not JSON"),
        ("config.json", b"\xff", "config.json is not JSON"),
        ("config.json", b"[" * 100_000, "config.json is not JSON"),
        ("config.json", b"[]", "config.json holds no JSON object"),
        ("model.safetensors", None, "holds no *.safetensors file"),
        ("model.safetensors", b"", "model.safetensors is damaged"),
        ("model.safetensors", b"version https://git-lfs", "model.safetensors is damaged"),
        ("model.safetensors", shard(b"{}", length=1 << 62), "longer than the file"),
        ("model.safetensors", shard(b"[]"), "not what safetensors writes"),
        ("model.safetensors", shard(b'{"w": 1}'), "not what safetensors writes"),
        ("model.safetensors", shard(TENSOR, b"123"), "promises"),
        ("model.safetensors", shard(TENSOR, b"12345"), "promises"),
        ("model.safetensors.index.json", b"{}", "index.json cannot be read"),
        (
            "model.safetensors.index.json",
            b'{"weight_map": {"w": "model-2.safetensors"}}',
            "names model-2.safetensors, which does not exist",
        ),
    ],
)
def test_refuses_a_checkpoint(
    tmp_path: Path, make_checkpoint: Make, file: str, content: bytes | None, says: str
) -> None:
    path = make_checkpoint("a") / file
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_bytes(content)
    message = refusal(write(tmp_path, GOOD))
    assert "models[0].model: " in message and says in message


@given(st.integers(1, 1 << 20), st.sampled_from([("KiB", KIB), ("MiB", MIB), ("GiB", GIB)]))
def test_sizes_with_units(count: int, unit: tuple[str, int]) -> None:
    assert parse_size(f"{count}{unit[0]}") == count * unit[1]


@given(st.integers(1, (1 << 63) - 1))
def test_sizes_survive_being_written(size_bytes: int) -> None:
    assert parse_size(format_size(size_bytes).removesuffix("bytes")) == size_bytes
    assert parse_size(size_bytes) == size_bytes


@given(
    st.one_of(
        st.text(),
        st.none(),
        st.floats(),
        st.booleans(),
        st.integers(),
        st.from_regex(r"-?[0-9.]{1,30} ?[KMGkmg]?i?[Bb]?", fullmatch=True),
    )
)
def test_any_other_size_is_refused_with_a_reason(raw: object) -> None:
    try:
        size = parse_size(raw)
    except ValueError as error:
        assert repr(raw) in str(error)
    else:
        assert 1 <= size < 1 << 63


@given(st.binary(max_size=200))
def test_hostile_shards_get_one_error(tmp_path_factory: Any, content: bytes) -> None:
    from gpupool.serve import checkpoint

    path = tmp_path_factory.mktemp("shard") / "w.safetensors"
    path.write_bytes(content)
    (path.parent / "config.json").write_text("{}")
    try:
        checkpoint.check(path.parent)
    except ValueError as error:
        assert str(path) in str(error)
