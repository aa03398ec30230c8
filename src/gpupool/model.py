"""One model's memory: regions at stable addresses that come in and go out as a whole."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from gpupool._core import Driver, Verify
from gpupool.checks import seconds
from gpupool.errors import DaemonUnavailableError, UsageError
from gpupool.figures import Figures
from gpupool.gate import Gate
from gpupool.interop import CupyAllocator, TorchAllocator
from gpupool.keeper import Keeper
from gpupool.regions import Regions
from gpupool.residency import Sleeper
from gpupool.session import BlocksMoved, Session


class Model(Regions, Figures):
    """The memory of one model in a pool.

    Make one with ``Pool.model``. Add regions while it is out, use them inside
    ``with model.resident():``. Addresses and tensors over them stay valid for the life of the
    model; what is behind them is there only while it is resident.
    """

    _residency: Sleeper

    def __init__(
        self,
        name: str,
        session: Session,
        *,
        lease_timeout_s: float = 240.0,
        min_steps: int = 0,
        before_swap_out: Callable[[], None] | None = None,
        verify: str = "always",
        shares: bool = False,
        make_gate: Callable[..., Gate] = Gate,
    ) -> None:
        """Join the pool behind ``session``, which this model owns from now on.

        ``verify`` says of which copies to the device, of KV blocks too, the digests are looked at:
        ``always`` (of all), ``sample`` (of one in 16, in turn) or ``off``. Raises UsageError for
        another word.

        ``shares`` is whether weights may be shared (see ``share``). ``make_gate`` makes what lets
        steps begin; ``gpupool.gang`` has one for ranks of an engine.

        ``before_swap_out`` runs when no step is open and nothing may touch the memory any more:
        it waits for the device and marks what was written.
        """
        lease_timeout_s = seconds("lease_timeout_s", lease_timeout_s)
        self.name, self._session, self._lease_timeout_s = name, session, lease_timeout_s
        if verify not in Verify.__members__:
            raise UsageError(f"verify={verify!r}: use 'always', 'sample' or 'off'")
        self._shares = shares
        self.verify = Verify[verify]
        self._residency = Sleeper(name, session, before_swap_out, self.verify)
        self.gate = make_gate(self._residency, lease_timeout_s=lease_timeout_s, min_steps=min_steps)
        session.bind(self.gate)

    def torch_allocator(
        self, tag: str, size_bytes: int, *, capacity_bytes: int = 0
    ) -> TorchAllocator:
        """Memory for torch's allocations, on a GPU, in a new region of ``tag``; see TorchAllocator.

        Raises what ``region`` does, and UsageError on the host device.
        """
        return TorchAllocator(self, tag, size_bytes, capacity_bytes)

    def cupy_allocator(
        self, tag: str, size_bytes: int, *, capacity_bytes: int = 0
    ) -> CupyAllocator:
        """Memory for CuPy's allocations, on a GPU, in a new region of ``tag``; see CupyAllocator.

        Raises what ``region`` does, and UsageError on the host device.
        """
        return CupyAllocator(self, tag, size_bytes, capacity_bytes)

    def add_keeper(self, keeper: Keeper) -> None:
        """Let ``keeper`` follow every swap of this model from now on, and its close.

        Raises UsageError unless the model is out.
        """
        with self.gate.steady() as resident:
            if resident:
                raise UsageError("a keeper can be added only while its model is out")
            self._residency.keepers.append(keeper)

    @property
    def driver(self) -> Driver:
        """The device that the memory is on."""
        return self._session.driver

    def host_memory(self, size_bytes: int) -> int:
        """A memfd on the model's account; the caller closes it. Raises RefusedError or OSError."""
        return self._session.host_memory(size_bytes)

    def return_host_memory(self, size_bytes: int) -> None:
        """So much of it is closed and nowhere mapped any more. Raises DaemonUnavailableError."""
        self._session.return_host_memory(size_bytes)

    def damaged(self, message: str) -> None:
        """Tell the pool of memory that a step found not to be what was saved."""
        with contextlib.suppress(DaemonUnavailableError):
            self._session.damaged(message)

    def blocks_moved(self, moved: BlocksMoved) -> None:
        """Tell the pool what a keeper has moved since it told last."""
        with contextlib.suppress(DaemonUnavailableError):
            self._session.blocks_moved(moved)

    @contextlib.contextmanager
    def resident(self, timeout_s: float | None = None, *, writes: bool = False) -> Iterator[None]:
        """Bring the model in and keep it for the length of a ``with`` block.

        A swap-out does not copy weights that it has saved before: whoever changes weights or a
        KV cache in the block says so with ``writes``, or by ``Region.mark_written``, or the change
        is lost at the next swap-out. Weights that are shared are unshared first. Raises
        DoesNotFitError, LeaseTimeoutError, DriverError, or
        DamagedMemoryError, with the model out as before, for memory that is not what was saved.
        """
        if timeout_s is not None:
            timeout_s = seconds("timeout_s", timeout_s)
        while True:
            if writes:
                self.unshare()
            with self.gate.hold(timeout_s):
                if writes and self._residency.sharing:
                    continue  # another thread shared it meanwhile, and cannot as long as this holds
                try:
                    yield
                finally:  # also after an error: part may have been written
                    if writes:
                        for region in (*self.regions("weights"), *self.regions("kv_cache")):
                            if region.image_bytes > 0:  # else its keeper is told, block by block
                                region.mark_written([(0, region.bytes)])
                return

    def lasting(self, step_s: float) -> contextlib.AbstractContextManager[None]:
        """In this ``with`` block steps may take ``step_s``, and ``with model.resident():`` as long.

        A daemon kills a process that keeps its memory for longer than ``revoke_timeout_s`` after
        others want it, or than this if it was told before. Who waits for the memory waits so long:
        say no more than they can. Nobody is killed by a pool of this process.

        >>> import gpupool
        >>> pool = gpupool.Pool(device="host", budget_bytes=8 << 20, page_bytes=2 << 20)
        >>> model = pool.model("a")
        >>> region = model.region("runtime", 1 << 20)
        >>> with model.lasting(120.0), model.resident():
        ...     pass  # compile, or read a large file
        """
        return self._session.lasting(seconds("step_s", step_s))

    def mark_written(self, tag: str) -> None:
        """All regions of one tag are to be saved whole at the next swap-out.

        Raises UsageError unless the model is resident.
        """
        for region in self.regions(tag):
            region.mark_written([(0, region.bytes)])

    def share(self) -> None:
        """Have pages and host memory in common with models that have the same weights in them.

        The model leaves first. From then on its weights are mapped for reading alone: a write to
        them stops this process, or is an error of the GPU. What other models of the pool have too,
        page by page, is on the host once, and what is resident with one of them is not copied for
        another. Raises UsageError unless the model was made to (``Pool.model(shares=True)``) and
        all of its weights were saved, RefusedError, OSError, or DriverError; nothing has changed
        for what is not shared then.

        >>> import gpupool, os
        >>> pool = gpupool.Pool(device="host", budget_bytes=8 << 20, page_bytes=2 << 20)
        >>> common, models = os.urandom(4 << 20), []
        >>> for name in ("base", "tuned"):
        ...     models.append(pool.model(name, shares=True))
        ...     weights = models[-1].region("weights", 6 << 20)
        ...     memoryview(weights.image())[:] = common + os.urandom(2 << 20)
        ...     weights.adopt_image()
        ...     models[-1].share()
        >>> with models[0].resident(), models[1].resident():
        ...     pool.free_bytes
        0
        >>> models[1].last_swap_in.shared_bytes, models[1].last_swap_in.copied_bytes
        (4194304, 2097152)
        >>> models[1].unshare()
        """
        if not self._shares:
            raise UsageError(f"model {self.name!r} was not made to share: Pool.model(shares=True)")
        with self._left():
            try:
                self._residency.sharing.share()
            finally:
                self._residency.footprint.changed()

    def unshare(self) -> None:
        """Have the model's weights for itself again, as before something is written to them.

        The model leaves first, if any are shared, and they are not shared again. Raises what
        ``share`` does, also where there is no host memory for them; they are shared still then.
        """
        if not self._residency.sharing:
            return
        with self._left():
            try:
                self._residency.sharing.unshare()
            finally:
                self._residency.footprint.changed()
                self._residency.return_images()

    @contextlib.contextmanager
    def _left(self) -> Iterator[None]:
        """With the model out and no page of it warm."""
        while True:
            self.gate.give_up()
            with self.gate.steady() as resident:  # which another thread may have made it again
                if not resident:
                    with self._residency.cold():
                        yield
                    return

    def prefetch(self, share: float = 1.0, timeout_s: float | None = None) -> bool:
        """Bring the model in before it is used; False unless it was out.

        It is copied for ``share`` of the time, and comes after all who wait for memory: only models
        without unfinished work make room for it, used least recently first. A step that opens
        meanwhile has it hurry. Returns once it is there. Raises UsageError for a share that is not
        above 0 and at most 1, LeaseTimeoutError if there is no room within ``timeout_s`` (default:
        the lease's), SwapCancelledError if others need the room before it is there, and what
        ``resident`` raises; the model is out then.
        """
        if not 0 < share <= 1:
            raise UsageError(f"a share of {share!r} is not above 0 and at most 1")
        if timeout_s is not None:
            timeout_s = seconds("timeout_s", timeout_s)
        return self.gate.fetch_ahead(share, timeout_s)

    def swap_out(self) -> bool:
        """Give all memory up now; False if the model was out already."""
        gone = self.gate.give_up()
        with self._cold():
            return gone

    def sleep(self) -> None:
        """Give all memory up and come in for nobody until ``wake``; idempotent.

        Who asks for the model meanwhile gets a UsageError. Raises UsageError inside a step of this
        thread, and what a failed swap-out raises; the model is awake then, if it was.

        >>> import gpupool
        >>> pool = gpupool.Pool(device="host", budget_bytes=8 << 20, page_bytes=2 << 20)
        >>> model = pool.model("a")
        >>> model.sleep()
        >>> model.check_awake()
        Traceback (most recent call last):
        gpupool.errors.UsageError: model 'a' is asleep: wake it up first
        >>> model.wake()
        """
        awake, self._residency.asleep = not self._residency.asleep, True
        try:
            with self._left():
                pass
        except BaseException:
            self._residency.asleep = not awake
            raise

    def wake(self) -> None:
        """Let the model come in again when it is asked for."""
        self._residency.asleep = False

    def check_awake(self) -> None:
        """Raise UsageError while the model is asleep."""
        self._residency.check_awake()

    def close(self) -> None:
        """Swap out and leave the pool; idempotent. What keepers have kept of its memory is lost.

        Of its memory nothing is left then but what tensors and ``Region.image`` refer to; an image
        that somebody looks at stays on the account of the pool, or a daemon's until the process
        ends.

        Raises UsageError inside a step of this thread, and what a failed swap-out raises; the
        model is still in the pool then and ``close`` may be called again.
        """
        with self._cold():
            pass  # what fails here must not leave it half closed
        if self.gate.close():
            self._residency.close()

    def declare(self) -> None:
        """Say now whether the regions so far can ever fit the pool. Raises DoesNotFitError."""
        self._residency.declare()
