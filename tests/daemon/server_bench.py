"""A daemon in the process of a test, which runs it."""

from __future__ import annotations

from pathlib import Path

from daemon_bench import PAGE_BYTES

from gpupool.daemon.server import Server


def server_of(socket_path: Path, device: str, pages: int) -> Server:
    """One without turns that is in no hurry."""
    return Server(
        socket_path,
        device=device,
        budget_bytes=pages * PAGE_BYTES,
        page_bytes=PAGE_BYTES,
        host_budget_bytes=1 << 30,
        turn_s=0.0,
        min_tokens=0,
        revoke_timeout_s=60.0,
    )
