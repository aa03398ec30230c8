"""What the kernels become on each GPU: compiled ahead of time, no GPU needed.

    python benchmarks/compile_kernels.py --json -

For each kernel and architecture: registers of a thread, bytes of shared memory, of stack and of
local memory, instructions that spill, accesses of global memory by width, bytes of the cubin. Exits
with 1 where a kernel spills, or reads or writes without accesses of 16 bytes.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from gpupool.kernels import device
from gpupool.kernels.digest import WORDS_AT_ONCE
from gpupool.kernels.move import TILE_BYTES

ARCHITECTURES = (80, 90, 100)
WARPS = 4
MOVE = {"tile_bytes": TILE_BYTES}
KERNELS: dict[str, tuple[Any, dict[str, int]]] = {
    "gather": (device.gather, MOVE),
    "scatter": (device.scatter, MOVE),
    "copy": (device.copy, MOVE),
    "digest": (device.digest, {"words_at_once": WORDS_AT_ONCE}),
}
TABLES = {"moves", "tiles", "runs", "digests"}
# Triton's wheel has NVIDIA's tools.
DISASSEMBLER = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"


@dataclass(frozen=True)
class Compiled:
    """A kernel for one architecture. Accesses are those of 128, 64, 32 bits and less."""

    kernel: str
    architecture: str
    registers: int
    shared_bytes: int
    stack_bytes: int
    local_bytes: int
    spills: int
    reads: dict[str, int]
    writes: dict[str, int]
    cubin_bytes: int

    def faults(self) -> list[str]:
        """What must not be, in words."""
        found = []
        if self.spills or self.stack_bytes or self.local_bytes:
            found.append(
                f"spills: {self.spills} instructions, {self.stack_bytes} bytes of stack, "
                f"{self.local_bytes} of local memory"
            )
        if not self.reads.get("128"):
            found.append("reads nothing 16 bytes at a time")
        if self.kernel != "digest" and not self.writes.get("128"):
            found.append("writes nothing 16 bytes at a time")
        return found


def compile_kernel(name: str, architecture: int, max_registers: int | None) -> Compiled:
    """Compile it as it is launched, and read what came out."""
    kernel, constants = KERNELS[name]
    signature = {
        p.name: "constexpr" if p.is_constexpr else "*i64" if p.name in TABLES else "i64"
        for p in kernel.params
    }
    aligned = {
        (index,): [["tt.divisibility", 16]]
        for index, p in enumerate(kernel.params)
        if p.name in TABLES
    }
    options: dict[str, Any] = {"num_warps": WARPS}
    if max_registers is not None:
        options["maxnreg"] = max_registers
    compiled = triton.compile(
        ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", architecture, 32),
        options=options,
    )
    cubin = compiled.asm["cubin"]
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        used = _disassemble("-res-usage", file.name)
        code = _disassemble("-sass", file.name)
    usage = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", used))
    return Compiled(
        kernel=name,
        architecture=f"sm_{architecture}",
        registers=int(usage["REG"]),
        shared_bytes=compiled.metadata.shared,
        stack_bytes=int(usage["STACK"]),
        local_bytes=int(usage["LOCAL"]),
        spills=len(re.findall(r"\b(?:STL|LDL)\b", code)),
        reads=_widths("LDG", code),
        writes=_widths("STG", code),
        cubin_bytes=len(cubin),
    )


def _widths(instruction: str, code: str) -> dict[str, int]:
    found: Counter[str] = Counter()
    for suffixes in re.findall(rf"\b{instruction}((?:\.\w+)*)\s", code):
        width = re.search(r"\.(128|64|[US]8|[US]16)\b", suffixes)
        found[width[1].lstrip("US") if width else "32"] += 1
    return dict(found)


def _disassemble(*arguments: str) -> str:
    done = subprocess.run([DISASSEMBLER, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


@click.command(help=__doc__)
@click.option("--json", "json_path", metavar="FILE", help="Write the figures there, - for here.")
@click.option(
    "--kernel",
    "names",
    type=click.Choice(list(KERNELS)),
    multiple=True,
    help="This alone; may be repeated.",
)
@click.option("--max-registers", type=int, help="Allow fewer: it then spills, and says so.")
def main(json_path: str | None, names: tuple[str, ...], max_registers: int | None) -> None:
    """Compile them."""
    every = [
        compile_kernel(name, architecture, max_registers)
        for name in names or KERNELS
        for architecture in ARCHITECTURES
    ]
    if json_path is None:
        print(f"{'kernel':8} {'':7} registers shared stack local spills  reads, writes by bits")
        for one in every:
            print(
                f"{one.kernel:8} {one.architecture:7} {one.registers:9} {one.shared_bytes:6} "
                f"{one.stack_bytes:5} {one.local_bytes:5} {one.spills:6}  {one.reads} {one.writes}"
            )
    else:
        figures = json.dumps([asdict(one) for one in every], indent=2)
        if json_path == "-":
            print(figures)
        else:
            Path(json_path).write_text(figures + "\n")
    faults = [f"{one.kernel} on {one.architecture} {f}" for one in every for f in one.faults()]
    for fault in faults:
        print(fault, file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
