"""``python -m gpupool.check``: all there is to check on a machine with a GPU."""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path

import click

from gpupool.check.checking import check, exit_status, readable
from gpupool.check.machine import described, find_gpu, is_stand_in
from gpupool.check.parts import BY_NAME_ALONE, DEFAULT, PARTS, TOGETHER_S, Places, planned
from gpupool.check.running import run_part
from gpupool.errors import GpupoolError


def _names(
    _: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = tuple(value.split(","))
    for name in names:
        if name not in PARTS:
            raise click.BadParameter(
                f"there is no part {name!r}; take of {', '.join(PARTS)}.", param=parameter
            )
    if len(set(names)) != len(names):
        raise click.BadParameter("a part is named twice.", param=parameter)
    return names


_EPILOG = "\b\nParts and their limits:\n" + "\n".join(
    f"  {name:12} {limit_s:4.0f} s  {what}" for name, (what, limit_s) in PARTS.items()
)


@click.command(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=_EPILOG,
)
@click.option(
    "--parts",
    "names",
    callback=_names,
    metavar="NAMES",
    help=f"Which, with commas between.  [default: all but {', '.join(BY_NAME_ALONE)}]",
)
@click.option(
    "--tree",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    default=".",
    help="gpupool's source tree, which has the tests.  [default: where this is run]",
)
@click.option(
    "--build",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help="Where CMake built the C++ tests.  [default: build/cpp of the tree]",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False, resolve_path=True),
    help="A folder for report.json and the output of each part.  [default: a new one]",
)
@click.option(
    "--limit-s",
    type=click.FloatRange(min=1),
    help=f"For all parts together.  [default: {TOGETHER_S:.0f} without --parts, else none]",
)
@click.option(
    "--vllm-sources",
    type=click.Path(path_type=Path, exists=True, file_okay=False, resolve_path=True),
    help="The sources, or the tests alone, of the vLLM that is installed: for sleep_tests.",
)
@click.option("--commit", help="What to call the sources, where the tree has no git.")
def main(
    names: tuple[str, ...] | None,
    tree: Path,
    build: Path | None,
    out: Path | None,
    limit_s: float | None,
    vllm_sources: Path | None,
    commit: str | None,
) -> None:
    """Check gpupool on a machine with a GPU, in at most eight minutes; nothing is downloaded.

    Builds nothing: gpupool is the one that is installed, and the C++ tests are taken where they
    were built. Each part passes, fails, or is skipped with a reason, and has a limit of time of its
    own. Exits with 0 if none failed, with 1 if one did, with 2 where there is no GPU, and with 3
    if none failed but one that --parts names was skipped, or nothing was run at all.
    """
    try:
        page_bytes = find_gpu("cuda")
    except (GpupoolError, RuntimeError) as error:
        print(f"there is no GPU to check: {error}", file=sys.stderr)
        sys.exit(2)
    if out is None:
        out = Path(tempfile.mkdtemp(prefix="gpupool-check-"))
    out.mkdir(parents=True, exist_ok=True)
    machine = described(tree, commit) | {"smallest_page_bytes": str(page_bytes)}
    places = Places(tree, build or tree / "build" / "cpp", out, commit, vllm_sources)
    parts = planned(DEFAULT if names is None else names, places)
    if limit_s is None:
        limit_s = TOGETHER_S if names is None else math.inf

    def say(line: str) -> None:
        print(line, flush=True)

    report = check(parts, not is_stand_in(), machine, tree, out, run_part, say, limit_s)
    print(readable(report, out))
    sys.exit(exit_status(report, by_name=names is not None))


main()
