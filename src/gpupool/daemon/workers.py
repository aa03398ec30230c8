"""What the daemon keeps about one worker, and how it reports it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from gpupool.arbiter.leases import Lease
from gpupool.daemon.due import Due
from gpupool.daemon.peers import Peer
from gpupool.daemon.protocol import (
    HISTORY,
    BlocksMoved,
    Cool,
    ModelStatus,
    Moved,
    Revoke,
    SwapFigures,
)
from gpupool.host_budget.images import Images
from gpupool.host_budget.making_room import ParkOrder


@dataclass
class Sharing:
    """An image whose hashes are being told; the descriptor is its own."""

    fd: int
    size_bytes: int
    contents: list[bytes] = field(default_factory=list)


@dataclass
class Worker:
    """The account of a peer that has joined as a model."""

    peer: Peer
    name: str
    weights_bytes: int = 0
    kv_cache_bytes: int = 0
    images: Images = field(default_factory=Images)
    seen_pages: set[int] = field(default_factory=set)
    """Pages whose descriptors it has."""
    left: bool = False
    """It has said Goodbye: what it has not given back may stay with it for long."""
    ends_until_s: float | None = None
    """Its connection has ended without: what it has is counted on to come back until then."""
    acquires: int = 0
    arriving: bool = False
    """It was granted pages and has not said that it arrived."""
    ahead: bool = False
    """Nobody waited for what it asked for last."""
    gives_way: bool = False
    """It was told to wait with that for others."""
    waited_s: float = 0.0
    extends_by: int | None = None
    """Pages that it asked for inside its lease, for which others give up warm ones."""
    extends_until_s: float = 0.0
    """When it is refused them, if they have not come."""
    sharing: Sharing | None = None
    """An image of which it has not told everything."""
    lasts_s: float = 0.0
    """How long its steps may take, where that is longer than those of others."""
    due: Due | None = None
    """When it will be killed if it has not given its memory back."""
    swap_ins: int = 0
    swap_outs: int = 0
    recopied_bytes: int = 0
    unmarked_bytes: int = 0
    moved_in: Moved = field(default_factory=Moved)
    moved_ahead: Moved = field(default_factory=Moved)
    moved_out: Moved = field(default_factory=Moved)
    moved_blocks_in: Moved = field(default_factory=Moved)
    moved_blocks_out: Moved = field(default_factory=Moved)
    damaged: int = 0
    total_s: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    copied_bytes: deque[int] = field(default_factory=lambda: deque(maxlen=HISTORY))
    copy_s: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))
    lease_wait_s: deque[float] = field(default_factory=lambda: deque(maxlen=HISTORY))

    @property
    def lost(self) -> bool:
        """Its connection or its process has ended."""
        return self.peer.lost

    def asked(self, *, ahead: bool) -> None:
        """It asks for its lease."""
        self.acquires += 1
        self.ahead, self.gives_way = ahead, False

    def expect(self, order: Revoke | Cool, now_s: float) -> None:
        """Give an order, and remember by when it is to be obeyed."""
        step_s = self.lasts_s if isinstance(order, Revoke) else 0.0  # else it has no step
        self.due = Due(now_s, order.deadline_s, step_s)
        self.peer.say(order)

    def revoke(
        self,
        others_s: float,
        now_s: float,
        keep: int = 0,
        park: ParkOrder | None = None,
        distrusted: str = "",
    ) -> None:
        """Have it leave, in the time that the steps of others take or that it has told of.

        One that leaves already has no more time because of a page that it is not to use.
        """
        parks = (None, 0) if park is None else (park.deadline_s, park.file_bytes)
        order = Revoke(others_s, keep, self.acquires, distrusted, *parks)
        if distrusted and self.due is not None:
            self.peer.say(order)
        else:
            self.expect(order, now_s)

    def lasts(self, step_s: float, now_s: float) -> None:
        """Its steps may take so long from now on; the one too that an order waits for."""
        self.lasts_s = step_s
        if self.due is not None:
            self.due.lasts(step_s, now_s)

    def overdue(self, now_s: float) -> bool:
        """Whether it has not done in time what it was told to."""
        return self.due is not None and self.due.at_s <= now_s

    def kill(self, now_s: float) -> str:
        """End its process, which is overdue; why."""
        assert self.due is not None
        asked_s, self.due = now_s - self.due.ordered_s, None
        self.peer.kill()
        return (
            f"killed: it was asked for its memory {asked_s:.3g} s ago and has it still; a model "
            "whose steps take longer needs a longer --revoke-timeout-s"
        )

    def arrived(self, swap: SwapFigures) -> None:
        """Remember one swap-in and how long its lease was waited for."""
        self.arriving = False
        self.swap_ins += 1
        self.recopied_bytes += swap.recopied_bytes
        self.moved_ahead = self.moved_ahead.more(swap.ahead_bytes, swap.ahead_s)
        awaited_s = max(0.0, swap.moving_s - swap.ahead_s)
        self.moved_in = self.moved_in.more(max(0, swap.copied_bytes - swap.ahead_bytes), awaited_s)
        self.total_s.append(swap.total_s)
        self.copied_bytes.append(swap.copied_bytes)
        self.copy_s.append(swap.copy_s)
        self.lease_wait_s.append(self.waited_s)

    def gave_back(self, swap: SwapFigures | None) -> None:
        """It holds no page any more; without figures nothing was swapped."""
        self.arriving = False
        self.due = None
        if swap is not None:
            self.swap_outs += 1
            self.unmarked_bytes += swap.unmarked_bytes
            self.moved_out = self.moved_out.more(swap.copied_bytes, swap.moving_s)

    def moved_blocks(self, blocks: BlocksMoved) -> None:
        """Remember what it moved of KV blocks."""
        self.recopied_bytes += blocks.recopied_bytes
        self.moved_blocks_in = self.moved_blocks_in.more(blocks.restored_bytes, blocks.restoring_s)
        self.moved_blocks_out = self.moved_blocks_out.more(blocks.saved_bytes, blocks.saving_s)

    def status(self, lease: Lease, page_bytes: int) -> ModelStatus:
        """What the daemon tells of it."""
        return ModelStatus(
            name=self.name,
            pid=self.peer.pid,
            state=lease.state.value if lease.pages else "starting",
            stays=lease.stays,
            footprint_bytes=lease.pages * page_bytes,
            held_bytes=lease.held * page_bytes,
            weights_bytes=self.weights_bytes,
            kv_cache_bytes=self.kv_cache_bytes,
            swap_ins=self.swap_ins,
            swap_outs=self.swap_outs,
            recopied_bytes=self.recopied_bytes,
            unmarked_bytes=self.unmarked_bytes,
            moved_in=self.moved_in,
            moved_ahead=self.moved_ahead,
            moved_out=self.moved_out,
            moved_blocks_in=self.moved_blocks_in,
            moved_blocks_out=self.moved_blocks_out,
            damaged=self.damaged,
            parked_bytes=self.images.parked_bytes,
            parked_file_bytes=self.images.file_bytes,
            parks=self.images.parks,
            read_backs=self.images.read_backs,
            read_back_bytes=self.images.read_back_bytes,
            read_back_s=self.images.read_back_s,
            swap_in_s=list(self.total_s),
            swap_in_copied_bytes=list(self.copied_bytes),
            swap_in_copy_s=list(self.copy_s),
            lease_wait_s=list(self.lease_wait_s),
        )
