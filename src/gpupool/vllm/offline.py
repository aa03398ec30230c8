"""One engine of vLLM in this process, behind the few calls that measuring it takes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from vllm.engine.arg_utils import EngineArgs
from vllm.platforms import current_platform
from vllm.sampling_params import RequestOutputKind, SamplingParams
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.llm_engine import LLMEngine

from gpupool.errors import UsageError
from gpupool.host_budget.place import machine_memory_bytes

_MEMORY_SHARE = 0.95


class OfflineEngine:
    """A pooled engine, alone in a pool of nearly all memory, of which it takes what it needs."""

    def __init__(
        self,
        model: str,
        device: str,
        options: Sequence[str],
        *,
        kv_cache_bytes: int,
        page_bytes: int,
    ) -> None:
        """Start it; ``options`` are vLLM's own. Raises UsageError, and what vLLM raises."""
        if (device == "host") != current_platform.is_cpu():
            kind = "CPU" if current_platform.is_cpu() else current_platform.device_type.upper()
            raise UsageError(
                f"this is vLLM's {kind} build, which cannot run on {device}: give --device"
                f" {'host' if kind == 'CPU' else 'cuda'}, or install another"
            )
        parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
        arguments = EngineArgs.from_cli_args(parser.parse_args(["--model", model, *options]))
        arguments.worker_cls = "gpupool.vllm.Worker"
        arguments.kv_cache_memory_bytes = kv_cache_bytes
        arguments.enable_prefix_caching = False  # so that every prompt is computed
        arguments.disable_log_stats = True
        pooled = {
            "model": "profiled",
            # The one device that is visible.
            "device": device.partition(":")[0],
            "budget_bytes": int(_MEMORY_SHARE * _memory_bytes()),
            "page_bytes": page_bytes,
        }
        arguments.additional_config = {"gpupool": pooled}
        self._engine = LLMEngine.from_engine_args(arguments)
        self._config = self._engine.vllm_config

    @property
    def gpu(self) -> str:
        """What the device is called."""
        return "host" if current_platform.is_cpu() else str(current_platform.get_device_name(0))

    @property
    def context_tokens_max(self) -> int:
        """Of a request."""
        return int(self._config.model_config.max_model_len)

    @property
    def batch_size_max(self) -> int:
        """Requests in a step."""
        return int(self._config.scheduler_config.max_num_seqs)

    @property
    def step_tokens_max(self) -> int:
        """Tokens in a step."""
        return int(self._config.scheduler_config.max_num_batched_tokens)

    @property
    def vocabulary(self) -> int:
        """Different tokens."""
        return int(self._config.model_config.get_vocab_size())

    def of_worker(self, ask: Callable[..., Any], *arguments: Any) -> Any:
        """What a function says that is called with the worker, and these arguments."""
        (answer,) = self._engine.collective_rpc(ask, args=arguments)
        return answer

    def add(self, name: str, prompt: list[int], answer_tokens: int) -> None:
        """As ``ask_exactly``."""
        ask_exactly(self._engine, name, prompt, answer_tokens)

    @property
    def busy(self) -> bool:
        """Whether requests are unfinished."""
        return bool(self._engine.has_unfinished_requests())

    def step(self) -> list[str]:
        """The requests that have a token more."""
        return [
            str(output.request_id)
            for output in self._engine.step()
            if len(output.outputs[0].token_ids) > 0
        ]


def ask_exactly(engine: Any, name: str, prompt: list[int], answer_tokens: int) -> None:
    """Ask for exactly so many tokens, which nobody turns into text."""
    sampling = SamplingParams(
        temperature=0,
        max_tokens=answer_tokens,
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.DELTA,
    )
    engine.add_request(name, {"prompt_token_ids": prompt}, sampling)


def kv_bytes_per_token(kv_cache_config: Any) -> int:
    """What a token takes, in each KV cache that a request has, at least one byte."""
    whole = sum(int(tensor.size) for tensor in kv_cache_config.kv_cache_tensors)
    block_bytes = whole / kv_cache_config.num_blocks
    groups = kv_cache_config.kv_cache_groups
    per_token: float = sum(block_bytes / int(group.kv_cache_spec.block_size) for group in groups)
    return max(1, round(per_token))


def _memory_bytes() -> int:
    if current_platform.is_cpu():
        return machine_memory_bytes()
    return int(torch.cuda.get_device_properties(0).total_memory)
