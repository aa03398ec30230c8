"""``gpupool plan``: how many devices a market of models needs, without any device."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import msgspec

from gpupool.cli.numbers import ABOVE_ZERO, Number
from gpupool.errors import GpupoolError

if TYPE_CHECKING:
    from gpupool.plan.planner import Plan

_STRATEGIES = ("dedicated", "autoscaling", "fcfs", "aegaeon", "deadlines")


@click.command("plan")
@click.argument("market", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--strategy",
    "strategies",
    multiple=True,
    type=click.Choice(_STRATEGIES),
    help="May be given several times.  [default: all]",
)
@click.option("--ttft-s", type=ABOVE_ZERO, help="A goal, instead of the file's.")
@click.option("--tbt-s", type=ABOVE_ZERO, help="A goal, instead of the file's.")
@click.option(
    "--attainment",
    type=Number(0, 1, min_open=True),
    help="The share of tokens in time that is asked for, instead of the file's.",
)
@click.option(
    "--duration-s", type=ABOVE_ZERO, help="Of requests that are made up, instead of the file's."
)
@click.option("--json", "json_to", metavar="FILE", help="Write every figure here; -: print them.")
@click.option(
    "--plot",
    "plot_to",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Draw the GPUs of each strategy (png, svg, pdf).",
)
def plan_command(
    market: Path,
    strategies: tuple[str, ...],
    ttft_s: float | None,
    tbt_s: float | None,
    attainment: float | None,
    duration_s: float | None,
    json_to: str | None,
    plot_to: Path | None,
) -> None:
    """Find how many devices the models of MARKET need, by what shares them.

    MARKET is a TOML file (docs/plan.md says what it may have): models with sizes and rates or
    traces, pools of devices, and goals. Strategies: dedicated is a device for each model,
    autoscaling a device while a model has requests, fcfs switches models between requests, aegaeon
    and deadlines between tokens.
    """
    goals = {"ttft_s": ttft_s, "tbt_s": tbt_s, "attainment": attainment}
    try:
        found = _plan(market, strategies or _STRATEGIES, goals, duration_s)
        if plot_to is not None:
            from gpupool.plan.report import plot

            plot(found, plot_to)
        _show(found, json_to)
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is missing: install gpupool with its sim extra, gpupool[sim]"
        ) from None
    except (GpupoolError, OSError, ValueError) as error:
        raise click.ClickException(str(error)) from None


def _plan(
    path: Path,
    strategies: tuple[str, ...],
    goals: dict[str, float | None],
    duration_s: float | None,
) -> Plan:
    from gpupool.plan.market import changed, load_market
    from gpupool.plan.planner import plan

    market = changed(load_market(path), goals, duration_s)
    if not sys.stderr.isatty():
        return plan(market, strategies)
    try:
        return plan(market, strategies, _tell)
    finally:
        click.echo("\r\x1b[K", nl=False, err=True)


def _tell(pool: str, strategy: str, devices: int) -> None:
    click.echo(f"\r\x1b[K{pool}: {strategy}, devices: {devices}", nl=False, err=True)


def _show(found: Plan, json_to: str | None) -> None:
    from gpupool.plan.report import describe

    text = msgspec.json.format(msgspec.json.encode(found))
    if json_to == "-":
        click.echo(text)
        return
    if json_to is not None:
        Path(json_to).write_bytes(text + b"\n")
    click.echo(describe(found))
