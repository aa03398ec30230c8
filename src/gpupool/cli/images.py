"""``gpupool images``: what ``--load-format gpupool`` keeps, whether it is sound, how it goes."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from gpupool.errors import GpupoolError

_FOLDER = click.option(
    "--folder",
    type=click.Path(path_type=Path, file_okay=False),
    help="The folder of images.  [default: where engines keep them unless told otherwise]",
)
_FILES = click.argument("files", nargs=-1, metavar="[FILE]...")


@click.group()
def images() -> None:
    """Look after the images of weights that engines with --load-format gpupool start from."""


@images.command("list")
@_FOLDER
@click.option("--json", "as_json", is_flag=True, help="Print everything, for machines.")
def list_images(folder: Path | None, as_json: bool) -> None:
    """List them, the one used last first. Reads no weights."""
    from gpupool.images.cache import ImageCache
    from gpupool.images.report import describe, images_in

    try:
        found = images_in(ImageCache(_folder(folder)))
    except (GpupoolError, OSError) as error:
        raise click.ClickException(str(error)) from None
    click.echo(msgspec.json.encode(found) if as_json else describe(found))


@images.command()
@_FOLDER
@_FILES
def verify(folder: Path | None, files: tuple[str, ...]) -> None:
    """Read every byte of FILES, or of all, against its digest.

    Says what is wrong with each that is damaged, and fails if one is. They stay where they are: an
    engine that meets one makes it anew.
    """
    from gpupool.images.cache import verify as check

    wrong = 0
    for path in _chosen(_folder(folder), files):
        problem = check(path)
        wrong += problem is not None
        click.echo(problem or f"{path}: every byte is what was written")
    if wrong:
        raise click.ClickException(f"{wrong} of the images are damaged")


@images.command()
@_FOLDER
@_FILES
@click.option("--all", "everything", is_flag=True, help="All that are there.")
def remove(folder: Path | None, files: tuple[str, ...], everything: bool) -> None:
    """Remove FILES, by their names in the folder. Engines that run do not need them any more."""
    from gpupool.images.cache import ImageCache

    if bool(files) == everything:
        raise click.UsageError("name the files to remove, or give --all")
    cache = ImageCache(_folder(folder))
    for path in _chosen(cache.folder, files):
        try:
            cache.remove(path)
        except OSError as error:
            raise click.ClickException(f"{path} stays: {error.strerror or error}") from None
        click.echo(f"removed {path}")


def _folder(given: Path | None) -> Path:
    from gpupool.images.cache import default_folder

    return default_folder() if given is None else given


def _chosen(folder: Path, names: tuple[str, ...]) -> list[Path]:
    """By their names in the folder, and nothing that is elsewhere; without names, all."""
    from gpupool.images.cache import ImageCache

    paths = {entry.path.name: entry.path for entry in ImageCache(folder).entries()}
    for name in names:
        if name not in paths:
            raise click.ClickException(f"{folder} has no image {name!r}")
    return [paths[name] for name in names] if names else list(paths.values())
