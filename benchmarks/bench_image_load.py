"""How fast a file of images is loaded beside plain reads of the same file, in one run.

    python benchmarks/bench_image_load.py --mib 1024 --folder . --json -

Name a folder on the disk that images will be on: the default, that of temporary files, may be in
memory, where there is nothing to measure. It gets a file of --mib MiB, which goes again.

Every round does each thing once, so that all of them meet the same noise; figures are medians, in
gigabytes (10^9 bytes) per second. Before each the file is dropped from the page cache, as far as
the file system does that (posix_fadvise); before_cached says how much of it was there all the same.

read: as gpupool reads it, by several threads and each piece against its digest, into an image that
is there and pinned. load: all of load_image, which makes that memory first, and digests it once
more as it is adopted; memory and adopt are these two alone. direct_N: direct reads (O_DIRECT) in
pieces of the same size by N threads, one behind the other, which look at nothing: the rate of the
disk. buffered: the same by one thread through the page cache, as dd does. safetensors: its
load_file, and one byte of each page looked at, since it maps the file. fastsafetensors, where that
is installed: its reader on the CPU with as many threads, into memory that it makes.

checkpoint: as gpupool reads a checkpoint that has no image yet, each tensor copied to memory that
is there, as vLLM's loaders do. vllm and vllm_threads, where vLLM is installed: the same from its
own readers, by itself and with as many threads (enable_multithread_load).

Keys: read_ratio_to_direct and load_ratio_to_direct (rate over that of the faster direct_N), gbps
and cpu_s_per_gb (of all threads together) of each of the above, after_cached (bytes of the file in
the page cache after load).
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import mmap
import os
import statistics
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import torch

import gpupool
from gpupool.adopt import adopt
from gpupool.images.checkpoint_reader import Checkpoint
from gpupool.images.direct import DirectFile
from gpupool.images.file import ImageFile
from gpupool.images.format import CHUNK_BYTES
from gpupool.images.modules import load_image, save_image
from gpupool.images.reading import THREADS

MIB = 1 << 20
TENSOR_BYTES = 16 * MIB
KEY = {"of": "bench_image_load"}


class Weights(torch.nn.Module):
    """Parameters of so many bytes together, about which nothing is known yet."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__()
        for at in range(0, size_bytes, TENSOR_BYTES):
            data = torch.empty(min(TENSOR_BYTES, size_bytes - at), dtype=torch.uint8)
            self.register_parameter(f"p{at}", torch.nn.Parameter(data, requires_grad=False))


def cached_bytes(path: Path) -> int:
    """Of a file, in the page cache."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE) as memory:
        pages = (ctypes.c_ubyte * -(-len(memory) // mmap.PAGESIZE))()
        first = ctypes.c_char.from_buffer(memory)
        size = ctypes.c_size_t(len(memory))
        if ctypes.CDLL(None).mincore(ctypes.byref(first), size, pages) != 0:
            raise click.ClickException(f"it cannot be told what of {path} is in the page cache")
        del first
        return sum(page & 1 for page in pages) * mmap.PAGESIZE


def drop(path: Path) -> int:
    """Take a file out of the page cache; how many bytes stay."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return cached_bytes(path)


def write(path: Path, pool: gpupool.Pool, size_bytes: int) -> None:
    """A file of images of random bytes."""
    module, model = Weights(size_bytes), pool.model("written")
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.view(torch.int64).random_(generator=generator)
    adopt(module, model)
    save_image(path, module, model, KEY)
    model.close()


class Subjects:
    """What is measured, by name; each reads all of the file once."""

    def __init__(self, path: Path, pool: gpupool.Pool, size_bytes: int) -> None:
        self._path, self._pool, self._size_bytes = path, pool, size_bytes
        model = pool.model("kept")
        with ImageFile(path) as file:
            self._parts = file.manifest.parts
            self.is_direct = file.is_direct
        self._region = model.region("weights", self._parts[0].size_bytes)
        self._target = memoryview(self._region.image()).cast("B")
        self.ways: dict[str, Callable[[], object]] = {
            "read": self._read,
            "memory": self._memory,
            "adopt": self._region.adopt_image,
            "load": self._load,
            "direct_1": lambda: self._direct(1),
            f"direct_{THREADS}": lambda: self._direct(THREADS),
            "buffered": self._buffered,
        }
        self._weights = Weights(size_bytes).state_dict()  # what a loader copies to
        for package, name, way in (
            ("safetensors", "safetensors", self._safetensors),
            ("fastsafetensors", "fastsafetensors", self._fastsafetensors),
            ("torch", "checkpoint", self._checkpoint),
            ("vllm", "vllm", lambda: self._vllm("safetensors_weights_iterator")),
            (
                "vllm",
                "vllm_threads",
                lambda: self._vllm("multi_thread_safetensors_weights_iterator"),
            ),
        ):
            if importlib.util.find_spec(package) is not None:
                self.ways[name] = way

    def _take(self, tensors: Iterator[tuple[str, torch.Tensor]]) -> None:
        for weight, (_, tensor) in zip(self._weights.values(), tensors, strict=True):
            weight.view(torch.uint8).reshape(-1).copy_(tensor.view(torch.uint8).reshape(-1))

    def _checkpoint(self) -> None:
        self._take(Checkpoint([self._path]).tensors())

    def _vllm(self, name: str) -> None:
        from vllm.model_executor.model_loader import weight_utils

        more = {"max_workers": THREADS} if name.startswith("multi") else {}
        self._take(getattr(weight_utils, name)([str(self._path)], False, **more))

    def _read(self) -> None:
        with ImageFile(self._path) as file:
            file.read_into([self._target])

    def _memory(self) -> None:
        model = self._pool.model("memory")
        model.region("weights", len(self._target))
        model.close()

    def _load(self) -> None:
        model = self._pool.model("loaded")
        load_image(self._path, Weights(self._size_bytes), model, KEY)
        model.close()

    def _direct(self, threads: int) -> None:
        file = DirectFile(self._path)
        starts = deque(range(0, len(self._target), CHUNK_BYTES))

        def work() -> None:
            while True:
                try:
                    start = starts.popleft()
                except IndexError:
                    return
                with self._target[start : start + CHUNK_BYTES] as piece:
                    assert file.fill(start, piece) == len(piece)

        with ThreadPoolExecutor(threads) as executor:
            for done in [executor.submit(work) for _ in range(threads)]:
                done.result()
        file.close()

    def _buffered(self) -> None:
        with self._path.open("rb", buffering=0) as file:
            for start in range(0, len(self._target), CHUNK_BYTES):
                with self._target[start : start + CHUNK_BYTES] as piece:
                    assert file.readinto(piece) == len(piece)

    def _safetensors(self) -> None:
        from safetensors.torch import load_file

        for tensor in load_file(self._path).values():
            tensor.reshape(-1).view(torch.uint8)[:: mmap.PAGESIZE].sum()

    def _fastsafetensors(self) -> None:
        from fastsafetensors import SafeTensorsFileLoader, SingleGroup

        loader = SafeTensorsFileLoader(
            SingleGroup(), "cpu", nogds=True, max_threads=THREADS, disable_cache=True
        )
        loader.add_filenames({0: [str(self._path)]})
        loader.copy_files_to_device().close()
        loader.close()


def measure(folder: Path, size_bytes: int, runs: int) -> dict[str, Any]:
    """All of it ``runs`` times, after a first round that counts for nothing."""
    taken: defaultdict[str, list[float]] = defaultdict(list)
    cpu: defaultdict[str, list[float]] = defaultdict(list)
    pool = gpupool.Pool(device="host", budget_bytes=16 * MIB, page_bytes=2 * MIB)
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench_image_load-") as scratch:
        path = Path(scratch) / "image.safetensors"
        write(path, pool, size_bytes)
        subjects = Subjects(path, pool, size_bytes)
        before_cached = after_cached = 0
        for round_ in range(runs + 1):
            if round_ == 1:
                taken.clear()
                cpu.clear()
            for name, way in subjects.ways.items():
                before_cached = max(before_cached, drop(path))
                begun_s, cpu_begun_s = time.perf_counter(), time.process_time()
                way()
                taken[name].append(time.perf_counter() - begun_s)
                cpu[name].append(time.process_time() - cpu_begun_s)
                if name == "load":
                    after_cached = max(after_cached, cached_bytes(path))
    gbps = {name: size_bytes / statistics.median(times) / 1e9 for name, times in taken.items()}
    disk = max(rate for name, rate in gbps.items() if name.startswith("direct_"))
    return {
        "bytes": size_bytes,
        "piece_bytes": CHUNK_BYTES,
        "threads": THREADS,
        "runs": runs,
        "is_direct": subjects.is_direct,
        "before_cached": before_cached,
        "after_cached": after_cached,
        "read_ratio_to_direct": gbps["read"] / disk,
        "load_ratio_to_direct": gbps["load"] / disk,
        "gbps": gbps,
        "cpu_s_per_gb": {name: statistics.median(s) * 1e9 / size_bytes for name, s in cpu.items()},
    }


@click.command(help=__doc__)
@click.option("--mib", default=1024, show_default=True, type=click.IntRange(2))
@click.option("--folder", default=tempfile.gettempdir(), type=click.Path(exists=True))
@click.option("--runs", default=11, show_default=True, type=click.IntRange(1))
@click.option("--json", "json_path", help="Write the figures to a file, or - for the terminal.")
def main(mib: int, folder: str, runs: int, json_path: str | None) -> None:
    """Run and report."""
    found = measure(Path(folder), mib * MIB, runs)
    if json_path == "-":
        click.echo(json.dumps(found, indent=2))
        return
    if json_path is not None:
        Path(json_path).write_text(json.dumps(found, indent=2) + "\n")
    click.echo(f"{'':16}{'GB/s':>8}{'of disk':>9}{'CPU s/GB':>10}")
    disk = found["gbps"]["read"] / found["read_ratio_to_direct"]
    for name, rate in found["gbps"].items():
        used = found["cpu_s_per_gb"][name]
        click.echo(f"{name:16}{rate:8.2f}{rate / disk:9.2f}{used:10.2f}")
    if not found["is_direct"]:
        click.echo("This file system refuses direct reads: all went through the page cache.")


if __name__ == "__main__":
    main()
