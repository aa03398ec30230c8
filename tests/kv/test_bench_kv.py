"""`bench_kv.py`: vLLM's mover has a stream of its own, and figures are there after each case."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from gpupool.errors import GpupoolError
from gpupool.kv.bench import open_bench

ROOT = Path(__file__).resolve().parents[2]
BENCH_KV = ROOT / "benchmarks" / "bench_kv.py"


class Stream:
    """Does what is enqueued when it is waited for, in order; CUDA's default one takes no batch."""

    current: Stream | None = None

    def __init__(self, device: str) -> None:
        assert device == "cuda:0"
        self._queue: list[Callable[[], object]] = []

    def synchronize(self) -> None:
        while self._queue:
            self._queue.pop(0)()

    @staticmethod
    @contextlib.contextmanager
    def entered(stream: Stream) -> Iterator[None]:
        before, Stream.current = Stream.current, stream
        yield
        Stream.current = before

    @staticmethod
    def swap_blocks_batch(source: Any, target: Any, sizes: Any) -> None:
        assert Stream.current is not None, "a batch on the default stream is refused"
        for copy in zip(target.tolist(), source.tolist(), sizes.tolist(), strict=True):
            Stream.current._queue.append(lambda copy=copy: ctypes.memmove(*copy))


@pytest.fixture
def bench_kv(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", Stream.entered)
    operators = SimpleNamespace(swap_blocks_batch=Stream.swap_blocks_batch)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace(_custom_ops=operators))
    monkeypatch.syspath_prepend(BENCH_KV.parent)
    return importlib.import_module("bench_kv")


@pytest.mark.parametrize("block_bytes", [4096, 28 << 10])
def test_vllms_way_moves_what_it_is_told_on_its_own_stream(
    bench_kv: ModuleType, block_bytes: int
) -> None:
    with open_bench("host", 4 << 20) as bench:
        mover = bench_kv.VllmMover(bench, block_bytes)
        bench.check({"vllm": mover}, bench.move(block_bytes, 32))
        assert Stream.current is None


def test_what_is_not_waited_for_is_found(
    bench_kv: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Stream, "synchronize", lambda _: None)
    with open_bench("host", 1 << 20) as bench:
        ways = {"vllm": bench_kv.VllmMover(bench, 4096)}
        with pytest.raises(GpupoolError, match=r"^vllm: blocks of 4096 bytes arrived with other"):
            bench.check(ways, bench.move(4096, 32))


def test_the_figures_are_there_after_each_case(tmp_path: Path) -> None:
    path = tmp_path / "kv.json"
    sizes = random.Random(1).sample([4, 8, 12, 16, 20], 3)
    words = [word for size in sizes for word in ("--kib", str(size))]
    process = subprocess.Popen(
        [
            *(sys.executable, str(BENCH_KV), "--device", "host", "--runs", "1", "--count", "16"),
            *(*words, "--json", str(path)),
        ],
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
    )
    assert process.stderr is not None
    with process.stderr as told:
        for number, line in enumerate(told):
            assert line.startswith(f"case {number + 1} of 3: 16 blocks of {sorted(sizes)[number]}")
            if number > 0:  # what came before it is written
                found = json.loads(path.read_text())
                done = {row["block_bytes"] >> 10 for row in found["results"]}
                assert done >= {*sorted(sizes)[:number]} and found["cases"] == 3
                assert found["complete"] is False
    assert process.wait(60) == 0
    found = json.loads(path.read_text())
    assert len(found["results"]) == 3 * 2 * 3 and found["complete"] is True
