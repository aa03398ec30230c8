"""Whether copies of one process overlap kernels of another, and what each loses."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import Any

from gpu_probe.device import Device, Settings
from gpu_probe.partner import partner, say
from gpu_probe.running import COPY_BYTES, CopyLoop, KernelLoop

KINDS = ("arithmetic", "reading")
DIRECTIONS = ("to_device", "to_host")
GIB_OF_COPY = COPY_BYTES / (1 << 30)


def copies(connection: Connection, settings: Settings) -> None:
    """Copy in this process, when asked to."""
    device = Device(settings)
    loops = {direction: CopyLoop(device, direction) for direction in DIRECTIONS}
    say(connection, "ready")
    while True:
        say(connection, loops[connection.recv()].run(settings.seconds))


def run(settings: Settings) -> dict[str, Any]:
    """Each alone, then both at once: from another process, and from this one."""
    device, seconds = Device(settings), settings.seconds
    kernels = {kind: KernelLoop(device, kind) for kind in KINDS}
    own = {direction: CopyLoop(device, direction) for direction in DIRECTIONS}
    figures: dict[str, Any] = {}
    with partner(copies, settings) as other, ThreadPoolExecutor(1) as pool:
        other.hear()
        alone = {kind: loop.run(seconds) for kind, loop in kernels.items()}
        copied = {direction: other.ask(direction) for direction in DIRECTIONS}
        for kind, loop in kernels.items():
            figures[f"{kind}_alone"] = {
                "launch_ms": 1e3 / alone[kind]["per_s"],
                "longest_launch_ms": alone[kind]["longest_ms"],
            }
            for direction in DIRECTIONS:
                other.tell(direction)
                during = loop.run(seconds)
                figures[f"{kind}_and_{direction}_of_another_process"] = _beside(
                    during, alone[kind], other.hear(), copied[direction]
                )

                def copy(direction: str = direction) -> dict[str, Any]:
                    device.enter()
                    return own[direction].run(seconds)

                future = pool.submit(copy)
                during = loop.run(seconds)
                figures[f"{kind}_and_{direction}_of_the_same_process"] = _beside(
                    during, alone[kind], future.result(), copied[direction]
                )
    for direction in DIRECTIONS:
        figures[f"{direction}_alone"] = {"gib_s": copied[direction]["per_s"] * GIB_OF_COPY}
    return figures


def _beside(
    kernels: dict[str, Any], alone: dict[str, Any], copying: dict[str, Any], copied: dict[str, Any]
) -> dict[str, Any]:
    """The parts of their rates that are left, and how long one had to wait at most."""
    return {
        "kernels_keep": kernels["per_s"] / alone["per_s"],
        "copies_keep": copying["per_s"] / copied["per_s"],
        "gib_s": copying["per_s"] * GIB_OF_COPY,
        "longest_launch_ms": kernels["longest_ms"],
        "longest_copy_ms": copying["longest_ms"],
    }
