"""vLLM's sleep mode for a pooled engine: ``--sleep-mode-backend gpupool``.

A pooled engine needs no such flag: its worker sleeps by this backend whatever is given. It is
registered by name for vLLM's own checks, and so that naming it is no error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from vllm.device_allocator.sleep_mode_backend import SleepModeBackend, SleepModeBackendFactory
from vllm.logger import init_logger
from vllm.platforms import current_platform

from gpupool.errors import UsageError

if TYPE_CHECKING:
    from gpupool.model import Model

logger = init_logger(__name__)

NAME = "gpupool"
TAGS = frozenset({"weights", "kv_cache"})


class PoolBackend(SleepModeBackend):  # type: ignore[misc]
    """Keeps a model out of its pool's device, and knows what of it vLLM takes to be asleep.

    Weights that sleep keep the model out, and calls that need it are refused. With the KV cache
    alone asleep, which is the engine's to heed, the model comes in as a whole for whoever calls.
    """

    def __init__(
        self, model: Model | None = None, forget_kv: Callable[[], None] = lambda: None
    ) -> None:
        """Awake. ``forget_kv`` says that nothing in the KV cache will be read again.

        Without a model, as vLLM makes it for a worker of its own, it can do nothing.
        """
        super().__init__()
        self._model = model
        self._forget_kv = forget_kv
        self._asleep: frozenset[str] = frozenset()

    def suspend(self, level: int = 1) -> None:
        """Forget the KV cache, and keep the model out until its weights are resumed.

        Weights stay on the host at level 2 too, where vLLM would discard them. Raises UsageError,
        and what a failed swap-out raises; what was awake is so still then.
        """
        model = self._pooled()
        if level not in (1, 2):
            raise UsageError(f"sleep level {level!r} is unknown: use 1 or 2")
        if level == 2:
            logger.info("gpupool: sleep level 2 keeps the weights on the host, as level 1 does")
        self._forget_kv()
        model.sleep()
        self._slept(TAGS)

    def resume(self, tags: list[str] | None = None) -> None:
        """Bring the model in if its weights are to be awake now; a no-op where nothing sleeps.

        Raises UsageError for an unknown tag, and what a failed swap-in raises; it sleeps on then.
        """
        model = self._pooled()
        left = self._asleep - self._known(tags) if tags else frozenset[str]()
        if "weights" not in left:
            slept = "weights" in self._asleep
            self._state = "RESUMING"
            model.wake()
            try:
                with model.resident():
                    pass
            except BaseException:
                if slept:
                    model.sleep()
                self._slept(self._asleep)
                raise
        self._slept(left)

    def discard(self, tags: tuple[str, ...]) -> None:
        """Forget the KV cache, and leave the device: a model is there as a whole, or not at all.

        Raises UsageError for other tags, and what a failed swap-out raises.
        """
        model = self._pooled()
        unwanted = self._known(tags)
        if "weights" in unwanted:
            raise UsageError("a pooled engine does not discard its weights: use sleep level 1")
        if unwanted:
            self._forget_kv()
            model.swap_out()
        self._slept(self._asleep | unwanted)

    @classmethod
    def is_supported(cls) -> bool:
        """On the platforms that gpupool has a worker for."""
        return bool(current_platform.is_cpu() or current_platform.is_cuda())

    @classmethod
    def preserves_communicators(cls) -> bool:
        """They have no memory in the pool."""
        return True

    def _pooled(self) -> Model:
        if self._model is None:
            raise UsageError(
                f"--sleep-mode-backend {NAME} moves memory of a pool: add --worker-cls "
                "gpupool.vllm.Worker"
            )
        return self._model

    @staticmethod
    def _known(tags: Iterable[str]) -> frozenset[str]:
        if unknown := sorted(set(tags) - TAGS):
            raise UsageError(f"there is no memory tagged {unknown[0]!r}: use weights or kv_cache")
        return frozenset(tags)

    def _slept(self, asleep: frozenset[str]) -> None:
        self._asleep = asleep
        self._state = "SUSPENDED" if asleep else "RUNNING"


def register() -> None:
    """Make it known by name; may be called more than once."""
    with contextlib.suppress(ValueError):  # it is already
        SleepModeBackendFactory.register_backend(NAME, __name__, PoolBackend.__name__)
