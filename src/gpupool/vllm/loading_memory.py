"""Room in the pool that vLLM loads an engine's weights into, until they are in its model.

Without one they are loaded into memory of the device beside the pool, which must be free there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import msgspec
import torch
from vllm.logger import init_logger

from gpupool.errors import UsageError
from gpupool.model import Model
from gpupool.vllm import compat, settings, waiting
from gpupool.vllm.destination import Room
from gpupool.vllm.living_on import move_out

logger = init_logger(f"vllm.{__name__}")  # below vLLM's own, so that it is shown


_SMALL_BYTES = 1 << 20


class _There:
    """The room while it is there."""

    def __init__(self, model: Model, size_bytes: int, whole: ExitStack) -> None:
        """For which other models leave; ``whole`` gives it back."""
        whole.callback(model.close)
        self.allocator = model.torch_allocator("workspace", size_bytes)
        model.gate.set_idle(False)  # whoever has nothing to do leaves before it
        whole.enter_context(model.lasting(waiting.long_step_s()))
        whole.enter_context(model.resident())
        compat.make_workspaces()
        self.routing = whole.enter_context(ExitStack())
        self.routing.enter_context(torch.cuda.use_mem_pool(self.allocator.mem_pool))
        self.whole = whole.pop_all()


class LoadingMemory(Room):
    """A model of its own, resident from before vLLM's loader runs until the weights are adopted.

    Not a region of the engine's: that must be out while its weights get their regions, from what
    is in the room.
    """

    def __init__(self, join: Callable[[], Model], size_bytes: int) -> None:
        """Nothing is there yet. ``join`` makes the model, which is a new one each time."""
        self._join = join
        self._size_bytes = size_bytes
        self._there: _There | None = None
        self._began = False

    @contextmanager
    def used(self, vllm_config: Any) -> Iterator[Room]:
        """What vLLM's loader loads in this ``with`` block it loads there; by the end it has moved.

        Raises UsageError where the room was too small, or something lives on in it.
        """
        try:
            with compat.loader_within(vllm_config, self._loading):
                yield self
        except BaseException:
            try:
                self._leave(_SMALL_BYTES)  # tables that libraries have made once for all, say
            except Exception:  # the first error is the one to be raised
                logger.exception("gpupool: the room for loading could not be given back")
            raise
        self.end()
        if not self._began:
            logger.warning("gpupool: vLLM has loaded past its room in the pool: omit loading_bytes")

    def begin(self) -> None:
        """Make the room, for which other models leave, and have this thread allocate from it.

        Raises what ``Model.torch_allocator`` and ``Model.resident`` do; nothing is there then.
        """
        if self._there is not None:
            return
        self._began = True
        model = self._join()
        with ExitStack() as whole:
            self._there = _There(model, self._size_bytes, whole)

    def end(self) -> None:
        """Give the room back, once what was loaded has moved; if it is there.

        Other tensors that live on in it move to device memory beside the pool. Raises UsageError if
        something else does.
        """
        if left_bytes := self._leave():
            raise UsageError(
                f"something lives on in {left_bytes} bytes of 'loading_bytes' that vLLM made as it "
                "loaded this model, and that no tensor has: leave 'loading_bytes' out to have it "
                "load outside the pool"
            )

    @contextmanager
    def _loading(self) -> Iterator[None]:
        """As vLLM's loader runs."""
        self.begin()
        try:
            yield
        except torch.OutOfMemoryError as error:
            if self._there is None or self._there.allocator.statistics().refused == 0:
                raise
            raise UsageError(
                f"to load this model takes more than the {self._size_bytes} bytes of "
                "'loading_bytes': raise it, or leave it out to have it load outside the pool"
            ) from error
        finally:
            if self._there is not None:
                self._there.routing.close()

    def _leave(self, largest_bytes: int | None = None) -> int:
        """Give it back; in how many bytes of it something lives on.

        Tensors of more than ``largest_bytes`` do not move out of it.
        """
        there, self._there = self._there, None
        if there is None:
            return 0
        with there.whole:
            there.routing.close()
            if moved_bytes := move_out(there.allocator.region, largest_bytes):
                logger.info("gpupool: %d bytes of what was made live on elsewhere", moved_bytes)
            del there.allocator.mem_pool  # torch gives back what it has cached of it
            compat.empty_cache()
            return there.allocator.statistics().live_bytes


def room(
    given: settings.DaemonSettings | settings.EmbeddedSettings,
    own: Model,
    vllm_config: Any,
) -> AbstractContextManager[Room]:
    """Where an engine, whose model is ``own``, loads: in its pool if it is told so.

    Raises UsageError off the GPU.
    """
    if given.loading_bytes is None:
        return nullcontext(Room())
    if own.device_kind != "cuda":
        raise UsageError("'loading_bytes' is for engines on a GPU: omit it")
    if own.parks:  # it waits for host memory with its room in hand, which others may wait for
        raise UsageError(
            "'loading_bytes' is for pools that park no images: leave it out, or parking"
        )
    joining = msgspec.structs.replace(given, model=settings.loading_name(given))

    def join() -> Model:
        session = settings.join(joining, 0, "").session
        try:
            return Model(joining.model, session, lease_timeout_s=waiting.lease_timeout_s())
        except BaseException:
            session.close()
            raise

    return LoadingMemory(join, given.loading_bytes).used(vllm_config)
