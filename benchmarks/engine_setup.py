"""What made-up engines that share a pool are given, the same for all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click

from benchmarks.engine_process import EngineSpec
from demo.checkpoints import CheckpointSpec
from demo.large_checkpoints import large_spec, parameters_of, write_large

MIB = 1 << 20
#: Where rounding up and buffers beside the weights lie; what stays warm there is as little.
PAGES_OVER = 4
#: Of the daemon: who is asked to leave does so at the end of a step, or soon where it has none.
NO_TURNS = ("--turn-ms", "0", "--min-tokens", "0")
#: Of an engine's facts, what every report has.
VERSIONS = ("device_name", "vllm", "model_runner", "torch", "python")
VALUE_BYTES = {"host": 4, "cuda": 2}  # float32 and bfloat16
KV_MIB = {"host": 64, "cuda": 1024}
PAGE_MIB = {"host": 2, "cuda": 32}


def _with_folder(_: click.Context, __: click.Parameter, path: str | None) -> str | None:
    """What took minutes is not lost for want of a folder."""
    if path not in (None, "-"):
        Path(str(path)).parent.mkdir(parents=True, exist_ok=True)
    return path


_OPTIONS = (
    click.option("--device", required=True, type=click.Choice(["host", "cuda"])),
    click.option(
        "--parameters",
        default=3e7,
        show_default=True,
        type=click.FloatRange(2e6, 2e10),
        help="Of the model, about.",
    ),
    click.option(
        "--graphs/--eager",
        default=None,
        help="CUDA graphs of whole decode steps, or none.  [default: graphs on cuda]",
    ),
    click.option(
        "--inductor",
        is_flag=True,
        help="What vLLM does by default, its compiler and its graphs: takes longer to start.",
    ),
    click.option(
        "--runner",
        type=click.Choice(["v1", "v2"]),
        help="Which of vLLM's model runners; v2 is slow on host, where its kernels are interpreted."
        "  [default: vLLM's own choice]",
    ),
    click.option(
        "--kv-mib",
        type=click.IntRange(1),
        help="Of each engine's KV cache.  [default: 64 on host, 1024 on cuda]",
    ),
    click.option(
        "--cudagraph-mib",
        default=0,
        type=click.IntRange(0),
        help="Of the pool, for each engine's CUDA graphs.  [default: 0, their memory is outside]",
    ),
    click.option(
        "--page-mib", type=click.IntRange(1), help="Of a page.  [default: 2 on host, 32 on cuda]"
    ),
    click.option(
        "--folder",
        type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
        help="For checkpoints and logs, which stay there.  [default: one that goes]",
    ),
    click.option(
        "--json",
        "json_path",
        callback=_with_folder,
        help="Write the figures to a file, or - for the terminal.",
    ),
)


def engine_options(command: Any) -> Any:
    """Options that all programs with such engines have."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class Setup:
    """A model's shape, an engine of it, and a pool that holds one."""

    shape: CheckpointSpec
    spec: EngineSpec
    page_bytes: int

    @property
    def weights_bytes(self) -> int:
        """Of an engine, on its device."""
        return parameters_of(self.shape) * VALUE_BYTES[self.spec.device]

    @property
    def budget_bytes(self) -> int:
        """Room for one engine, and for no two."""
        of_one = self.weights_bytes + self.spec.kv_cache_bytes + self.spec.cudagraph_bytes
        pages = -(-of_one // self.page_bytes)
        return (pages + PAGES_OVER) * self.page_bytes

    def written(self, folder: Path, seed: int) -> EngineSpec:
        """A stock engine of a checkpoint with that seed, which is written if it is not there."""
        path = folder / f"llama-{parameters_of(self.shape)}-{seed}"
        if not (path / "config.json").exists():
            write_large(path, replace(self.shape, seed=seed))
        return replace(self.spec, model=str(path))

    def facts(self) -> dict[str, Any]:
        """What was set up."""
        return {
            "device": self.spec.device,
            "steps": self.spec.steps,
            "parameters": parameters_of(self.shape),
            "weights_bytes": self.weights_bytes,
            "kv_cache_bytes": self.spec.kv_cache_bytes,
            "cudagraph_bytes": self.spec.cudagraph_bytes,
            "budget_bytes": self.budget_bytes,
            "page_bytes": self.page_bytes,
        }

    def check_holds_one(self, footprints: list[int]) -> None:
        """Raise RuntimeError unless the pool holds any one of them and no two."""
        if max(footprints) > self.budget_bytes or 2 * min(footprints) <= self.budget_bytes:
            raise RuntimeError(
                f"a pool of {self.budget_bytes} bytes does not hold exactly one engine of "
                f"{footprints} bytes: take other --parameters or --kv-mib"
            )


def set_up(given: dict[str, Any], **more: Any) -> Setup:
    """By the options of ``engine_options``; ``more`` is of each engine. Raises UsageError."""
    device, graphs, inductor = given["device"], given["graphs"], given["inductor"]
    if device == "host" and (graphs or inductor):
        raise click.UsageError("--graphs and --inductor are for --device cuda")
    cudagraph_bytes = given["cudagraph_mib"] * MIB
    if cudagraph_bytes and (device == "host" or graphs is False):
        raise click.UsageError("--cudagraph-mib is for engines with CUDA graphs")
    if inductor and graphs is False:
        raise click.UsageError("--eager and --inductor exclude each other")
    steps = "inductor" if inductor else "graphs"
    spec = EngineSpec(
        model="",
        device=device,
        kv_cache_bytes=(given["kv_mib"] or KV_MIB[device]) * MIB,
        cudagraph_bytes=cudagraph_bytes,
        steps=steps if device == "cuda" and graphs is not False else "eager",
        **more,
    )
    page_mib = given["page_mib"] or PAGE_MIB[device]
    return Setup(large_spec(0, given["parameters"]), spec, page_mib * MIB)
