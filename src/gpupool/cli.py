"""The ``gpupool`` command."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
import msgspec

from gpupool import __version__
from gpupool.cli_images import images
from gpupool.cli_plan import plan_command
from gpupool.cli_simulate import simulate_command
from gpupool.errors import GpupoolError

_DURATION_MAX = 1e6  # ms or s


def _duration(_: click.Context, parameter: click.Parameter, value: float) -> float:
    """Refuse what no clock can wait for, infinity and NaN among them."""
    if not value <= _DURATION_MAX:
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


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="gpupool")
def main() -> None:
    """Many language models on few GPUs.

    Engines are started once and stay alive; their weights and KV caches move in and out of a
    shared pool of device memory. 'gpupool serve pool.yaml' puts one OpenAI-compatible address in
    front of many vLLM engines; 'gpupool daemon' is the pool alone, for engines you start yourself
    with --worker-cls gpupool.vllm.Worker.
    """


@main.command()
@_SOCKET
@click.option(
    "--device", required=True, help="cuda, cuda:<ordinal>, or host: ordinary memory, for tests."
)
@click.option(
    "--budget-bytes",
    required=True,
    type=click.IntRange(min=1),
    metavar="N",
    help="Device memory that the models share.",
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
    "--turn-ms",
    default=200.0,
    show_default=True,
    type=click.FloatRange(min=0),
    callback=_duration,
    metavar="MS",
    help="How long a busy model keeps its memory while others wait.",
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
    type=click.FloatRange(min=0, min_open=True),
    callback=_duration,
    metavar="S",
    help="A worker that keeps revoked memory for longer is killed; longer than any one step.",
)
def daemon(
    socket_path: Path,
    device: str,
    budget_bytes: int,
    page_bytes: int,
    host_budget_bytes: int | None,
    parking_folder: Path | None,
    parking_limit_bytes: int | None,
    turn_ms: float,
    min_tokens: int,
    revoke_timeout_s: float,
) -> None:
    """Run the pool daemon until SIGTERM or Ctrl-C.

    It owns the pages and the host memory, grants and revokes leases, and moves no bytes itself.
    Prints one line when it is ready, and removes its socket when it ends. One that is killed
    takes nothing along: its workers are told at once, and the next daemon replaces the socket.
    """
    from gpupool.daemon.parking_place import parking_place
    from gpupool.daemon.server import Server

    if parking_folder is None and parking_limit_bytes is not None:
        raise click.UsageError("--parking-limit-bytes needs a --parking-folder")
    parking = None
    if parking_folder is not None:
        try:
            parking = parking_place(parking_folder, parking_limit_bytes)
        except (OSError, GpupoolError) as error:
            raise click.ClickException(f"nothing can be parked: {error}") from None
    try:
        server = Server(
            socket_path,
            device=device,
            budget_bytes=budget_bytes,
            page_bytes=page_bytes,
            host_budget_bytes=host_budget_bytes or _machine_memory_bytes(),
            turn_s=turn_ms / 1000,
            min_tokens=min_tokens,
            revoke_timeout_s=revoke_timeout_s,
            parking=parking,
        )
    except OSError as error:
        reason = error.strerror or str(error)
        raise click.ClickException(f"cannot listen on {socket_path}: {reason}") from None
    except (GpupoolError, RuntimeError) as error:
        raise click.ClickException(str(error)) from None
    server.stop_on_signals()
    click.echo(f"gpupool daemon ready: {socket_path}")
    sys.stdout.flush()
    server.run()


@main.command()
@_SOCKET
@click.option("--json", "as_json", is_flag=True, help="Print everything, for machines.")
def status(socket_path: Path, as_json: bool) -> None:
    """Show what the pool daemon knows.

    Its pages, its models with where their memory is, and whom it turned away and why.
    """
    from gpupool.daemon.client import query_status
    from gpupool.daemon.report import describe

    try:
        found = query_status(socket_path)
    except GpupoolError as error:
        raise click.ClickException(str(error)) from None
    click.echo(msgspec.json.encode(found) if as_json else describe(found))


@main.command()
@_SOCKET
@click.argument("model")
@click.option(
    "--share",
    default=1.0,
    show_default=True,
    type=click.FloatRange(0, 1, min_open=True),
    help="Of the time, how much to copy for: the rest is left to others on the link.",
)
def prefetch(socket_path: Path, model: str, share: float) -> None:
    """Bring MODEL into memory before it is used.

    It comes after all who wait for memory, and only models without unfinished requests make room
    for it. Returns at once; 'gpupool status' shows where it is.
    """
    from gpupool.daemon import client

    try:
        client.prefetch(socket_path, model, share)
    except GpupoolError as error:
        raise click.ClickException(str(error)) from None


@main.command()
@click.argument("config", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option("--host", help="Address to listen on.  [default: the file's, else 127.0.0.1]")
@click.option(
    "--port", type=click.IntRange(0, 65535), help="Port; 0 picks one.  [default: the file's, 8000]"
)
def serve(config: Path, host: str | None, port: int | None) -> None:
    """Serve the models of CONFIG (a pool.yaml) on one OpenAI-compatible address.

    Starts the pool daemon and one stock vLLM server per model, one after the other. Ctrl-C ends
    everything. A minimal file:

    \b
      pool: {device: cuda, budget: 70GiB}
      models:
        - {name: small, model: /models/small, kv_cache: 4GiB}
        - {name: large, model: /models/large, kv_cache: 8GiB}
    """
    try:
        from gpupool.serve.app import run
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is missing: install gpupool with its serve extra, gpupool[serve]"
        ) from None
    sys.exit(run(config, host=host, port=port))


@main.command()
@click.option(
    "--device", required=True, help="cuda, cuda:<ordinal>, or host: ordinary memory, for tests."
)
@click.option(
    "--limit-mib",
    default=256,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="Leave out what moves more at once; twice as much memory is needed on each side.",
)
@click.option("--runs", default=5, show_default=True, type=click.IntRange(1), metavar="N")
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write the table here and not where engines look for it.",
)
@click.option("--json", "as_json", is_flag=True, help="Print every figure, for machines.")
def tune(device: str, limit_mib: int, runs: int, out: Path | None, as_json: bool) -> None:
    """Measure the quickest way to move KV blocks on this device.

    One driver call for each piece, one for many, or gpupool's kernels: which is best depends on the
    size of a piece and on how many go at once. Engines started afterwards go by what is found. Run
    it once on a new machine, and again after a new driver, while nothing else uses the device.
    """
    try:
        from gpupool.kv.tuning import describe, measure
    except ModuleNotFoundError as error:
        raise click.ClickException(
            f"{error.name} is missing: install gpupool with its kv extra, gpupool[kv]"
        ) from None
    try:
        with click.progressbar(length=1, label="measuring", file=sys.stderr) as bar:

            def progress(done: int, of: int) -> None:
                bar.length = of
                bar.update(done - bar.pos)

            table = measure(device, limit_bytes=limit_mib << 20, runs=runs, progress=progress)
    except (GpupoolError, RuntimeError, OSError) as error:
        raise click.ClickException(str(error)) from None
    try:
        path = table.save(out)
    except OSError as error:
        raise click.ClickException(f"the table cannot be written: {error}") from None
    if as_json:
        click.echo(msgspec.json.encode({"device": table.device, "figures": table.figures}))
    else:
        click.echo(describe(table))
    click.echo(f"written to {path}", err=True)


main.add_command(images)
main.add_command(simulate_command)
main.add_command(plan_command)


def _machine_memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
