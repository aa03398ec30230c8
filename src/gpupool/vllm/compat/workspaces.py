"""Scratch memory of vLLM's layers: a process has one manager of it, and each pooled engine its own.

One for all would be replaced by the next engine that starts, and be gone with the first that ends,
while CUDA graphs of the others go on using its memory.
"""

from __future__ import annotations

import threading
from typing import Any
from weakref import WeakSet

from gpupool.errors import BehindGateError


class _Entered(threading.local):
    """What this thread is inside of, the last one last."""

    def __init__(self) -> None:
        self.of: list[OwnWorkspaces] = []


class OwnWorkspaces:
    """Those of one engine, which code on a thread finds inside of ``with`` blocks of it; nests."""

    manager: Any = None
    """The one that vLLM made for it, or None."""

    def __init__(self) -> None:
        with _lock:
            _known.add(self)

    def __enter__(self) -> None:
        _entered.of.append(self)

    def __exit__(self, *_: object) -> None:
        _entered.of.pop()


_lock = threading.Lock()
_entered = _Entered()
_known: WeakSet[OwnWorkspaces] = WeakSet()
_outside = OwnWorkspaces()  # what is made on a thread that is inside of no pooled engine


class _OfThisThread:
    """Stands for the manager of the engine whose method runs on a thread.

    ``is_workspace_manager_initialized`` finds it there always. That is harmless: vLLM asks in code
    of models, and its worker makes the manager as it opens the device, before it has any.
    """

    def __getattr__(self, name: str) -> Any:
        return getattr(_manager(), name)


def _manager() -> Any:
    if _entered.of:
        manager = _entered.of[-1].manager
    else:  # on a thread of vLLM's own, as for micro-batches
        with _lock:
            there = [own.manager for own in _known if own.manager is not None]
        if len(there) > 1:
            raise BehindGateError(
                f"vLLM asks for scratch memory on a thread of its own, and the process has "
                f"{len(there)} engines that it may be for: give this engine a process of its own"
            )
        manager = there[0] if there else None
    assert manager is not None, (
        "WorkspaceManager not initialized: the worker has not opened its device, or has shut down"
    )
    return manager


def _current() -> OwnWorkspaces:
    return _entered.of[-1] if _entered.of else _outside


def keep_workspaces_apart() -> None:
    """Have each pooled engine of this process find its own from now on."""
    from vllm.v1.worker import gpu_worker, workspace

    def init_workspace_manager(*args: Any, **kwargs: Any) -> None:
        _current().manager = workspace.WorkspaceManager(*args, **kwargs)

    def reset_workspace_manager() -> None:
        _current().manager = None

    with _lock:
        if isinstance(workspace._manager, _OfThisThread):
            return
        _outside.manager = workspace._manager  # of an engine that is in no pool
        workspace._manager = _OfThisThread()
        workspace.reset_workspace_manager = reset_workspace_manager
        workspace.init_workspace_manager = init_workspace_manager
        gpu_worker.init_workspace_manager = init_workspace_manager
