"""The parts: what each asks, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import Any

from gpu_probe.device import Settings


@dataclass(frozen=True)
class Part:
    """One, by the module that answers it."""

    name: str
    question: str
    limit_s: float
    module: str
    mps: bool = False

    def answer(self, settings: Settings) -> dict[str, Any]:
        """Ask. Raises MissingError where the driver cannot be asked this."""
        answer: dict[str, Any] = import_module(f"gpu_probe.{self.module}").run(settings)
        return answer


PARTS = {
    part.name: part
    for part in (
        Part("device", "Which device and which driver is this?", 20, "part_device"),
        Part(
            "no_context",
            "Can a process without a context create, export and import pages, and do others find "
            "their memory?",
            30,
            "part_no_context",
        ),
        Part(
            "calls",
            "What do one unmap and one set_access over many mappings answer?",
            20,
            "part_calls",
        ),
        Part(
            "read_only",
            "Can pages be made read-only, what does a write do then, and can two processes "
            "read one page?",
            30,
            "part_read_only",
        ),
        Part(
            "visible",
            "Are bytes there that another process wrote, once it has waited for its event or "
            "stream?",
            30,
            "part_visible",
        ),
        Part(
            "lifetime",
            "Does a page outlive its creator, and when is its memory free?",
            30,
            "part_lifetime",
        ),
        Part(
            "overlap",
            "Do copies of one process overlap kernels of another, and what does each lose?",
            40,
            "part_overlap",
        ),
        Part(
            "overlap_mps",
            "The same with both processes under MPS",
            40,
            "part_overlap",
            mps=True,
        ),
        Part("copies", "How fast are pinned copies each way, and both at once?", 30, "part_copies"),
        Part(
            "mapping",
            "What does a GiB of pages cost to make, import, map and unmap, by their size?",
            40,
            "part_mapping",
        ),
        Part(
            "stalls",
            "Does any of it wait for, or hold up, work of this or another process?",
            45,
            "part_stalls",
        ),
        Part(
            "registration",
            "What does pinning a GiB of host memory cost?",
            40,
            "part_registration",
        ),
    )
}
