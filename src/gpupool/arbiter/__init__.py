"""Who has which pages of one budget, and who gets them next."""

from gpupool.arbiter.arbiter import Arbiter

__all__ = ["Arbiter"]
