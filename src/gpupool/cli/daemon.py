"""Commands of the pool daemon: to run it, to ask it, and to wish something of it."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

import click
import msgspec

from gpupool.cli.numbers import Number
from gpupool.errors import GpupoolError

_DURATION_MAX = 1e6  # ms or s


def _duration(_: click.Context, parameter: click.Parameter, value: float | None) -> float | None:
    """Refuse what no clock can wait for, infinity among them."""
    if value is not None and not value <= _DURATION_MAX:
        raise click.BadParameter(f"{value:g} is not at most {_DURATION_MAX:g}.", param=parameter)
    return value


_SOCKET = click.option(
    "--socket",
    "socket_path",
    type=click.Path(path_type=Path, dir_okay=False),
    required=True,
    metavar="PATH",
    help="The daemon's Unix socket, in a directory that only this user can enter (mode 0700).",
)


@click.command()
@_SOCKET
@click.option(
    "--device", required=True, help="cuda, cuda:<ordinal>, or host: ordinary memory, for tests."
)
@click.option(
    "--budget-bytes",
    required=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Device memory that the models share. On a GPU all of it is taken at the start.",
)
@click.option(
    "--page-bytes",
    default=64 << 20,
    show_default=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Size of a page: a power of two and a multiple of the device's granularity.",
)
@click.option(
    "--host-budget-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Host memory for images and saved KV.  [default: the machine's memory]",
)
@click.option(
    "--parking-folder",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="PATH",
    help="Where images go that are used least recently, when host memory runs short: a private "
    "folder on a fast disk.  [default: nowhere]",
)
@click.option(
    "--parking-limit-bytes",
    type=click.IntRange(min=1),
    metavar="N",
    help="What all files there may have together.  [default: what the disk has]",
)
@click.option(
    "--policy",
    default="turns",
    show_default=True,
    type=click.Choice(("turns", "deadlines", "fcfs")),
    help="Who runs next: in turns of one length, by when tokens are due, or whole requests in the "
    "order of their coming. The latter two go by what engines and the router tell of requests.",
)
@click.option(
    "--ttft-ms",
    default=10_000.0,
    show_default=True,
    type=Number(min=0, min_open=True),
    callback=_duration,
    metavar="MS",
    help="With deadlines: when the first token of a request is due after it came.",
)
@click.option(
    "--tbt-ms",
    default=100.0,
    show_default=True,
    type=Number(min=0, min_open=True),
    callback=_duration,
    metavar="MS",
    help="With deadlines: how long after that each further token is due.",
)
@click.option(
    "--patience-ms",
    type=Number(min=0, min_open=True),
    callback=_duration,
    metavar="MS",
    help="A request whose model had no turn for so long is given up: the router answers it with "
    "503.  [default: never]",
)
@click.option(
    "--record",
    "record_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="Write what a policy of requests decides to this file, a line each, for 'gpupool replay'.",
)
@click.option(
    "--turn-ms",
    default=200.0,
    show_default=True,
    type=Number(min=0),
    callback=_duration,
    metavar="MS",
    help="How long a busy model keeps its memory while others wait. With deadlines, of work that "
    "nobody announced, how soon it is due.",
)
@click.option(
    "--min-tokens",
    default=8,
    show_default=True,
    type=click.IntRange(min=0),
    metavar="N",
    help="Steps that a busy model has in a turn, each a token per request, however short the turn.",
)
@click.option(
    "--revoke-timeout-s",
    default=30.0,
    show_default=True,
    type=Number(min=0, min_open=True),
    callback=_duration,
    metavar="S",
    help="A worker that keeps revoked memory for longer is killed, but for what it said to take "
    "longer, as its start does; longer than any one step.",
)
def daemon(
    socket_path: Path,
    device: str,
    budget_bytes: int,
    page_bytes: int,
    host_budget_bytes: int | None,
    parking_folder: Path | None,
    parking_limit_bytes: int | None,
    policy: str,
    ttft_ms: float,
    tbt_ms: float,
    patience_ms: float | None,
    record_path: Path | None,
    turn_ms: float,
    min_tokens: int,
    revoke_timeout_s: float,
) -> None:
    """Run the pool daemon until SIGTERM or Ctrl-C.

    It owns the pages and the host memory, grants and revokes leases, and moves no bytes itself.
    Prints one line when it is ready, and removes its socket when it ends. One that is killed
    takes nothing along: its workers are told at once, and the next daemon replaces the socket. On
    a GPU the next one has room for its pages once those workers have ended.
    """
    from gpupool.daemon.live_policy import LivePolicy, Recording
    from gpupool.daemon.server import Server
    from gpupool.host_budget.place import machine_memory_bytes, parking_place
    from gpupool.schedule.work import Goals

    if parking_folder is None and parking_limit_bytes is not None:
        raise click.UsageError("--parking-limit-bytes needs a --parking-folder")
    parking = None
    if parking_folder is not None:
        try:
            parking = parking_place(parking_folder, parking_limit_bytes)
        except (OSError, GpupoolError) as error:
            raise click.ClickException(f"nothing can be parked: {error}") from None
    for option, given in (("--record", record_path), ("--patience-ms", patience_ms)):
        if given is not None and policy == "turns":
            raise click.UsageError(f"{option} needs a policy of requests: deadlines or fcfs")
    recording = None
    if record_path is not None:
        try:
            recording = Recording(record_path, policy)
        except OSError as error:
            raise click.ClickException(f"{record_path} cannot be written: {error}") from None
    logging.basicConfig(level=logging.INFO, format="%(message)s")  # on standard error
    try:
        server = Server(
            socket_path,
            device=device,
            budget_bytes=budget_bytes,
            page_bytes=page_bytes,
            host_budget_bytes=host_budget_bytes or machine_memory_bytes(),
            turn_s=turn_ms / 1000,
            min_tokens=min_tokens,
            revoke_timeout_s=revoke_timeout_s,
            parking=parking,
            policy=LivePolicy(
                policy,
                Goals(ttft_ms / 1000, tbt_ms / 1000),
                None if patience_ms is None else patience_ms / 1000,
                None if recording is None else recording.write,
            ),
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise click.ClickException(f"cannot listen on {socket_path}: {reason}") from None
    except (GpupoolError, RuntimeError) as error:
        raise click.ClickException(str(error)) from None
    server.stop_on_signals()
    click.echo(f"gpupool daemon ready: {socket_path}")
    sys.stdout.flush()
    try:
        server.run()
    finally:
        if recording is not None:
            recording.close()


@click.command()
@_SOCKET
@click.option("--json", "as_json", is_flag=True, help="Print everything, for machines.")
@click.option("--why", is_flag=True, help="Show what its policy decided last, and why.")
def status(socket_path: Path, as_json: bool, why: bool) -> None:
    """Show what the pool daemon knows.

    Its pages, its models with where their memory is, and whom it turned away and why. With --why,
    whose turn a policy of requests said it was, newest first, and what it went by.
    """
    from gpupool.daemon import queries
    from gpupool.daemon.report import describe, describe_why

    try:
        if why:
            reasons = queries.query_why(socket_path)
            text = msgspec.json.encode(reasons) if as_json else describe_why(reasons)
        else:
            found = queries.query_status(socket_path)
            text = msgspec.json.encode(found) if as_json else describe(found)
    except GpupoolError as error:
        raise click.ClickException(str(error)) from None
    click.echo(text)


@click.command()
@_SOCKET
@click.argument("model")
@click.option(
    "--share",
    default=1.0,
    show_default=True,
    type=Number(0, 1, min_open=True),
    help="Of the time, how much to copy for: the rest is left to others on the link.",
)
def prefetch(socket_path: Path, model: str, share: float) -> None:
    """Bring MODEL into memory before it is used.

    It comes after all who wait for memory, and only models without unfinished requests make room
    for it. Returns at once; 'gpupool status' shows where it is.
    """
    from gpupool.daemon import queries

    try:
        queries.prefetch(socket_path, model, share)
    except GpupoolError as error:
        raise click.ClickException(str(error)) from None
