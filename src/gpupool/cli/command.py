"""The ``gpupool`` command."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import msgspec

from gpupool import __version__
from gpupool.cli.daemon import daemon, prefetch, status
from gpupool.cli.images import images
from gpupool.cli.plan import plan_command
from gpupool.cli.profile import profile_command
from gpupool.cli.replay import replay
from gpupool.cli.simulate import simulate_command
from gpupool.errors import GpupoolError


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


main.add_command(daemon)
main.add_command(status)
main.add_command(prefetch)
main.add_command(images)
main.add_command(replay)
main.add_command(simulate_command)
main.add_command(plan_command)
main.add_command(profile_command)
