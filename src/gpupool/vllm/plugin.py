"""What vLLM calls in each of its processes, by the entry point ``vllm.general_plugins``."""

from __future__ import annotations

import logging
from importlib import import_module

_logger = logging.getLogger(f"vllm.{__name__}")  # below vLLM's own, so that it is shown

_ADDS = {"image_loader": "--load-format gpupool", "sleep_backend": "--sleep-mode-backend gpupool"}


def register() -> None:
    """Add ``--load-format`` and ``--sleep-mode-backend gpupool``, where this vLLM fits them.

    May be called more than once. An engine that has nothing to do with gpupool calls it too: all
    that an unknown vLLM costs it is a warning.
    """
    for module, what in _ADDS.items():
        try:
            import_module(f"gpupool.vllm.{module}").register()
        except ImportError as error:
            _logger.warning("gpupool does not fit this vLLM: %s is absent: %s", what, error)
