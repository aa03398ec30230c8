"""What becomes of the slots that an engine has for LoRA adapters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from vllm import SamplingParams
from vllm.lora.model_manager import LoRAModelManager
from vllm.lora.request import LoRARequest

from gpupool.adopt import adopt

SLOTS = ("lora_a_stacked", "lora_b_stacked")


class Exchanges:
    """Counts the adapters that go into a slot while a step of the engine runs."""

    def __init__(self, worker: Any) -> None:
        self.in_steps = 0
        self._stepping = False
        execute, activate = worker.execute_model, LoRAModelManager.activate_adapter

        def executed(scheduled: Any) -> Any:
            self._stepping = True
            try:
                return execute(scheduled)
            finally:
                self._stepping = False

        def activated(manager: Any, *arguments: Any, **more: Any) -> bool:
            changed = bool(activate(manager, *arguments, **more))
            self.in_steps += changed and self._stepping
            return changed

        worker.execute_model = executed
        LoRAModelManager.activate_adapter = activated


class Adoptions:
    """Adopts as a worker does, and notes how much was left outside."""

    def __init__(self) -> None:
        self.outside_bytes: list[int] = []

    def __call__(self, *arguments: Any, **more: Any) -> Any:
        adopted = adopt(*arguments, **more)
        self.outside_bytes.append(adopted.outside_bytes)
        return adopted


def slots_of(one: Any, model: Any) -> dict[str, int]:
    """How many slots an engine's layers have, and how many of them lie in its model's memory."""
    (ranges,) = one.apply_model(_ranges)
    homes = [(r.address, r.address + r.bytes) for r in model.regions("runtime")]
    inside = [any(low <= a and b <= high for low, high in homes) for a, b in ranges]
    return {"slots": len(inside), "in the pool": sum(inside)}


def _ranges(module: torch.nn.Module) -> list[tuple[int, int]]:
    return [
        (slot.data_ptr(), slot.data_ptr() + slot.nbytes)
        for child in module.modules()
        for name in SLOTS
        for slot in getattr(child, name, ())
    ]


def what_swaps_copy(one: Any, model: Any, adapters: list[Path]) -> dict[str, int]:
    """Bytes that an engine's swap-out copies: behind no step, one that exchanges adapters, and one
    that computes with an adapter that is there.
    """

    def copied(adapter: int | None) -> int:
        if adapter is None:
            with model.resident():
                pass
        else:
            lora = LoRARequest(f"adapter{adapter}", adapter + 1, str(adapters[adapter]))
            prompt, two = {"prompt_token_ids": [7, 8, 9]}, SamplingParams(max_tokens=2)
            one.add_request("slots", prompt, two, lora_request=lora)
            while one.has_unfinished_requests():
                one.step()
        model.swap_out()
        assert model.last_swap_out is not None
        return int(model.last_swap_out.copied_bytes)

    copied(0)
    return {"nothing": copied(None), "exchanged": copied(1), "the same": copied(1)}
