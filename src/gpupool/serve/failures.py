"""What stops `gpupool serve`: each message is one sentence that says what to do."""

from __future__ import annotations

from gpupool.errors import GpupoolError


class ConfigError(GpupoolError):
    """pool.yaml, or a checkpoint that it names, cannot be used."""


class ServeError(GpupoolError):
    """The server cannot start, for example because its port is taken."""


class EngineFailedError(GpupoolError):
    """An engine could not be started."""


class DaemonFailedError(GpupoolError):
    """The pool daemon could not be started, or ended while engines depended on it."""
