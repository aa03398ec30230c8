"""The worker class for ``--worker-cls``: the platform's own, with every method behind the gate."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any

from gpupool.vllm import compat, doors, image_loader, sleep_backend
from gpupool.vllm.pool_worker import PoolWorker


def _marked(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def inside(self: PoolWorker, *args: Any, **kwargs: Any) -> Any:
        with self._pool_inside:
            return method(self, *args, **kwargs)

    return inside


def _through_door(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
    writes, lasts = name in doors.WRITES, name in doors.LASTING

    @wraps(method)
    def gated(self: PoolWorker, *args: Any, **kwargs: Any) -> Any:
        with self._pool_door(writes, lasts):
            return method(self, *args, **kwargs)

    return gated


def pooled(platform_worker: type[Any]) -> type[Any]:
    """A subclass of vLLM's worker for a platform whose memory is the pool's."""
    methods: dict[str, Any] = {"__doc__": PoolWorker.__doc__, "__module__": __name__}
    for name in sorted(doors.READS | doors.WRITES):
        if (method := getattr(platform_worker, name, None)) is not None:
            methods[name] = _marked(_through_door(name, method))
    base = type("Worker", (PoolWorker, platform_worker), methods)
    # get_model stays unmarked: it would hand out what may not be there.
    for name in sorted((doors.STEP | doors.LIFECYCLE | doors.FREE) - {"resident", "get_model"}):
        if inspect.isfunction(method := getattr(base, name, None)):
            setattr(base, name, _marked(method))
    return base


Worker = pooled(compat.platform_worker())
# Also where VLLM_PLUGINS leaves gpupool's plugin out.
image_loader.register()
sleep_backend.register()
