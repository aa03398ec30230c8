"""Policies of requests, at work: they decide who has the memory of one device.

What is known of requests is what the router and the engines tell. Without I/O or clock of its own.
"""

from gpupool.live.conductor import POLICIES, Conductor

__all__ = ["POLICIES", "Conductor"]
