"""``python -m gpupool.vllm.hooks``: whether a vLLM has all that gpupool rests on."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import click

from gpupool.vllm.hooks.finding import LOST, MET, Finding, is_broken, look
from gpupool.vllm.hooks.sources import Sources


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--tree",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The folder that has the package vllm in it.  [default: that of the installed vLLM]",
)
def main(tree: Path | None) -> None:
    """Say which places in vLLM that gpupool rests on are there.

    The sources are read and not run, so that an unpacked wheel of another version will do. Exits
    with 1 where gpupool's worker cannot be expected to run, with 2 where there is no vLLM.
    """
    if tree is None:
        spec = find_spec("vllm")
        if spec is None or not spec.submodule_search_locations:
            print("vLLM is not installed: name its sources with --tree", file=sys.stderr)
            sys.exit(2)
        tree = Path(spec.submodule_search_locations[0]).parent
    if not (tree / "vllm").is_dir():
        print(f"there is no package vllm in {tree}", file=sys.stderr)
        sys.exit(2)
    findings = look(Sources(tree))
    print(f"vLLM in {tree}:")
    for finding in findings:
        print("\n".join(_lines(finding)))
    sys.exit(int(is_broken(findings)))


def _lines(finding: Finding) -> list[str]:
    form = f" ({finding.form})" if finding.form else ""
    if finding.status == MET:
        return [f"  {finding.what}: there{form}"]
    lost = f"; {finding.without}" if finding.status == LOST else ""
    return [
        f"  {finding.what}: {finding.status}{lost}",
        *(f"    {missing}" for missing in finding.missing),
    ]


main()
