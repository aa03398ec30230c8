"""A vLLM worker whose weights and KV cache live in a pool, at addresses that never change.

``execute_model`` first makes sure that the memory is there; between two steps a listener thread
gives it up when the arbiter asks. The engine above sees one slow step: its block tables, prefix
cache and requests stay valid.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from vllm.logger import init_logger

from gpupool.adopt import adopt
from gpupool.errors import UsageError
from gpupool.kv.paged import PagedKv
from gpupool.model import Model
from gpupool.vllm import compat, settings, waiting
from gpupool.vllm.block_use import BlockTables
from gpupool.vllm.destination import loading_into
from gpupool.vllm.graph_memory import GraphMemory
from gpupool.vllm.kv_allocation import KvInPool
from gpupool.vllm.kv_keeping import KeptByBlocks, KeptWhole
from gpupool.vllm.loading_memory import room
from gpupool.vllm.pool_doors import Inside, PoolDoors
from gpupool.vllm.pool_steps import PoolSteps
from gpupool.vllm.sleep_backend import PoolBackend

logger = init_logger(f"vllm.{__name__}")  # below vLLM's own, so that it is shown


class PoolWorker(PoolDoors, PoolSteps):
    """What gpupool adds to a platform's worker; mixed in before it."""

    # Of the platform's worker. What is ours is named _pool_*, to stay clear of its attributes.
    vllm_config: Any
    device: torch.device

    def __init__(self, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        """Join the pool named in ``additional_config['gpupool']``.

        Raises UsageError for a configuration that cannot be pooled, and what joining raises.
        """
        if reason := compat.unsupported(vllm_config):
            raise UsageError(reason)
        given = settings.parse(vllm_config.additional_config)
        settings.check_ranks(given, compat.place(vllm_config).ranks)
        compat.prepare_process(vllm_config)
        self._pool_inside = Inside(compat.OwnWorkspaces())
        super().__init__(vllm_config, *args, **kwargs)  # type: ignore[call-arg]
        place = compat.place(vllm_config)  # the rank is known only now
        joined = settings.join(given, place.rank, place.engine)
        self.pool_model = Model(
            given.model,
            joined.session,
            lease_timeout_s=waiting.lease_timeout_s(),
            min_steps=joined.min_steps,
            before_swap_out=self._pool_wait_for_device,
            verify=given.verify,
            shares=given.share,
            make_gate=joined.make_gate,
        )
        self._pool_starting = ExitStack()  # until it is ready: it compiles, and captures graphs
        self._pool_starting.enter_context(self._pool_lasting())
        self._pool_gang = joined.gang
        self._pool_follows = place.rank > 0
        self._pool_sleep = PoolBackend(self.pool_model, self._pool_forget_kv)
        self._pool_shares = given.share
        self._pool_images = settings.image_cache(given)
        self._pool_kv_store_bytes = given.kv_store_bytes
        self._pool_cudagraph_bytes = given.cudagraph_bytes
        self._pool_graphs: GraphMemory | None = None
        self._pool_room = partial(room, given, self.pool_model, vllm_config)
        self._pool_kv_cache_config: Any = None
        self._pool_tables = BlockTables([], 0)
        self._pool_reporting = settings.reporter(given, joined.session)  # once it is ready

    # Start-up.

    def init_device(self) -> None:
        """Open the device, which must be the pool's. Raises UsageError if it is another."""
        if self.pool_model.device_kind == "cuda":
            compat.waive_free_memory_check(self.vllm_config)
        super().init_device()  # type: ignore[misc]
        if self.device.type == "cuda" and self.device.index != self.pool_model.device_ordinal:
            raise UsageError(
                f"the engine runs on {self.device} and its pool on "
                f"cuda:{self.pool_model.device_ordinal}: give both the same CUDA_VISIBLE_DEVICES "
                "and the pool the engine's ordinal"
            )

    def load_model(self, **kwargs: Any) -> None:
        """Load as vLLM does, then move the weights into the pool; they start out of memory."""
        compat.forget_shared_tensors()
        if self._pool_cudagraph_bytes is not None:
            self._pool_graphs = GraphMemory(self.pool_model, self._pool_cudagraph_bytes)
        with self._pool_room() as loading:
            with (
                loading_into(self.pool_model, self._pool_images, loading),
                self._pool_capturing(),
                compat.without_sleep_mode(self.vllm_config),
            ):
                super().load_model(**kwargs)  # type: ignore[misc]
            # All, or what --load-format gpupool has left.
            adopted = adopt(self.model_runner.get_model(), self.pool_model, rest=True)
        logger.info(
            "gpupool: %d bytes of weights and %d of buffers moved to the pool, %d stay outside",
            adopted.weights_bytes,
            adopted.runtime_bytes,
            adopted.outside_bytes,
        )
        if self.pool_model.device_kind == "cuda":
            compat.empty_cache()  # the copy that was loaded goes back to the device
        self.pool_model.declare()  # what can never fit is said now

    def determine_available_memory(self) -> int:
        """Profile with the weights in place."""
        with self.pool_model.resident(), self._pool_capturing():
            return int(super().determine_available_memory())  # type: ignore[misc]

    def initialize_from_config(self, kv_cache_config: Any) -> None:
        """Allocate the KV cache in the pool."""
        self.pool_model.swap_out()  # the footprint grows
        self._pool_kv_cache_config = kv_cache_config
        with self._pool_kept_from_allocation(), self._pool_capturing():
            super().initialize_from_config(kv_cache_config)  # type: ignore[misc]
        if kv_cache_config.kv_cache_groups and self._pool_kv is None:
            raise UsageError("this version of vLLM allocates its KV cache in an unknown way")
        self._pool_tables = BlockTables(
            compat.block_tokens(kv_cache_config),
            compat.draft_tokens(self.vllm_config),
            keeps_finished=compat.caches_prefixes(self.vllm_config),
        )

    def compile_or_warm_up_model(self) -> Any:
        """Warm up, then leave: the engine is ready, and the next one may need the room."""
        with self.pool_model.resident():
            with self._pool_capturing():
                times = super().compile_or_warm_up_model()  # type: ignore[misc]
            if self._pool_graphs is not None:
                if left_bytes := self._pool_graphs.fit():
                    logger.info("gpupool: %d bytes of CUDA graphs in the pool", left_bytes)
                else:
                    logger.warning("gpupool: no CUDA graph is in the pool: omit 'cudagraph_bytes'")
        self._pool_forget_kv()  # requests of a warm-up, which nobody made
        self.pool_model.swap_out()
        self._pool_reporter = self._pool_reporting
        if self._pool_shares:  # nothing writes to the weights by itself any more
            self.pool_model.share()
        self._pool_starting.close()
        if self.pool_model.device_kind == "cuda":
            kept = self._pool_torch_bytes()
            logger.info("gpupool: torch keeps %d bytes on the GPU, outside the pool", kept)
        return times

    def _pool_torch_bytes(self) -> int:
        graphs = self._pool_graphs
        return compat.torch_bytes(self.device) - (graphs.torch_bytes if graphs else 0)

    def _pool_capturing(self) -> AbstractContextManager[None]:
        return nullcontext() if self._pool_graphs is None else self._pool_graphs.used()

    def shutdown(self) -> None:
        """Stop, and leave the pool."""
        super().shutdown()  # type: ignore[misc]
        if hasattr(self, "pool_model"):
            while self._pool_unsampled > 0:  # steps that nobody will finish
                self._pool_unsampled -= 1
                self.pool_model.gate.close_step(counts=False)
            self.pool_model.close()
            if self._pool_gang is not None:
                self._pool_gang.close()

    def _maybe_get_memory_pool_context(self, tag: str) -> AbstractContextManager[Any]:
        if tag != "kv_cache":
            return nullcontext()
        return KvInPool(self._pool_kv_cache_config, self._pool_take_kv_cache)

    def _pool_take_kv_cache(self, size_bytes: int) -> torch.Tensor:
        if self._pool_kv is not None:
            raise UsageError("an engine that allocates its KV cache twice cannot be pooled")
        config, known = self._pool_kv_cache_config, self.vllm_config.compilation_config
        blocks = compat.block_layout(config, size_bytes, known.static_forward_context)
        if blocks is None:
            limit = self._pool_kv_store_bytes
            if limit is not None and limit < size_bytes:
                raise UsageError(
                    f"the KV cache of this model can only be saved whole, which takes {size_bytes} "
                    f"bytes of host memory: raise kv_store_bytes, which is {limit}"
                )
            logger.warning("gpupool: the KV cache of this model is saved whole at each swap")
            self._pool_kv = KeptWhole(self.pool_model, size_bytes)
        else:
            layout, dtype = blocks
            self._pool_kv = KeptByBlocks(
                PagedKv(
                    self.pool_model,
                    layout,
                    region_bytes=size_bytes,
                    dtype=dtype,
                    store_bytes=self._pool_kv_store_bytes,
                    # What a prefix cache has is never given up: such a model would stay for good.
                    fills_up=compat.caches_prefixes(self.vllm_config),
                )
            )
        self.pool_model.gate.open_step()  # closed by _pool_kept_from_allocation
        return torch.from_dlpack(self._pool_kv.region)

    @contextmanager
    def _pool_kept_from_allocation(self) -> Iterator[None]:
        """Whoever allocates the KV cache may go on to use it."""
        try:
            yield
        finally:
            if self._pool_kv is not None and self.pool_model.gate.is_resident:
                self.pool_model.gate.close_step(counts=False)

    def _pool_wait_for_device(self) -> None:
        """On any thread, whose current device need not be the engine's."""
        model = self.pool_model
        on_cuda = model.device_kind == "cuda"
        with torch.cuda.device(model.device_ordinal) if on_cuda else nullcontext():
            compat.wait_for_device(self)
            if on_cuda:  # what steps have left over is outside the pool, and others need the room
                compat.empty_cache()
