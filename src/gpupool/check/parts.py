"""What there is to check on a machine with a GPU, and how each part is run."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path

from gpupool.check import sanitizer

#: C++ tests that ask for nothing but a driver; `make gpu-check` builds them.
SUBJECTS = (
    "no_context",
    "conformance",
    "page_pool",
    "mapping",
    "host_memory",
    "transfer",
    "transfer_batch",
    "scrub",
    "model_memory",
    "warm",
    "sharing",
    "verify",
    "large_loads",
    "no_image",
    "resize",
    "arena_slots",
)


@dataclass(frozen=True)
class Part:
    """Commands that must all succeed within a time, or why they are not run."""

    name: str
    what: str
    limit_s: float
    commands: tuple[tuple[str, ...], ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    skip: str = ""
    judge: Callable[[Sequence[str], int, str], str] | None = None
    """What is wrong by a command's exit status and output, where 0 alone says too little."""
    note: str = ""
    """What it leaves out."""


@dataclass(frozen=True)
class Places:
    """Where sources, the built C++ tests and the results are, and what to call the sources."""

    tree: Path
    build: Path
    out: Path
    commit: str | None = None
    vllm_sources: Path | None = None


#: With their limits, which are for a slow machine: see TOGETHER_S.
PARTS = {
    "conformance": ("the seam's contract and the C++ tests of the core, on cuda", 120.0),
    "gpu": ("tests/gpu: torch and CuPy over regions, CUDA graphs, KV blocks", 80.0),
    "embedded": ("torch models that take turns in a pool", 40.0),
    "kernels": ("the Triton kernels: compiled, and on the GPU", 60.0),
    "vllm": ("vLLM's hooks, and engines that take turns in a pool", 240.0),
    "benchmarks": ("swaps, KV blocks and mappings on cuda, calls from Python", 150.0),
    "core": ("tests/core, on the host device: needs no GPU; asked for by name", 180.0),
    "probe": ("benchmarks/probe_gpu.py; asked for by name", 180.0),
    "long_swaps": ("10,000 swaps, in one process and behind a daemon; asked for by name", 530.0),
    "sanitizer": ("compute-sanitizer on the core and the kernels; asked for by name", 480.0),
    "engine_swaps": ("vLLM engines with CUDA graphs over 500 swaps; asked for by name", 480.0),
    "bench_engine": ("benchmarks/bench_engine.py; asked for by name", 480.0),
    "inductor": ("vLLM engines as it compiles them, over 60 swaps; asked for by name", 300.0),
    "large_swaps": ("swaps of 16 GiB beside plain copies; asked for by name", 240.0),
    "sleep_tests": ("vLLM's own of sleep mode, of --vllm-sources; asked for by name", 530.0),
}
DEFAULT = ("conformance", "gpu", "embedded", "kernels", "vllm", "benchmarks")
TOGETHER_S = 480.0  # of those, unless told otherwise
BY_NAME_ALONE = tuple(name for name in PARTS if name not in DEFAULT)

_ENGINES = ("vllm", "torch", "numpy", "safetensors", "tokenizers", "click", "msgspec")
#: Packages without which a part can show nothing. torch and CuPy are asked for test by test in
#: `gpu`, where each does without the other.
NEEDS = {
    "gpu": ("pytest", "numpy", "msgspec"),
    "embedded": ("pytest", "torch"),
    "kernels": ("pytest", "torch", "triton", "click"),
    "core": ("pytest", "hypothesis", "numpy", "torch"),
    "vllm": ("pytest", *_ENGINES),
    "benchmarks": ("torch", "numpy", "click", "msgspec"),
    "long_swaps": ("torch", "click", "msgspec"),
    "sanitizer": ("pytest", "torch", "triton"),
    "engine_swaps": _ENGINES,
    "bench_engine": _ENGINES,
    "inductor": _ENGINES,
    "large_swaps": ("torch", "click", "msgspec"),
    "sleep_tests": ("pytest", *_ENGINES, "anthropic", "openai", "requests", "httpx", "cloudpickle"),
}

_BLOCKS = ("--count", "256", "--count", "4096", "--limit-mib", "1024")
_PYTEST = (sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-rfEs")
_TESTS = {
    "gpu": (
        "tests/gpu/test_gpu_torch.py",
        "tests/gpu/test_gpu_cupy.py",
        "tests/gpu/test_gpu_paged.py",
    ),
    "embedded": ("tests/gpu/test_gpu_models.py",),
    "kernels": ("tests/gpu/test_gpu_kernels.py", "tests/kernels/test_compile_kernels.py"),
    "core": ("tests/core",),
}


def planned(names: tuple[str, ...], places: Places) -> list[Part]:
    """The parts of those names, in that order."""
    return [_planned(name, places) for name in names]


def _planned(name: str, places: Places) -> Part:
    what, limit_s = PARTS[name]
    skip = _why_not(name, places)
    commands = () if skip else _commands(name, places)
    environment = {"GPUPOOL_REQUIRE_GPU": "1", "PYTHONUNBUFFERED": "1"}
    if name in ("conformance", "sanitizer"):
        environment["GPUPOOL_TEST_DRIVER"] = "cuda"
    if not skip and name != "conformance":
        # Tests and benchmarks import from the tree; gpupool itself is the one that runs this.
        own = str(Path(__file__).resolve().parents[2])
        # vLLM's tests are in a folder of the same name as those of the tree.
        tree = "" if name == "sleep_tests" else str(places.tree)
        paths = [own, tree, os.environ.get("PYTHONPATH", "")]
        environment["PYTHONPATH"] = os.pathsep.join(each for each in paths if each)
    note = _left_out(name, places)
    part = Part(name, what, limit_s, commands, environment, skip, note=note)
    return part if name != "sanitizer" or skip else _sanitized(part, places)


def _sanitized(part: Part, places: Places) -> Part:
    found = sanitizer.find(os.environ)
    if not found.program:
        why = "there is no compute-sanitizer: put the bin folder of a CUDA toolkit on PATH"
        return replace(part, skip=why)
    programs = {subject: str(_program(places, subject)) for subject in SUBJECTS}
    return replace(
        part,
        commands=found.commands(programs, _PYTEST),
        environment=part.environment | sanitizer.ENVIRONMENT,
        judge=sanitizer.judge,
        note=found.left_out,
    )


def _why_not(name: str, places: Places) -> str:
    """Why a part cannot be run here, or nothing."""
    if name in ("conformance", "sanitizer"):
        missing = [subject for subject in SUBJECTS if not _program(places, subject).exists()]
        if len(missing) == len(SUBJECTS):
            return f"there are no C++ tests in {places.build}: make gpu-check builds them"
    if name == "conformance":
        return ""
    if not (places.tree / "tests" / "gpu").is_dir():
        return f"{places.tree} is not gpupool's source tree: name it with --tree"
    missing = [module for module in NEEDS.get(name, ()) if find_spec(module) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    if name == "sleep_tests" and places.vllm_sources is None:
        return "name the sources of this vLLM: --vllm-sources; tools/vllm_python.py fetches them"
    return ""


def _left_out(name: str, places: Places) -> str:
    """What a part does without, or nothing."""
    if name == "benchmarks" and not _bench_map(places).exists():
        return f"without bench_map, which is not in {places.build}: make gpu-check builds it"
    return ""


def _bench_map(places: Places) -> Path:
    return places.build / "bench_map"


def _program(places: Places, subject: str) -> Path:
    return places.build / "tests" / "cpp" / f"{subject}_test"


def _commands(name: str, places: Places) -> tuple[tuple[str, ...], ...]:
    python = sys.executable
    if name in _TESTS:
        return ((*_PYTEST, *_TESTS[name]),)
    if name == "conformance":
        return tuple((str(_program(places, subject)),) for subject in SUBJECTS)
    if name == "sanitizer":
        return ()  # of the tool that is found
    if name == "vllm":
        tests = ("tests/gpu/test_gpu_loading.py", "tests/gpu/test_gpu_vllm.py")
        return ((python, "-m", "gpupool.vllm.hooks"), (*_PYTEST, *tests))

    if name == "sleep_tests":
        of = ("--tree", str(places.vllm_sources), "--made", "--", "-v", "-rfEs")
        return ((python, "tools/vllm_sleep_tests.py", *of),)

    def benchmark(script: str, *arguments: str, into: str = "") -> tuple[str, ...]:
        path = places.out / f"{into or Path(script).stem}.json"
        return (python, f"benchmarks/{script}", *arguments, "--json", str(path))

    def vllm_swaps(*arguments: str, into: str) -> tuple[str, ...]:
        asked = ("--device", "cuda", *arguments, "--json", str(places.out / f"{into}.json"))
        return (python, "tests/gpu/vllm_swaps.py", *asked)

    if name == "probe":
        commit = () if places.commit is None else ("--commit", places.commit)
        return (benchmark("probe_gpu.py", *commit),)
    if name == "long_swaps":
        long_swaps = ("long_swaps.py", "--device", "cuda")
        behind_daemon = benchmark(*long_swaps, "--daemon", into="long_swaps_daemon")
        return (benchmark(*long_swaps), behind_daemon)
    # A few billion parameters each: more would take the minutes to be written and started.
    if name == "engine_swaps":
        asked = "--parameters 1.5e9 --swaps 500 --graphs"
        return (vllm_swaps(*asked.split(), into="vllm_swaps"),)
    if name == "inductor":
        asked = "--parameters 5e8 --engines 2 --swaps 60 --inductor"
        return (vllm_swaps(*asked.split(), into="vllm_swaps_inductor"),)
    if name == "large_swaps":
        large = ("--mib", "16384", "--page-mib", "32", "--runs", "5")
        return (benchmark("bench_swap.py", "--device", "cuda", *large, into="bench_swap_16gib"),)
    if name == "bench_engine":
        size = ("--parameters", "3e9", "--starts", "1", "--runs", "5")
        return (benchmark("bench_engine.py", "--device", "cuda", *size),)
    # A few seconds, of which most is to make the pages.
    sizes = ("--device", "cuda", "--gib", "4", "--rounds", "5")
    map_into = ("--json", str(places.out / "bench_map.json"))
    bench_map = (str(_bench_map(places)), *sizes, *map_into)
    return (
        benchmark("bench_swap.py", "--device", "cuda", "--mib", "1024", "--runs", "5"),
        # A hundred GB in all, of which the largest case is 1 GiB.
        benchmark("bench_kv.py", "--device", "cuda", "--runs", "3", *_BLOCKS),
        benchmark("bench_kv_verify.py", "--device", "cuda", "--rounds", "5"),
        benchmark("bench_calls.py", "--rounds", "5"),
        *([bench_map] if _bench_map(places).exists() else []),
    )
