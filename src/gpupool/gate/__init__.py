"""When a model's memory may be touched: steps, turns, and giving it up between them."""

from gpupool.gate.gate import Gate

__all__ = ["Gate"]
