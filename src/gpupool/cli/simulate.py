"""``gpupool simulate``: what a pool of devices would do with a trace, without any device."""

from __future__ import annotations

import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import msgspec
from click.core import ParameterSource

from gpupool.cli.numbers import ABOVE_ZERO, Number
from gpupool.errors import GpupoolError, UsageError

if TYPE_CHECKING:
    from gpupool.simulate.result import Result

_LONG_REQUESTS = 5000


@click.command("simulate")
@click.argument(
    "trace", required=False, type=click.Path(path_type=Path, dir_okay=False, exists=True)
)
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice(["autoscaling", "fcfs", "aegaeon", "deadlines"]),
    help="May be given several times, to compare.  [default: deadlines]",
)
@click.option("--devices", default=16, show_default=True, type=click.IntRange(1, 100_000))
@click.option(
    "--prefill-devices",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    help="Under aegaeon so many prefill only, and the others decode only; 0: all do both.",
)
@click.option(
    "--start-s",
    default=30.0,
    show_default=True,
    type=Number(0, 1e6),
    help="Under autoscaling an engine takes requests so long after its start, load included,",
)
@click.option(
    "--idle-s",
    default=60.0,
    show_default=True,
    type=Number(0, 1e6),
    help="gives its device back after so long without requests,",
)
@click.option(
    "--requests-max",
    default=32,
    show_default=True,
    type=click.IntRange(1, 100_000),
    help="and with so many on each device of a model it gets another.",
)
@click.option(
    "--groups",
    default=1,
    show_default=True,
    type=click.IntRange(1),
    help="Deal devices and models out to so many groups; many devices are simulated faster so.",
)
@click.option("--gpu", default="H100", show_default=True, help="As profiles name it.")
@click.option(
    "--gpu-gb", default=80.0, show_default=True, type=ABOVE_ZERO, help="Memory of a device."
)
@click.option(
    "--link-gbps",
    default=16.0,
    show_default=True,
    type=ABOVE_ZERO,
    help="GB/s that a copy from host to device reaches, for models whose switches have not been "
    "measured.",
)
@click.option(
    "--host-gb",
    type=ABOVE_ZERO,
    help="Host memory for weights, of all devices.  [default: enough]",
)
@click.option("--disk-gbps", default=3.0, show_default=True, type=ABOVE_ZERO)
@click.option(
    "--profiles",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="What was measured, a CSV file as 'gpupool profile' writes it.  [default: fits that come "
    "with gpupool]",
)
@click.option(
    "--assumptions",
    default="honest",
    show_default=True,
    type=click.Choice(["honest", "aegaeon-artifact"]),
    help="aegaeon-artifact: those of the simulator published with the paper, slips included.",
)
@click.option("--ttft-s", default=10.0, show_default=True, type=ABOVE_ZERO, help="A goal.")
@click.option("--tbt-s", default=0.1, show_default=True, type=ABOVE_ZERO, help="A goal.")
@click.option(
    "--goals",
    "goals_from",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="Goals and weights by class of models, a TOML file (docs/simulate.md).",
)
@click.option(
    "--patience-s",
    type=ABOVE_ZERO,
    help="Requests whose prefill has not begun after so long are given up.  [default: never]",
)
@click.option("--seed", default=0, show_default=True, help="The same seed gives the same result.")
@click.option("--models", type=click.IntRange(1, 100_000), help="Without TRACE: so many models,")
@click.option("--rate", default=0.1, show_default=True, type=ABOVE_ZERO, help="requests/s of each,")
@click.option("--duration-s", default=120.0, show_default=True, type=ABOVE_ZERO, help="so long,")
@click.option(
    "--cv",
    default=1.0,
    show_default=True,
    type=Number(min=0, min_open=True, max=100),
    help="coefficient of variation of the gaps (1: Poisson, more: bursts),",
)
@click.option(
    "--zipf",
    default=0.0,
    show_default=True,
    type=Number(0, 10),
    help="popularity of the k-th model in proportion to 1/k^ZIPF.",
)
@click.option("--json", "json_to", metavar="FILE", help="Write every figure here; -: print them.")
@click.option(
    "--plot",
    "plot_to",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw times to first token (png, svg, pdf).",
)
def simulate_command(trace: Path | None, policies: tuple[str, ...], **options: Any) -> None:
    """Simulate a pool of devices that serves TRACE, or a trace that is made up.

    TRACE is a CSV file with the columns time, model, input and output (tokens). Policies:
    autoscaling gives a model a device while it has requests, fcfs runs whole requests as
    ServerlessLLM does, aegaeon is the paper's token-level scheduling, deadlines is gpupool's own.
    Attainment is the share of tokens that meet the goals.
    """
    try:
        results = _results(trace, policies or ("deadlines",), options)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is missing: install gpupool with its sim extra, gpupool[sim]"
        ) from None
    except (GpupoolError, OSError, UnicodeDecodeError) as error:
        raise click.ClickException(str(error)) from None
    _show(results, options["json_to"], options["plot_to"])


def _results(
    trace: Path | None, policies: tuple[str, ...], options: dict[str, Any]
) -> list[Result]:
    from gpupool.schedule.autoscaling import Scaling
    from gpupool.schedule.work import Goals
    from gpupool.simulate.assumptions import ASSUMPTIONS, with_patience
    from gpupool.simulate.classes import load_classes
    from gpupool.simulate.profile_file import NOTHING_MEASURED, read_profiles
    from gpupool.simulate.simulation import Hardware, simulate
    from gpupool.simulate.synthetic import synthetic_trace
    from gpupool.simulate.trace import read_trace

    if (trace is None) == (options["models"] is None):
        raise UsageError("give either TRACE or --models")
    if trace is not None:
        _refuse_beside_a_trace()
        arrivals = read_trace(trace)
    else:
        arrivals = synthetic_trace(
            models=options["models"],
            rate_per_s=options["rate"],
            duration_s=options["duration_s"],
            cv=options["cv"],
            zipf=options["zipf"],
            seed=options["seed"],
        )
    goals_from = options["goals_from"]
    goals = Goals(options["ttft_s"], options["tbt_s"])
    classes = [] if goals_from is None else load_classes(goals_from, goals)
    profiles = options["profiles"]
    measured = NOTHING_MEASURED if profiles is None else read_profiles(profiles)
    host_gb = options["host_gb"]
    hardware = Hardware(
        devices=options["devices"],
        prefill_devices=options["prefill_devices"],
        gpu=options["gpu"],
        device_bytes=options["gpu_gb"] * 1e9,
        link_bytes_per_s=options["link_gbps"] * 1e9,
        host_bytes=None if host_gb is None else host_gb * 1e9,
        disk_bytes_per_s=options["disk_gbps"] * 1e9,
        groups=options["groups"],
    )
    results: list[Result] = []
    for policy in policies:
        with click.progressbar(
            length=len(arrivals),
            label=policy,
            file=sys.stderr,
            hidden=len(arrivals) < _LONG_REQUESTS,
        ) as bar:
            results.append(
                simulate(
                    arrivals,
                    policy,
                    hardware,
                    assumptions=with_patience(
                        ASSUMPTIONS[options["assumptions"]], options["patience_s"]
                    ),
                    scaling=Scaling(options["start_s"], options["idle_s"], options["requests_max"]),
                    classes=classes,
                    fits=measured.fits,
                    checkpoints=measured.checkpoints_of(arrivals, hardware.gpu),
                    ttft_s=options["ttft_s"],
                    tbt_s=options["tbt_s"],
                    seed=options["seed"],
                    progress=partial(_advance, bar),
                )
            )
    return results


def _refuse_beside_a_trace() -> None:
    context = click.get_current_context()
    for name in ("rate", "duration_s", "cv", "zipf"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise UsageError(
                f"--{name.replace('_', '-')} is of traces that are made up: leave it out, or give"
                " --models rather than TRACE"
            )


def _advance(bar: Any, done: int) -> None:
    bar.update(done - bar.pos)


def _show(results: list[Result], json_to: str | None, plot_to: Path | None) -> None:
    from gpupool.simulate.report import describe, describe_fits, plot

    figures = [{k: v for k, v in asdict(result).items() if k != "ttft_s"} for result in results]
    if results[0].fits:
        click.echo(describe_fits(results[0]), err=True)
    text = msgspec.json.format(msgspec.json.encode(figures if len(figures) > 1 else figures[0]))
    try:
        if plot_to is not None:
            plot(results, plot_to)
        if json_to == "-":
            click.echo(text)
            return
        if json_to is not None:
            Path(json_to).write_bytes(text + b"\n")
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is missing: install gpupool with its sim extra, gpupool[sim]"
        ) from None
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(describe(results))
