"""``--load-format gpupool``: from an image of the processed weights, or else the checkpoint.

What cannot be loaded from an image for whatever reason comes from the checkpoint, as vLLM's own
loader loads it, and an image is written for the next time, before the engine goes on: until then
nothing has changed the weights on the host, and no reader can see half a file.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader
from vllm.utils.torch_utils import set_default_torch_dtype

from gpupool._core import Verify
from gpupool.adopt import adopt
from gpupool.errors import (
    DamagedMemoryError,
    GpupoolError,
    ImageDamagedError,
    ImageWriteError,
    UsageError,
)
from gpupool.images import state
from gpupool.images.cache import ImageCache
from gpupool.images.checkpoint_reader import Checkpoint
from gpupool.images.format import Made
from gpupool.images.modules import load_image, save_image
from gpupool.vllm import compat, destination
from gpupool.vllm.destination import Destination
from gpupool.vllm.image_key import checkpoint_key, engine_key

logger = init_logger(f"vllm.{__name__}")  # below vLLM's own, so that it is shown as its lines are

LOAD_FORMAT = "gpupool"
_PROGRESS_S = 10.0
Key = dict[str, str]


class ImageLoader(DefaultModelLoader):  # type: ignore[misc]
    """vLLM's default loader, which need not run where there is an image.

    ``model_loader_extra_config`` is the default loader's.
    """

    def __init__(self, load_config: Any) -> None:
        super().__init__(dataclasses.replace(load_config, load_format="auto"))
        self._made: Made | None = None
        self._ready: Any = None  # a module that was made and not used

    def load_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
        """Load the engine's model into its worker's memory, or a draft's as vLLM does.

        Raises UsageError for a worker that is not gpupool's, and what loading raises.
        """
        into = destination.current()
        if into is None:
            raise UsageError(
                "--load-format gpupool loads into a pool: add --worker-cls gpupool.vllm.Worker"
            )
        if model_config is not vllm_config.model_config:
            return super().load_model(vllm_config, model_config, prefix)
        key = _key(vllm_config)
        model = self._from_image(into, key, vllm_config, model_config, prefix)
        if model is None:
            model = self._from_checkpoint(into, key, vllm_config, model_config, prefix)
        return model

    def create_model(self, vllm_config: Any, model_config: Any, prefix: str = "") -> Any:
        """The module, with no weights yet; one that is there already is not made again."""
        ready, self._ready = self._ready, None
        return ready or super().create_model(vllm_config, model_config, prefix)

    def load_weights(self, model: Any, model_config: Any) -> None:
        """As vLLM does, and note what the module was before."""
        self._made = state.made(model)
        super().load_weights(model, model_config)

    def _get_weights_iterator(self, source: Any) -> Any:
        """Safetensors files past the page cache, by several threads; others as vLLM reads them."""
        with compat.safetensors_read_by(_tensors):
            return super()._get_weights_iterator(source)

    def _from_image(
        self, into: Destination, key: Key, vllm_config: Any, model_config: Any, prefix: str
    ) -> Any:
        path = into.cache.path_of(model_config.model, key)
        if "checkpoint" not in key or not into.cache.has(path):
            logger.info("gpupool: there is no image of these weights in %s", into.cache.folder)
            return None
        if not into.cache.is_private():
            logger.warning("gpupool: no image is taken from %s, which others can write to", path)
            return None
        begun_s = time.monotonic()
        known = compat.KnownLayers(vllm_config)
        device = torch.device(self.load_config.device or vllm_config.device_config.device)
        with set_default_torch_dtype(model_config.dtype):
            with device:
                module = self.create_model(vllm_config, model_config, prefix)
            made_s = time.monotonic() - begun_s
            try:
                if reason := compat.not_for_images(module):
                    raise UsageError(reason)
                loaded = load_image(path, module, into.model, key, progress=_progress("read", path))
            except (GpupoolError, OSError) as error:
                self._ready = module  # it is as it was made
                _tell_refusal(into.cache, path, error)
                return None
            read_s = time.monotonic() - begun_s - made_s
            into.room.end()  # before it is resident, which may take its place
            into.model.declare()
            wrong: Exception | None = None
            with into.model.resident():
                try:
                    compat.process_again(module, model_config, device)
                    loaded.check(module.eval())
                except Exception as error:
                    wrong = error
            if wrong is not None:
                into.model.swap_out()
                for region in loaded.regions:
                    into.model.remove_region(region)
                known.put_back()
                into.room.begin()
                _tell_refusal(into.cache, path, wrong)
                return None
        into.cache.mark_used(path)
        logger.info(
            "gpupool: image hit: %s, %d bytes in %.3f s (%.2f GB/s, %s the page cache), "
            "%.3f s with making the module",
            *(path, loaded.size_bytes, read_s, loaded.size_bytes / max(read_s, 1e-9) / 1e9),
            *("past" if loaded.is_direct else "through", time.monotonic() - begun_s),
        )
        return _kept(into, module)

    def _from_checkpoint(
        self, into: Destination, key: Key, vllm_config: Any, model_config: Any, prefix: str
    ) -> Any:
        begun_s = time.monotonic()
        module = super().load_model(vllm_config, model_config, prefix)
        assert self._made is not None
        reason = compat.not_for_images(module)
        if name := state.emptied(module, self._made):
            reason = f"{name!r} was packed away where it cannot be read"
        adopted = adopt(module, into.model, listed=False)
        size_bytes = adopted.weights_bytes + adopted.runtime_bytes
        logger.info(
            "gpupool: image miss: loaded %d bytes from the checkpoint in %.3f s",
            *(size_bytes, time.monotonic() - begun_s),
        )
        into.room.end()
        if into.model.device_kind == "cuda":
            torch.cuda.empty_cache()  # the copy that was loaded goes back to the device
        into.model.declare()
        now = _checkpoint(vllm_config)
        if not key or not now:
            reason = "it cannot be told what they are of"
        if reason is not None:
            logger.info("gpupool: no image of these weights is kept: %s", reason)
        elif key.get("checkpoint", now["checkpoint"]) != now["checkpoint"]:
            logger.warning("gpupool: no image is kept: the checkpoint changed while it was read")
        else:
            key = key | now
            self._write(into, into.cache.path_of(model_config.model, key), key, module)
        return _kept(into, module)

    def _write(self, into: Destination, path: Path, key: Key, module: Any) -> None:
        begun_s = time.monotonic()
        try:
            written = save_image(
                path,
                module,
                into.model,
                key,
                before=self._made,
                room=partial(_make_room, into.cache, path),
                progress=_progress("wrote", path),
            )
        except (ImageWriteError, DamagedMemoryError) as error:
            if isinstance(error, DamagedMemoryError) and into.model.verify is not Verify.always:
                raise  # the model would come in, with most of it not looked at
            logger.warning("gpupool: no image of these weights is kept: %s", error)
        except UsageError as error:
            logger.info("gpupool: no image of these weights is kept: %s", error)
        else:
            taken_s = time.monotonic() - begun_s
            logger.info(
                "gpupool: image written: %s, %d bytes in %.3f s (%.2f GB/s)",
                *(path, written, taken_s, written / max(taken_s, 1e-9) / 1e9),
            )


def _tensors(paths: list[str], theirs: Callable[[], Any]) -> Any:
    """Of each weight its name and a tensor; as vLLM reads it what is not understood here."""
    try:
        checkpoint = Checkpoint([Path(path) for path in paths])
    except (GpupoolError, OSError) as error:
        logger.info("gpupool: vLLM's own reader takes this checkpoint: %s", error)
        return theirs()
    of, done = checkpoint.size_bytes, 0
    progress = _progress("read", Path(paths[0]).parent)

    def heard(size_bytes: int) -> None:
        nonlocal done
        done += size_bytes
        progress(done, of)

    return checkpoint.tensors(heard)


def register() -> None:
    """Make ``--load-format gpupool`` known to vLLM; what its plugins of this process do first."""
    from vllm.model_executor.model_loader import register_model_loader

    global _is_registered
    if not _is_registered:
        register_model_loader(LOAD_FORMAT)(ImageLoader)
        _is_registered = True


_is_registered = False


def _kept(into: Destination, module: Any) -> Any:
    """The rest of vLLM's loading may read and write the weights."""
    into.until_loaded.enter_context(into.model.resident(writes=True))
    return module


def _key(vllm_config: Any) -> Key:
    """Nothing, where another version of vLLM has another configuration than is known here."""
    try:
        return engine_key(vllm_config) | _checkpoint(vllm_config)
    except Exception as error:
        logger.warning("gpupool: it cannot be told what weights these are: %r", error)
        return {}


def _checkpoint(vllm_config: Any) -> Key:
    try:
        return checkpoint_key(vllm_config)
    except (UsageError, OSError) as error:
        logger.info("gpupool: %s", error)
        return {}


def _make_room(
    cache: ImageCache, path: Path, size_bytes: int, allocate: Callable[[], None]
) -> None:
    for gone in cache.make_room(size_bytes, allocate, but=path):
        logger.info("gpupool: removed %s to make room", gone)


def _tell_refusal(cache: ImageCache, path: Path, error: Exception) -> None:
    reason = str(error) or type(error).__name__
    logger.warning("gpupool: an image is not used, and made anew from the checkpoint: %s", reason)
    if isinstance(error, ImageDamagedError):
        with contextlib.suppress(OSError):
            cache.remove(path)


def _progress(done_what: str, path: Path) -> Callable[[int, int], None]:
    last_s = time.monotonic()

    def progress(done: int, of: int) -> None:
        nonlocal last_s
        if time.monotonic() - last_s > _PROGRESS_S:
            last_s = time.monotonic()
            logger.info("gpupool: %s %d of %d bytes of %s", done_what, done, of, path)

    return progress
