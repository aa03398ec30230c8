"""What is asked of the process with the engine, and what it tells: lines of JSON."""

from __future__ import annotations

from msgspec import Struct


class Job(Struct, frozen=True):
    """What to measure."""

    model: str
    device: str
    kv_cache_bytes: int
    page_bytes: int
    input_tokens: list[int] | None
    batch_sizes: list[int] | None
    prompt_tokens_max: int
    """Batches of more prompt tokens are left out."""
    runs: int
    steps: int
    options: list[str]
    """Of vLLM, as on its command line."""


class Cell(Struct, frozen=True):
    """A batch that is measured: so many prompts of that length."""

    input_tokens: int
    batch_size: int
    prefill_steps: int
    """As many steps the engine takes for the prompts."""
    answer_tokens: int
    """Of each request, so that all decode together for as many steps as are wanted."""


class LeftOut(Struct, frozen=True):
    """A batch that was not measured, and why."""

    input_tokens: int
    batch_size: int
    why: str


class Started(Struct, frozen=True, tag=True):
    """The engine is there."""

    gpu: str
    weights_bytes: int
    """And buffers: what a switch brings in."""
    kv_bytes_per_token: int
    context_tokens_max: int
    cells: list[Cell]
    left_out: list[LeftOut]


class Switched(Struct, frozen=True, tag=True):
    """The model left and came back."""

    run: int
    """0 is for warming up."""
    kept: int
    """Of four quarters of what can stay, so many stayed."""
    copied_bytes: int
    zeroed_bytes: int
    out_s: float
    in_s: float
    map_s: float
    """Of ``in_s``, as is what follows."""
    copy_s: float


class Timed(Struct, frozen=True, tag=True):
    """A batch ran once."""

    run: int
    cell: int
    prefill_s: float
    step_s: list[float]


class Refused(Struct, frozen=True, tag=True):
    """It cannot be done, for a reason in one sentence."""

    message: str


class Finished(Struct, frozen=True, tag=True):
    """All is measured."""


Message = Started | Switched | Timed | Refused | Finished
