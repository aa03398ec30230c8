"""What is run under NVIDIA's compute-sanitizer, and what its reports say."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

#: Programs of the core that launch its kernel. The last forks and imports its own pages, which a
#: tool may take badly: it comes after all others, so that they have had their time.
SUBJECTS = (
    "transfer",
    "model_memory",
    "warm",
    "sharing",
    "verify",
    "large_loads",
    "no_image",
    "resize",
    "arena_slots",
    "conformance",
)
#: initcheck knows addresses, not the pages behind them: those that read what was written at the
#: same address. The others also read a page where it was mapped later, or a second time.
INITCHECK_SUBJECTS = (
    "transfer",
    "transfer_batch",
    "verify",
    "large_loads",
    "no_image",
    "arena_slots",
)
KERNEL_TESTS = "tests/gpu/test_gpu_kernels.py"

#: Before 2026.3 initcheck takes what cuMemcpyBatchAsync wrote for not written, and before 2026.4
#: pages that can be exported, as all of gpupool's can, break its context.
INITCHECK_SINCE = (2026, 4)

ERRORS_EXIT = 86
#: So that each tensor is an allocation of the driver's: in torch's own cache one that was freed
#: counts as written, and what is behind a tensor as allocated.
ENVIRONMENT = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}

_OPTIONS = (
    *("--error-exitcode", str(ERRORS_EXIT)),
    # The tests run in the process that is started; compilers that Triton starts use no GPU.
    *("--target-processes", "application-only"),
    *("--launch-timeout", "120"),  # until the first call of CUDA: 10 s are too few to import torch
    *("--print-limit", "20"),
)
# Tests ask for what a driver must refuse, and look at its answer themselves.
_MEMCHECK = ("--tool", "memcheck", "--report-api-errors", "no")
_INITCHECK = ("--tool", "initcheck")
# Behind each allocation, so that what reaches over its end hits no other: torch's alone, since the
# tool does it for no page that is mapped. Its own kernels are not what is checked.
_PADDED = ("--padding", "256", "--kernel-name-exclude", "kns=at6native")

# Nine of them are the tool's, more are pytest's.
_SUMMARY = re.compile(r"^={9} ERROR SUMMARY: (\d+) errors?", re.MULTILINE)
_FIRST = re.compile(r"^={9} (?!COMPUTE-SANITIZER|ERROR SUMMARY)(\S.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Sanitizer:
    """The program, "" where there is none, and its version, (0, 0) where it does not say."""

    program: str
    version: tuple[int, int] = (0, 0)

    def commands(
        self, programs: Mapping[str, str], pytest: tuple[str, ...]
    ) -> tuple[tuple[str, ...], ...]:
        """All that is run, with C++ tests by their subjects; what may not end by itself is last."""
        memcheck = (self.program, *_MEMCHECK, *_OPTIONS)
        initcheck = (self.program, *_INITCHECK, *_OPTIONS)
        kernels = (*pytest, KERNEL_TESTS)
        of_core = [(*memcheck, programs[subject]) for subject in SUBJECTS]
        initialized = [(*initcheck, programs[subject]) for subject in INITCHECK_SUBJECTS]
        return (
            (*memcheck, *_PADDED, *kernels),
            *of_core[:-1],
            *(() if self.left_out else ((*initcheck, *kernels), *initialized)),
            of_core[-1],
        )

    @property
    def left_out(self) -> str:
        """What is not run with this version, or nothing."""
        if self.version >= INITCHECK_SINCE:
            return ""
        version, since = (".".join(map(str, each)) for each in (self.version, INITCHECK_SINCE))
        known = f"of version {version}" if self.version != (0, 0) else "of an unknown version"
        return f"without initcheck: compute-sanitizer is {known}, and it is right from {since} on"


def find(environment: Mapping[str, str], toolkit: Path = Path("/usr/local/cuda")) -> Sanitizer:
    """The one on the path, or in a CUDA toolkit."""
    named = [environment[name] for name in ("CUDA_HOME", "CUDA_PATH") if environment.get(name)]
    homes = [*map(Path, named), toolkit]
    for place in (environment.get("PATH", ""), *(str(home / "bin") for home in homes)):
        if program := shutil.which("compute-sanitizer", path=place):
            return Sanitizer(program, _version_of(program))
    return Sanitizer("")


def _version_of(program: str) -> tuple[int, int]:
    try:
        done = subprocess.run((program, "--version"), capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return 0, 0
    told = re.search(r"^Version (\d+)\.(\d+)", done.stdout, re.MULTILINE)
    return (int(told[1]), int(told[2])) if told else (0, 0)


def judge(command: Sequence[str], code: int, output: str) -> str:
    """What is wrong by the exit status and output of one command, or nothing."""
    what = f"{command[command.index('--tool') + 1]} of {Path(command[-1]).name}"
    summary, first = _SUMMARY.search(output), _FIRST.search(output)
    said = f": {first[1]}" if first else ""
    if summary is not None and summary[1] != "0":
        return f"{what}: {summary[1]} error{'s' if summary[1] != '1' else ''}{said}"
    if code != 0:
        return f"{what} ended with {code}{said}"
    return "" if summary is not None else f"{what} says nothing of errors: it checked nothing"
