"""A rank's session with the daemon of its device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from gpupool.daemon.client import DaemonSession
from gpupool.errors import UsageError
from gpupool.session import Early, PageGrant, Wanted


class RankSession(DaemonSession):
    """As ``DaemonSession``, and says when the lease is there."""

    def __init__(
        self,
        socket_path: Path,
        model: str,
        on_granted: Callable[[], None],
        is_wanted: Callable[[], bool],
    ) -> None:
        """Join the pool as ``model``, whose lease may not be wanted any more as it is waited for.

        Raises as DaemonSession, and UsageError for a daemon whose choices are of one device alone.
        """
        super().__init__(socket_path, model)
        self._on_granted, self._is_wanted = on_granted, is_wanted
        why = None
        if self.parking is not None:
            why = "it parks images, and who waits for host memory has no order among devices"
        elif self.follows_requests:
            why = "its policy chooses for one device; use --policy turns"
        if why is not None:
            self.close()
            raise UsageError(f"engines on several devices cannot use the pool {socket_path}: {why}")

    def acquire(
        self, timeout_s: float, early: Early | None = None, ahead: Wanted | None = None
    ) -> PageGrant:
        """As ``Session.acquire``, and raises SwapCancelledError where it is not wanted any more."""
        grant = self._lease(timeout_s, early, self._is_wanted, ahead=False)
        self._on_granted()
        return grant
