"""The arbiter of one process, and the sessions of its models."""

from gpupool.embedded.arbiter import EmbeddedArbiter
from gpupool.embedded.session import EmbeddedSession

__all__ = ["EmbeddedArbiter", "EmbeddedSession"]
