"""What an image of an engine's processed weights is looked up by."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from gpupool.errors import UsageError
from gpupool.images.checkpoint import checkpoint_digest
from gpupool.images.format import FORMAT
from gpupool.vllm import compat


def engine_key(vllm_config: Any) -> dict[str, str]:
    """What besides the checkpoint its processed weights depend on; to be asked before they load."""
    return {
        "configuration": _digest(compat.weight_factors(vllm_config)),
        "device": compat.device_name(vllm_config),
        "format": str(FORMAT),
        "rank": compat.rank_name(vllm_config),
        "torch": str(torch.__version__),
        "vllm": compat.version(),
    }


def checkpoint_key(vllm_config: Any) -> dict[str, str]:
    """The checkpoint as it is now. Raises UsageError if it is not here, or OSError."""
    folder = compat.checkpoint_folder(vllm_config)
    if folder is None:
        raise UsageError(f"checkpoint {vllm_config.model_config.model!r} is not here yet")
    return {"checkpoint": checkpoint_digest(Path(folder))}


def _digest(factors: dict[str, object]) -> str:
    text = json.dumps(factors, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=32).hexdigest()
