"""What vLLM keeps of weights besides the weights, and makes of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import vllm.model_executor.utils as model_utils
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase


def forget_shared_tensors() -> None:
    """Before each load: a tensor cached by vLLM must not become part of two models."""
    from vllm.model_executor.layers import rotary_embedding

    rotary_embedding._ROPE_DICT.clear()


@contextmanager
def safetensors_read_by(read: Callable[[list[str], Callable[[], Any]], Any]) -> Iterator[None]:
    """Have the default loader ask ``read`` for the weights of files, for this ``with`` block.

    ``read`` gets their paths and what has vLLM read them. Where vLLM was told how to, or reads
    a part of the experts alone, it does.
    """
    from vllm.model_executor.model_loader import default_loader

    theirs = default_loader.safetensors_weights_iterator

    def iterator(
        paths: list[str], progress: Any, strategy: str | None = None, *more: Any, **named: Any
    ) -> Any:
        ask = partial(theirs, paths, progress, strategy, *more, **named)
        plain = strategy in (None, "lazy") and not more and named.get("local_expert_ids") is None
        return read(paths, ask) if plain else ask()

    default_loader.safetensors_weights_iterator = iterator
    try:
        yield
    finally:
        default_loader.safetensors_weights_iterator = theirs


@contextmanager
def loader_within(
    vllm_config: Any, around: Callable[[], AbstractContextManager[None]]
) -> Iterator[None]:
    """Have vLLM's loader load the engine's own model in ``around()``, for this ``with`` block.

    Not drafts, nor what runners make beside the model as they load it, as V2 its sampler.
    """
    from vllm.model_executor.model_loader import get_model_loader

    loader: Any = type(get_model_loader(vllm_config.load_config))
    before, own_config = vars(loader).get("load_model"), vllm_config.model_config
    load = loader.load_model

    def load_model(self: Any, vllm_config: Any, model_config: Any, *more: Any, **named: Any) -> Any:
        if model_config is not own_config:
            return load(self, vllm_config, model_config, *more, **named)
        with around():
            return load(self, vllm_config, model_config, *more, **named)

    loader.load_model = load_model
    try:
        yield
    finally:
        if before is None:
            del loader.load_model
        else:
            loader.load_model = before


def not_for_images(module: Any) -> str | None:
    """Why the processed weights of a module cannot be taken as they are, or None."""
    if not hasattr(model_utils, "weights_already_processed"):
        return "this vLLM takes up no processed weights: 0.31 and newer do"
    for name, child in module.named_modules():
        method = getattr(child, "quant_method", None)
        if isinstance(method, QuantizeMethodBase) and not getattr(
            method, "supports_pre_processed_weights", False
        ):
            kind = type(method).__name__
            return f"vLLM cannot take up processed weights of {kind} (layer {name!r})"
    if getattr(module, "secondary_weights", ()):
        return "some of its weights come from another checkpoint"
    return None


def process_again(module: Any, model_config: Any, device: Any) -> None:
    """Let vLLM make what goes with weights that are processed already."""
    from vllm.model_executor.model_loader.utils import process_weights_after_loading

    with model_utils.weights_already_processed():
        process_weights_after_loading(module, model_config, device)


class KnownLayers:
    """The layers that a configuration knows, which a model enters as it is made."""

    def __init__(self, vllm_config: Any) -> None:
        """As they are now."""
        self._config = vllm_config.compilation_config
        self._layers = dict(self._config.static_forward_context)
        self._experts = list(self._config.static_all_moe_layers)

    def put_back(self) -> None:
        """Forget a model that was made since, so that it can be made again."""
        self._config.static_forward_context.clear()
        self._config.static_forward_context.update(self._layers)
        self._config.static_all_moe_layers[:] = self._experts
        forget_shared_tensors()


@contextmanager
def without_sleep_mode(vllm_config: Any) -> Iterator[None]:
    """While a model is loaded: nothing of it is to be in memory of vLLM's own sleep mode.

    0.33 would make LoRA's slots there, which are then moved to the pool, and never let it go.
    """
    model = vllm_config.model_config
    before = model.enable_sleep_mode
    model.enable_sleep_mode = False
    try:
        yield
    finally:
        model.enable_sleep_mode = before
