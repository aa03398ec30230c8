"""Which batches are measured. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpupool.errors import UsageError
from gpupool.profile.messages import Cell, LeftOut
from gpupool.simulate.profiles import POINTS_MIN

INPUT_TOKENS = (16, 64, 256, 1024, 4096, 16384)
BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Limits:
    """What an engine can take."""

    context_tokens_max: int
    """Of a request, with its answer."""
    batch_size_max: int
    step_tokens_max: int
    """Of prompts in one step; more take several."""
    kv_blocks: int
    block_tokens: tuple[int, ...]
    """Of a block, for each KV cache that a request has."""


def choose(
    input_tokens: Sequence[int] | None,
    batch_sizes: Sequence[int] | None,
    limits: Limits,
    *,
    steps: int,
    prompt_tokens_max: int,
) -> tuple[list[Cell], list[LeftOut]]:
    """Every length with every batch size, as far as it fits, the smallest first.

    Lengths that no request can have are left out of the default, and refused where they are asked
    for. Raises UsageError where too little is left to be fitted.
    """
    room = limits.context_tokens_max - answer_tokens(1, steps)
    if input_tokens is None:
        lengths = [length for length in INPUT_TOKENS if length <= room]
    else:
        lengths = sorted(set(input_tokens))
        if long := [length for length in lengths if length > room]:
            raise UsageError(
                f"a prompt of {long[0]} tokens and {limits.context_tokens_max - room} of an answer"
                f" are more than the engine's context of {limits.context_tokens_max}: give"
                " --input-tokens that are shorter"
            )
    cells: list[Cell] = []
    left_out: list[LeftOut] = []
    for length in lengths:
        for batch in sorted(set(batch_sizes or BATCH_SIZES)):
            whole = length * batch
            prefill_steps = -(-whole // limits.step_tokens_max)
            cell = Cell(length, batch, prefill_steps, answer_tokens(prefill_steps, steps))
            if why := _misfit(cell, limits, prompt_tokens_max):
                left_out.append(LeftOut(length, batch, why))
            else:
                cells.append(cell)
    _check(cells, left_out)
    return cells, left_out


def answer_tokens(prefill_steps: int, steps: int) -> int:
    """So long an answer that all requests of a batch decode together for so many steps.

    The first to be prefilled may be ahead of the last by a token for each step between.
    """
    return 1 + steps + prefill_steps


def _misfit(cell: Cell, limits: Limits, prompt_tokens_max: int) -> str:
    whole = cell.input_tokens + cell.answer_tokens
    blocks = sum(-(-whole // tokens) for tokens in limits.block_tokens)
    if cell.batch_size > limits.batch_size_max:
        return f"the engine runs {limits.batch_size_max} requests at most"
    if cell.input_tokens * cell.batch_size > prompt_tokens_max:
        return f"over {prompt_tokens_max} prompt tokens"
    if whole > limits.context_tokens_max:
        return f"over a context of {limits.context_tokens_max} tokens"
    if blocks * cell.batch_size > limits.kv_blocks:
        return "over the KV cache"
    return ""


def _check(cells: list[Cell], left_out: list[LeftOut]) -> None:
    single = [cell for cell in cells if cell.prefill_steps == 1]
    lengths = {cell.input_tokens for cell in single}
    batches = {cell.batch_size for cell in single}
    if len(single) >= POINTS_MIN and min(len(lengths), len(batches)) >= 2:
        return
    why = f" ({left_out[0].why})" if left_out else ""
    raise UsageError(
        f"times cannot be fitted to {len(single)} batches that are prefilled in one step: at least"
        f" {POINTS_MIN} are needed, of two lengths and two batch sizes; {len(left_out)} were left"
        f" out{why}: give more --input-tokens and --batch-sizes, or a larger --kv-cache"
    )
