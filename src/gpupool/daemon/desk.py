"""What the daemon answers: messages in, messages and leases out. No event loop of its own."""

from __future__ import annotations

import os
from collections import deque

import msgspec

from gpupool._core import PagePool
from gpupool.arbiter import Arbiter, Granted
from gpupool.daemon import protocol as p
from gpupool.daemon.peers import Peer
from gpupool.errors import DoesNotFitError, GpupoolError, ProtocolError

_REFUSALS_MAX = 32
_REFUSAL_CHARACTERS_MAX = 1000
_GRANT_PAGES_MAX = p.FDS_MAX  # pages in one Granted, so that their descriptors fit beside it


class Desk:
    """Connects peers, the arbiter and the ledger of host memory."""

    def __init__(
        self,
        *,
        pages: PagePool,
        arbiter: Arbiter,
        device: str,
        version: str,
        host_budget_bytes: int,
        min_tokens: int,
        revoke_timeout_s: float,
    ) -> None:
        """Start with no peers."""
        self._pages = pages
        self._arbiter = arbiter
        self._device = device
        self._version = version
        self._host_budget_bytes = host_budget_bytes
        self._min_tokens = min_tokens
        self._revoke_timeout_s = revoke_timeout_s
        self._workers: dict[int, Peer] = {}
        self._refusals: deque[p.Refusal] = deque(maxlen=_REFUSALS_MAX)

    def handle(self, peer: Peer, message: p.ClientMessage, now_s: float) -> bool:
        """Act on one message; False if the peer is to be disconnected.

        Raises ProtocolError for a message out of turn.
        """
        if isinstance(message, p.StatusQuery):
            peer.send(p.encode(self._status(message.first)))
        elif isinstance(message, p.Hello):
            return self._hello(peer, message, now_s)
        elif peer.key is None:
            raise ProtocolError("the first message of a worker is Hello")
        elif isinstance(message, p.Goodbye):
            return False
        else:
            asks = isinstance(message, p.HostMemory | p.Declare | p.Acquire)
            try:
                self._worker_said(peer, peer.key, message, now_s)
            except GpupoolError as error:
                if not asks:  # nobody waits for an answer to what was merely told
                    raise ProtocolError(str(error)) from error
                self._refuse(peer, error)
        return True

    def lost(self, peer: Peer, now_s: float) -> bool:
        """The peer's connection or process has ended; True once it can be forgotten.

        Pages it held stay out of use until its process has exited, and it is made to.
        """
        if peer.key is None:
            return True
        if peer.has_exited() or not self._pages.owned(peer.key):
            self._arbiter.remove(peer.key)
            del self._workers[peer.key]
            peer.key = None
            return True
        if not self._arbiter.lease(peer.key).fenced:
            self._arbiter.fence(peer.key, now_s)
            peer.kill()  # nothing can ask it for its pages any more
        return False

    def settle(self, now_s: float) -> float | None:
        """Send what the arbiter decides; when to call again at the latest."""
        outcome = self._arbiter.decide(now_s)
        for granted in outcome.granted:
            self._grant(self._workers[granted.key], granted)
        for key in outcome.revoked:
            peer = self._workers[key]
            peer.kill_at_s = now_s + self._revoke_timeout_s
            peer.send(p.encode(p.Revoke(self._revoke_timeout_s)))
        for key, error in outcome.failed:
            self._refuse(self._workers[key], error)
        wake_at_s = outcome.wake_at_s
        for peer in self._workers.values():
            if peer.kill_at_s is None:
                continue
            if peer.kill_at_s <= now_s:
                peer.kill()
                peer.kill_at_s = None
                if peer.key is not None:
                    self._note(peer, "killed: it did not give its memory back in time")
                continue
            wake_at_s = peer.kill_at_s if wake_at_s is None else min(wake_at_s, peer.kill_at_s)
        return wake_at_s

    def _hello(self, peer: Peer, message: p.Hello, now_s: float) -> bool:
        if peer.key is not None:
            raise ProtocolError("a worker says Hello once")
        if message.version != p.PROTOCOL_VERSION:
            peer.send(p.encode(p.Refused("usage", "worker and daemon differ in version")))
            return False
        if not 0 < len(message.model) <= 256:
            raise ProtocolError("a model's name has 1 to 256 characters")
        try:
            peer.key = self._arbiter.add(message.model, now_s)
        except GpupoolError as error:
            peer.send(p.encode(p.Refused("usage", str(error))))
            return False
        self._workers[peer.key] = peer
        peer.send(
            p.encode(
                p.Welcome(
                    self._device,
                    self._pages.page_bytes,
                    self._arbiter.budget_bytes,
                    self._min_tokens,
                )
            )
        )
        return True

    def _worker_said(self, peer: Peer, key: int, message: p.ClientMessage, now_s: float) -> None:
        match message:
            case p.HostMemory():
                self._host_memory(peer, message.size_bytes)
            case p.Declare():
                detail = f"weights {message.weights_bytes}, KV cache {message.kv_cache_bytes}"
                self._arbiter.declare(key, message.pages, detail)
                peer.weights_bytes = message.weights_bytes
                peer.kv_cache_bytes = message.kv_cache_bytes
                peer.send(p.encode(p.Ok()))
            case p.Acquire():
                self._arbiter.request(key, now_s)
            case p.Cancel():
                if self._arbiter.cancel(key, now_s):
                    peer.send(p.encode(p.Ok()))
            case p.Arrived():
                peer.swap_ins += 1
                peer.history.add(message.swap, peer.waited_s)
            case p.Yielded():
                self._arbiter.yielded(key, now_s)
                peer.kill_at_s = None
                peer.swap_outs += message.swap is not None
            case p.Kept():
                self._note(peer, message.message)  # the deadline of its revoke stands
            case p.Idle():
                self._arbiter.set_idle(key, message.idle, now_s)
            case _:
                raise ProtocolError(f"a worker does not say {type(message).__name__}")

    def _host_memory(self, peer: Peer, size_bytes: int) -> None:
        free_bytes = self._host_budget_bytes - self._host_bytes()
        if not 0 < size_bytes <= free_bytes:
            raise GpupoolError(
                f"{size_bytes} bytes of host memory were asked for and {free_bytes} of the host "
                "budget are free: raise the host budget"
            )
        fd = os.memfd_create("gpupool-image", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size_bytes)
        except OSError as error:
            os.close(fd)
            raise GpupoolError(f"no host memory: {error}") from error
        peer.host_bytes += size_bytes
        peer.send(p.encode(p.HostMemory(size_bytes)), [fd])

    def _grant(self, peer: Peer, granted: Granted) -> None:
        peer.waited_s = granted.waited_s
        for start in range(0, len(granted.pages), _GRANT_PAGES_MAX):
            pages = granted.pages[start : start + _GRANT_PAGES_MAX]
            new = [page for page in pages if page not in peer.seen_pages]
            fds = [self._pages.page(page).export_fd() for page in new]
            peer.seen_pages.update(new)
            last = start + len(pages) == len(granted.pages)
            peer.send(p.encode(p.Granted(pages, new, last)), fds)

    def _refuse(self, peer: Peer, error: GpupoolError) -> None:
        self._note(peer, str(error))
        if isinstance(error, DoesNotFitError):
            refused = p.Refused("does_not_fit", str(error), error.needed_bytes, error.budget_bytes)
        else:
            refused = p.Refused("other", str(error)[:_REFUSAL_CHARACTERS_MAX])
        peer.send(p.encode(refused))

    def _note(self, peer: Peer, message: str) -> None:
        name = "" if peer.key is None else self._arbiter.lease(peer.key).name
        self._refusals.append(p.Refusal(name, peer.pid, message[:_REFUSAL_CHARACTERS_MAX]))

    def _host_bytes(self) -> int:
        return sum(peer.host_bytes for peer in self._workers.values())

    def _status(self, first: int) -> msgspec.Struct:
        keys = list(self._workers)
        fenced = self._arbiter.fenced_pages
        status = p.Status(
            version=self._version,
            device=self._device,
            page_bytes=self._pages.page_bytes,
            budget_bytes=self._arbiter.budget_bytes,
            pages_free=self._pages.free_pages,
            pages_granted=self._pages.total_pages - self._pages.free_pages - fenced,
            pages_fenced=fenced,
            host_bytes=self._host_bytes(),
            models=[self._model_status(key) for key in keys[max(0, first) :][:1]],
            refusals=list(self._refusals),
        )
        return p.StatusReply(status, len(keys))

    def _model_status(self, key: int) -> p.ModelStatus:
        lease = self._arbiter.lease(key)
        peer = self._workers[key]
        return p.ModelStatus(
            name=lease.name,
            pid=peer.pid,
            state=lease.state.value if lease.pages else "starting",
            footprint_bytes=lease.pages * self._pages.page_bytes,
            weights_bytes=peer.weights_bytes,
            kv_cache_bytes=peer.kv_cache_bytes,
            swap_ins=peer.swap_ins,
            swap_outs=peer.swap_outs,
            swap_in_s=list(peer.history.total_s),
            swap_in_copied_bytes=list(peer.history.copied_bytes),
            swap_in_copy_s=list(peer.history.copy_s),
            lease_wait_s=list(peer.history.wait_s),
        )
