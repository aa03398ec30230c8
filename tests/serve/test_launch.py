"""How the daemon and the engines are started: command lines, environments, devices."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_pool import MIB
from msgspec.structs import replace

from gpupool.serve import launch
from gpupool.serve.config import ArgValue, ImagesConfig, ModelConfig, ParkingConfig, PoolConfig
from gpupool.serve.failures import ServeError
from gpupool.serve.sizes import ByteSize


def test_engine_command_line() -> None:
    model = ModelConfig(
        name="a",
        model="/models/a",
        kv_cache_bytes=ByteSize(32 * MIB),
        args={
            "enforce_eager": True,
            "enable-prefix-caching": False,
            "max-model-len": 1024,
            "middleware": ["x", "y"],
            "hf-overrides": {"a": 1},
            "seed": -1,
        },
    )
    command = launch.engine_command(model, 1234, [Path("/run/x/daemon.sock")])
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    options = command[3:]
    given = dict(zip(options[0:14:2], options[1:14:2], strict=True))
    pooled = json.loads(given.pop("--additional-config"))
    assert pooled == {"gpupool": {"socket": "/run/x/daemon.sock", "model": "a"}}
    assert given == {
        "--model": "/models/a",
        "--served-model-name": "a",
        "--host": "127.0.0.1",
        "--port": "1234",
        "--worker-cls": "gpupool.vllm.Worker",
        "--kv-cache-memory-bytes": str(32 * MIB),
    }
    limited = replace(
        model,
        kv_store_bytes=ByteSize(MIB),
        cudagraph_bytes=ByteSize(2 * MIB),
        loading_bytes=ByteSize(3 * MIB),
    )
    command = launch.engine_command(limited, 1234, [Path("/run/x/daemon.sock")])
    pooled = json.loads(command[command.index("--additional-config") + 1])
    assert pooled["gpupool"]["kv_store_bytes"] == MIB
    assert pooled["gpupool"]["cudagraph_bytes"] == 2 * MIB
    assert pooled["gpupool"]["loading_bytes"] == 3 * MIB
    assert options[14:] == [
        "--enforce-eager",
        "--no-enable-prefix-caching",
        "--max-model-len=1024",
        "--middleware",
        "x",
        "y",
        '--hf-overrides={"a": 1}',
        "--seed=-1",
    ]


def test_engines_load_from_images_where_the_pool_keeps_some() -> None:
    model = ModelConfig(name="a", model="/models/a", kv_cache_bytes=ByteSize(MIB), verify="sample")
    socket = Path("/run/x/daemon.sock")
    for images, keys in (
        (ImagesConfig(), {}),
        (ImagesConfig("/images", ByteSize(5)), {"image_cache": "/images", "image_cache_bytes": 5}),
    ):
        command = launch.engine_command(model, 1, [socket], images)
        assert command[-1] == "--load-format=gpupool"
        pooled = json.loads(command[command.index("--additional-config") + 1])["gpupool"]
        assert pooled == {"socket": str(socket), "model": "a", "verify": "sample", **keys}
    command = launch.engine_command(replace(model, share=True), 1, [socket])
    assert json.loads(command[command.index("--additional-config") + 1])["gpupool"]["share"] is True
    other = replace(model, args={"load_format": "dummy"})
    assert launch.engine_command(other, 1, [socket], ImagesConfig())[-1] == "--load-format=dummy"


def test_engine_environment() -> None:
    local = ModelConfig(name="a", model="/models/a", kv_cache_bytes=ByteSize(1))
    inherited = {"PATH": "/bin", "VLLM_CPU_KVCACHE_SPACE": "4"}
    environment = launch.engine_environment(local, inherited, Path("/run/x/e0"), 3600.0, "k")
    assert "VLLM_CPU_KVCACHE_SPACE" not in environment and environment["PATH"] == "/bin"
    assert environment["TMPDIR"] == environment["VLLM_RPC_BASE_PATH"] == "/run/x/e0"
    assert environment["HF_HUB_OFFLINE"] == environment["VLLM_NO_USAGE_STATS"] == "1"
    assert environment["VLLM_API_KEY"] == "k"
    assert int(environment["VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS"]) > 3600
    hub = ModelConfig(name="a", model="org/a", kv_cache_bytes=ByteSize(1))
    assert "HF_HUB_OFFLINE" not in launch.engine_environment(hub, {}, Path("/run/x/e0"), 1.0, "k")


def test_daemon_command_line() -> None:
    pool = PoolConfig(device="host", budget_bytes=ByteSize(8 * MIB), page_bytes=ByteSize(2 * MIB))
    command = " ".join(launch.daemon_command(pool, Path("/run/x/daemon.sock"))[1:])
    assert command == (
        "-m gpupool daemon --device host --budget-bytes 8388608 --page-bytes 2097152 --turn-ms 200"
        " --min-tokens 8 --revoke-timeout-s 30 --socket /run/x/daemon.sock"
    )


def test_a_daemon_that_parks() -> None:
    sizes = {"budget_bytes": ByteSize(8 * MIB), "page_bytes": ByteSize(2 * MIB)}
    pool = PoolConfig(device="host", **sizes, host_budget_bytes=ByteSize(5))
    for parking, options in (
        (ParkingConfig("/fast/parked"), "--parking-folder /fast/parked"),
        (
            ParkingConfig("/fast/parked", ByteSize(7)),
            "--parking-folder /fast/parked --parking-limit-bytes 7",
        ),
    ):
        command = " ".join(launch.daemon_command(pool, Path("/run/x/daemon.sock"), parking))
        assert f" --host-budget-bytes 5 {options} --socket " in command


@pytest.mark.parametrize(
    ("device", "visible", "shown"),
    [
        ("host", "0,1", None),
        ("cuda", None, "0"),
        ("cuda:1", None, "1"),
        ("cuda:1", "4, 6", "6"),
        ("cuda", "GPU-8d5b", "GPU-8d5b"),
    ],
)
def test_daemon_and_engines_see_one_device(
    device: str, visible: str | None, shown: str | None
) -> None:
    inherited = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = launch.device_environment([device], inherited)
    assert found.get("CUDA_VISIBLE_DEVICES") == shown
    pool = PoolConfig(device=device, budget_bytes=ByteSize(8 * MIB), page_bytes=ByteSize(2 * MIB))
    command = launch.daemon_command(pool, Path("/run/x/daemon.sock"))
    assert command[command.index("--device") + 1] == device.partition(":")[0]


def test_a_device_that_is_not_visible_is_refused() -> None:
    with pytest.raises(ServeError, match="shows 1 devices"):
        launch.device_environment(["cuda:1"], {"CUDA_VISIBLE_DEVICES": "3"})


def test_policies_and_goals() -> None:
    pool = PoolConfig(device="host", budget_bytes=ByteSize(64 * MIB))
    plain = launch.daemon_command(pool, Path("/s"))
    assert not {"--policy", "--ttft-ms", "--tbt-ms", "--patience-ms", "--record"} & set(plain)
    pool = replace(pool, policy="deadlines", tbt_ms=50.5, patience_ms=3e4, record="/d.jsonl")
    command = launch.daemon_command(pool, Path("/s"))
    given = dict(zip(command[4::2], command[5::2], strict=True))
    assert {name: given[name] for name in given if name not in plain} == {
        "--policy": "deadlines",
        "--ttft-ms": "10000",
        "--tbt-ms": "50.5",
        "--patience-ms": "30000",
        "--record": "/d.jsonl",
    }
    model = ModelConfig(name="a", model="/a", kv_cache_bytes=ByteSize(MIB), tbt_ms=20.0, weight=2.0)
    command = launch.engine_command(model, 1, [Path("/s")])
    pooled = json.loads(command[command.index("--additional-config") + 1])["gpupool"]
    assert pooled == {"socket": "/s", "model": "a", "tbt_ms": 20.0, "weight": 2.0}


@pytest.mark.parametrize(
    ("devices", "visible", "shown", "named"),
    [
        (["cuda:0", "cuda:1"], None, "0,1", ["cuda:0", "cuda:1"]),
        (["cuda:3", "cuda:1"], None, "3,1", ["cuda:0", "cuda:1"]),
        (["cuda:1", "cuda"], "5,7", "7,5", ["cuda:0", "cuda:1"]),
        (["host", "host"], "5,7", None, ["host", "host"]),
    ],
)
def test_daemons_and_ranks_see_the_devices_of_their_pool(
    devices: list[str], visible: str | None, shown: str | None, named: list[str]
) -> None:
    inherited = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert launch.device_environment(devices, inherited).get("CUDA_VISIBLE_DEVICES") == shown
    pool = PoolConfig(device=devices, budget_bytes=ByteSize(8 * MIB), page_bytes=ByteSize(2 * MIB))
    pool = replace(pool, host_budget_bytes=ByteSize(11))
    for rank, name in enumerate(named):
        command = launch.daemon_command(pool, Path("/s"), None, rank)
        assert command[command.index("--device") + 1] == name
        assert command[command.index("--host-budget-bytes") + 1] == "5"  # each its part


def test_a_device_beyond_those_that_are_visible_is_named() -> None:
    with pytest.raises(ServeError, match=r"'cuda:2'.* shows 2 devices"):
        launch.device_environment(["cuda:1", "cuda:2"], {"CUDA_VISIBLE_DEVICES": "3,4"})


@pytest.mark.parametrize("args", [{}, {"tensor_parallel_size": 2}, {"tp": 2}])
def test_an_engine_has_a_rank_on_each_device(args: dict[str, ArgValue]) -> None:
    model = ModelConfig(name="a", model="/a", kv_cache_bytes=ByteSize(MIB), args=args)
    command = launch.engine_command(model, 1, [Path("/0.sock"), Path("/1.sock")])
    pooled = json.loads(command[command.index("--additional-config") + 1])["gpupool"]
    assert pooled["socket"] == ["/0.sock", "/1.sock"]
    said = [word for word in command if word.startswith(("--tensor-parallel-size", "--tp"))]
    assert said == ["--tp=2" if "tp" in args else "--tensor-parallel-size=2"]
