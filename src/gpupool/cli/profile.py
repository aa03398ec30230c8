"""``gpupool profile``: measures a model on the machine at hand, for the simulator to go by."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from gpupool.errors import GpupoolError, UsageError

if TYPE_CHECKING:
    from gpupool.profile.measured import Measured
    from gpupool.profile.messages import Job

_DEVICE = re.compile(r"host|cuda(:[0-9]{1,3})?")


def _size(_: click.Context, parameter: click.Parameter, value: str) -> int:
    """Bytes, with a unit as in pool.yaml."""
    from gpupool.serve.sizes import parse_size

    try:
        return parse_size(int(value) if value.isdecimal() else value)
    except ValueError as error:
        raise click.BadParameter(f"{error}.", param=parameter) from None


def _counts(_: click.Context, parameter: click.Parameter, value: str | None) -> list[int] | None:
    """Whole numbers above zero, with commas between."""
    if value is None:
        return None
    words = [word.strip() for word in value.split(",")]
    if not all(re.fullmatch(r"[1-9][0-9]{0,8}", word) for word in words):
        raise click.BadParameter(
            f"{value!r} is not a list of whole numbers above 0, as 16,64,256 is.", param=parameter
        )
    return [int(word) for word in words]


def _device(_: click.Context, parameter: click.Parameter, value: str) -> str:
    if not _DEVICE.fullmatch(value):
        raise click.BadParameter(f"{value!r} is not host, cuda or cuda:<ordinal>.", param=parameter)
    return value


@click.command("profile")
@click.argument("model")
@click.argument("options", nargs=-1, type=click.UNPROCESSED, metavar="[-- VLLM OPTION...]")
@click.option(
    "--device",
    default="cuda",
    show_default=True,
    callback=_device,
    help="cuda, cuda:<ordinal>, or host: ordinary memory and vLLM's CPU build.",
)
@click.option("--name", help="What the profile calls the model.  [default: the last of its path]")
@click.option(
    "--gpu", metavar="LABEL", help="What the profile calls the GPU.  [default: its own name]"
)
@click.option(
    "--input-tokens",
    callback=_counts,
    metavar="N,N,...",
    help="Lengths of prompts.  [default: 16,64,256,1024,4096,16384, up to the model's context]",
)
@click.option(
    "--batch-sizes",
    callback=_counts,
    metavar="N,N,...",
    help="Requests at once.  [default: 1,2,4,8,16,32,64,128, up to what the engine runs]",
)
@click.option(
    "--prompt-tokens-max",
    default=16384,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Leave out batches of more prompt tokens together.",
)
@click.option(
    "--kv-cache",
    default="4GiB",
    show_default=True,
    callback=_size,
    metavar="SIZE",
    help="As in pool.yaml. Batches that it cannot hold are left out; all of it is mapped and "
    "zeroed at each switch.",
)
@click.option(
    "--page",
    default="64MiB",
    show_default=True,
    callback=_size,
    metavar="SIZE",
    help="Size of the pool's pages, as in pool.yaml.",
)
@click.option(
    "--runs",
    default=5,
    show_default=True,
    type=click.IntRange(1, 1000),
    metavar="N",
    help="Measure each thing so often; one more round warms up.",
)
@click.option(
    "--steps",
    default=16,
    show_default=True,
    type=click.IntRange(1, 10_000),
    metavar="N",
    help="Decode steps of a batch in each run.",
)
@click.option(
    "--output",
    default="profiles.csv",
    show_default=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="A file for --profiles of 'gpupool simulate'; what it has of other models and GPUs stays.",
)
@click.option("--json", "json_to", metavar="FILE", help="Write every figure here; -: print them.")
def profile_command(
    model: str,
    options: tuple[str, ...],
    device: str,
    name: str | None,
    gpu: str | None,
    input_tokens: list[int] | None,
    batch_sizes: list[int] | None,
    prompt_tokens_max: int,
    kv_cache: int,
    page: int,
    runs: int,
    steps: int,
    output: Path,
    json_to: str | None,
) -> None:
    """Measure MODEL on this machine: prefills, decode steps and switches.

    Starts one vLLM engine in a pool that is its own, runs batches of made-up prompts, swaps the
    model out and in, and writes what it found to a file of profiles. With that the model need not
    be known otherwise:

    \b
      gpupool profile /models/small --gpu mine
      gpupool simulate --profiles profiles.csv --gpu mine --models 40

    MODEL is a checkpoint's directory or a hub id. Options of vLLM's own come last, after '--':

    \b
      gpupool profile org/name -- --dtype bfloat16 --max-model-len 8192

    While it runs, nothing else should use the device.
    """
    from gpupool.profile.messages import Job

    job = Job(
        model=model,
        device=device,
        kv_cache_bytes=int(kv_cache),
        page_bytes=int(page),
        input_tokens=input_tokens,
        batch_sizes=batch_sizes,
        prompt_tokens_max=prompt_tokens_max,
        runs=runs,
        steps=steps,
        options=list(options),
    )
    try:
        found = _measure(job, name or Path(model).expanduser().absolute().name, gpu, output)
        _show(found, output, json_to)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is missing: install gpupool with its sim and vllm extras,"
            " gpupool[sim,vllm]"
        ) from None
    except (GpupoolError, OSError, UnicodeDecodeError) as error:
        raise click.ClickException(str(error)) from None


def _measure(job: Job, name: str, gpu: str | None, output: Path) -> Measured:
    from gpupool.profile import child
    from gpupool.profile.measured import put_together
    from gpupool.profile.messages import Started, Switched, Timed
    from gpupool.serve import logs
    from gpupool.simulate.profile_file import add_to_profiles, read_profiles

    # What would fail at the end fails before an engine has started.
    child.check(job)
    if output.exists():
        read_profiles(output)
    elif not output.absolute().parent.is_dir():
        raise UsageError(f"{output.absolute().parent} is no folder: --output needs one")
    for module in ("numpy", "vllm"):
        if importlib.util.find_spec(module) is None:
            raise ModuleNotFoundError(name=module)
    started: Started | None = None
    switched: list[Switched] = []
    timed: list[Timed] = []
    with tempfile.TemporaryDirectory(prefix="gpupool-profile-") as folder:
        log_path = Path(folder) / "engine.log"
        click.echo(f"{name}: the engine starts", err=True)
        try:
            with click.progressbar(length=1, label=f"measuring {name}", file=sys.stderr) as bar:
                for message in child.messages(job, log_path):
                    if isinstance(message, Started):
                        started = message
                        bar.length = (job.runs + 1) * len(message.cells)
                    elif isinstance(message, Switched):
                        switched.append(message)
                    elif isinstance(message, Timed):
                        timed.append(message)
                        bar.update(1)
        except child.EngineEndedError as error:
            kept = logs.save(log_path, f"profile-{name}")
            raise child.EngineEndedError(f"{error} (its log is {kept})") from None
    assert started is not None
    found = put_together(name, gpu or started.gpu, started, switched, timed)
    add_to_profiles(output, found.gpu, found.checkpoint, found.points)
    return found


def _show(found: Measured, output: Path, json_to: str | None) -> None:
    from gpupool.profile.report import describe, figures

    text = msgspec.json.format(msgspec.json.encode(figures(found)))
    if json_to == "-":
        click.echo(text)
    else:
        if json_to is not None:
            Path(json_to).write_bytes(text + b"\n")
        click.echo(describe(found))
    click.echo(f"written to {os.fspath(output)}", err=True)
