"""What vLLM calls in each of its processes, by the entry point ``vllm.general_plugins``."""

from __future__ import annotations


def register() -> None:
    """Add ``--load-format gpupool``. May be called more than once."""
    from gpupool.vllm import image_loader

    image_loader.register()
