"""What the daemon tells of itself."""

from __future__ import annotations

import msgspec


class Moved(msgspec.Struct, frozen=True):
    """What went over the link one way, and the time in which it did: so how fast."""

    bytes: int = 0
    seconds: float = 0.0

    def more(self, moved_bytes: int, seconds: float) -> Moved:
        """With so much more."""
        return Moved(self.bytes + moved_bytes, self.seconds + seconds)


class ModelStatus(msgspec.Struct, frozen=True):
    """One model in the daemon's status. The lists go together, oldest first."""

    name: str
    pid: int
    state: str
    """starting (no footprint yet), out, waiting, resident, leaving"""
    stays: str
    """Why it could not leave when it was asked last; empty if it could."""
    footprint_bytes: int
    """What it needs to be resident."""
    held_bytes: int
    """Of it, what it has: less than all while it comes or goes, and what is warm otherwise."""
    weights_bytes: int
    kv_cache_bytes: int
    swap_ins: int
    swap_outs: int
    swap_in_s: list[float]
    swap_in_copied_bytes: list[int]
    swap_in_copy_s: list[float]
    lease_wait_s: list[float]
    recopied_bytes: int = 0
    """What arrived wrong, of weights or of KV blocks, and right at a second attempt."""
    unmarked_bytes: int = 0
    """What swap-outs found written on the device although nobody had said so."""
    moved_in: Moved = Moved()
    """By swap-ins that somebody waited for."""
    moved_ahead: Moved = Moved()
    """By those ahead of use, until somebody waited."""
    moved_out: Moved = Moved()
    """By swap-outs."""
    moved_blocks_in: Moved = Moved()
    """KV blocks that came back, for steps and behind swap-ins; beside those."""
    moved_blocks_out: Moved = Moved()
    """KV blocks that were saved as their model left; beside swap-outs."""
    damaged: int = 0
    """How often memory was not what was saved: as it came in, on a page that others have too, or
    as its image was to be written to a file."""
    parked_bytes: int = 0
    """Of its images, what is in a file and not in host memory."""
    parked_file_bytes: int = 0
    """What that file takes, also of images that have come back and are as they were."""
    parks: int = 0
    """How often they were parked."""
    read_backs: int = 0
    """How often they came back."""
    read_back_bytes: int = 0
    """What was read then, of all times together."""
    read_back_s: float = 0.0
    """How long that took."""


class Refusal(msgspec.Struct, frozen=True):
    """Why a worker was turned away."""

    model: str
    pid: int
    message: str


class Status(msgspec.Struct, frozen=True):
    """The daemon's account of itself."""

    version: str
    device: str
    page_bytes: int
    budget_bytes: int
    pages_free: int
    pages_granted: int
    pages_fenced: int
    host_bytes: int
    models: list[ModelStatus]
    refusals: list[Refusal]
