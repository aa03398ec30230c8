"""What vLLM calls in each of its processes, by the entry point ``vllm.general_plugins``."""

from __future__ import annotations

import logging

_logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, so that it is shown


def register() -> None:
    """Add ``--load-format gpupool``, where this vLLM has what that needs.

    May be called more than once. An engine that has nothing to do with gpupool calls it too: all
    that an unknown vLLM costs it is a warning.
    """
    try:
        from gpupool.vllm import image_loader
    except ImportError as error:
        _logger.warning(
            "gpupool does not fit this vLLM: --load-format gpupool is absent: %s", error
        )
        return
    image_loader.register()
