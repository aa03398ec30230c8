"""Engines of vLLM in a pool that holds one, beside stock vLLM, in one run.

    python benchmarks/bench_engine.py --device host --parameters 3e7 --json -

The model is made up: a Llama of about --parameters random weights, asked with token ids. Two pooled
engines of it, a and b, and a stock one are there at the same time, each in a process of its own;
every round takes each measure once, in turn, and figures are medians. A first start of each kind
and a first round count for nothing: they fill vLLM's compile cache and the page cache for all.

Keys: cold_start_s (a fresh process until its first token: stock; pooled, from the checkpoint;
pooled_from_image, with --load-format gpupool, from a file of images), swap_in (of weights and
buffers, b for a: total_ms; map_ms; copy_ms, the copies alone and what verifies them; copied_bytes;
copy_gbps; ratio_to_plain_copy, that rate over the best of plain_copy_gbps), swap_out_clean (of a,
whose answers are done: total_ms, copied_bytes), first_token_ms (from asking until the first token
of a prompt of --prompt-tokens: stock; resident, the pooled engine that is in; swapped, with the
swap before it; prefetched, after Model.prefetch, which is prefetch_ms and is not in it),
decode_step (a step of --batch-size answers: stock_ms; pooled_ms while resident; ratio, the median
over blocks of --block-steps steps that alternate between the two engines; ratio_quartiles, the
first and third), plain_copy_gbps (of as
many bytes as the weights have, at most 4 GiB), sleep_mode (stock vLLM's own, level 1, of the same
model: sleep_ms, wake_up_ms, first_token_ms after waking, wake_up_over_swap_in),
cold_start_over_swap_in (stock), device_memory_mib (of a GPU, by kind of start: how much less of it
is free once an engine has its first token than before its start, without what torch only caches; of
a pooled engine that is what it has outside the pool, whose pages are there all the time),
of_torch_mib (of that, what torch's own allocator has), and left_out (what is not there, and why).
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:1] = [str(ROOT), str(ROOT / "benchmarks")]  # the latter for gpu_probe

import click  # noqa: E402

from benchmarks.engine_process import EngineError  # noqa: E402
from benchmarks.engine_rounds import BLOCKS, Bench  # noqa: E402
from benchmarks.engine_setup import NO_TURNS, VERSIONS, engine_options, set_up  # noqa: E402
from benchmarks.figures_file import keep  # noqa: E402
from benchmarks.pool_process import daemon  # noqa: E402
from gpupool.errors import GpupoolError  # noqa: E402

CONTEXT_TOKENS = 1024
#: As little room as there can be for what stays warm: an engine that comes from an image may be
#: laid out otherwise, by a page or two.
PAGES_BEYOND = 2


def measure(given: dict[str, Any], folder: Path) -> Iterator[dict[str, Any]]:
    """All of it, as far as it is after each round.

    Raises UsageError, EngineError, GpupoolError, RuntimeError, OSError.
    """
    answer_tokens = (BLOCKS + 1) * given["block_steps"] + 16
    if given["prompt_tokens"] + answer_tokens > CONTEXT_TOKENS:
        raise click.UsageError(
            f"a prompt and {(BLOCKS + 1)} blocks of steps are more than {CONTEXT_TOKENS} tokens: "
            "give a smaller --prompt-tokens or --block-steps"
        )
    setup = set_up(given, batch_size=given["batch_size"], context_tokens=CONTEXT_TOKENS)
    bench = Bench(setup, folder, given)
    device, page_bytes = given["device"], setup.page_bytes
    budget_bytes = setup.budget_bytes
    if given["starts"] > 0:
        with daemon(device, budget_bytes, page_bytes, *NO_TURNS) as pool:
            bench.first_starts(pool.socket_path)
        budget_bytes = bench.footprint_bytes + PAGES_BEYOND * page_bytes
    with (
        daemon(device, budget_bytes, page_bytes, *NO_TURNS) as pool,
        ExitStack() as stack,
    ):
        engines = bench.starts(pool.socket_path, stack)
        for runs in bench.rounds(engines):
            yield figures(bench) | {"budget_bytes": budget_bytes, "runs": runs}


def figures(bench: Bench) -> dict[str, Any]:
    """Medians, under the keys that --help explains."""
    middle = {what: statistics.median(taken) for what, taken in bench.taken.items()}

    def ms(what: str) -> float:
        return 1e3 * middle[what]

    plain = {
        name.removeprefix("plain "): bench.plain_bytes / took_s / 1e9
        for name, took_s in middle.items()
        if name.startswith("plain ")
    }
    found: dict[str, Any] = bench.setup.facts()
    found |= {key: bench.facts[key] for key in VERSIONS}
    found |= {key: bench.given[key] for key in ("starts", "prompt_tokens")}
    found["footprint_bytes"] = bench.footprint_bytes
    if bench.given["starts"] > 0:
        cold = {name: took_s for name, took_s in middle.items() if name.startswith("start ")}
        cold.pop("start sleeper", None)
        found["cold_start_s"] = {name.removeprefix("start "): s for name, s in cold.items()}
        found["cold_start_over_swap_in"] = middle["start stock"] / middle["in total_s"]
    found["swap_in"] = {
        "total_ms": ms("in total_s"),
        "map_ms": ms("in map_s"),
        "copy_ms": ms("in copy_s"),
        "copied_bytes": bench.copied_bytes,
        "copy_gbps": middle["rate"] / 1e9,
        "ratio_to_plain_copy": middle["rate"] / 1e9 / max(plain.values()),
    }
    found["swap_out_clean"] = {"total_ms": ms("out"), "copied_bytes": bench.clean_bytes}
    found["first_token_ms"] = {
        kind: ms(f"first {kind}") for kind in ("stock", "resident", "swapped", "prefetched")
    }
    found["prefetch_ms"] = ms("prefetch")
    found["decode_step"] = {
        "batch_size": bench.given["batch_size"],
        "stock_ms": ms("step stock"),
        "pooled_ms": ms("step pooled"),
        "ratio": middle["step ratio"],
        "ratio_quartiles": statistics.quantiles(bench.taken["step ratio"], n=4)[::2],
    }
    found["plain_copy_gbps"] = plain
    if "sleep" in middle:
        found["sleep_mode"] = {
            "sleep_ms": ms("sleep"),
            "wake_up_ms": ms("wake_up"),
            "first_token_ms": ms("first woken"),
            "wake_up_over_swap_in": middle["wake_up"] / middle["in total_s"],
        }
    found |= bench.memory.figures()
    found["left_out"] = bench.left_out
    return found


def table(found: dict[str, Any]) -> str:
    """The same for people."""
    swap, first, step = found["swap_in"], found["first_token_ms"], found["decode_step"]
    starts = {
        "stock": "cold start, stock",
        "pooled": "  pooled",
        "pooled_from_image": "  pooled, from an image",
    }
    cold = found.get("cold_start_s", {})
    rows = [(what, f"{cold[kind]:.1f} s") for kind, what in starts.items() if kind in cold]
    rows += [
        ("swap-in", f"{swap['total_ms']:.1f} ms, {swap['copied_bytes'] / 1e6:.0f} MB"),
        ("  its copies", f"{swap['copy_ms']:.1f} ms, {swap['copy_gbps']:.1f} GB/s"),
        ("  beside a plain copy", f"{swap['ratio_to_plain_copy']:.2f} of its rate"),
        ("swap-out, nothing written", f"{found['swap_out_clean']['total_ms']:.1f} ms"),
        ("first token, stock", f"{first['stock']:.1f} ms"),
        ("  resident", f"{first['resident']:.1f} ms"),
        ("  with the swap", f"{first['swapped']:.1f} ms"),
        ("  prefetched", f"{first['prefetched']:.1f} ms"),
        ("decode step, stock", f"{step['stock_ms']:.3f} ms of {step['batch_size']}"),
        ("  pooled, resident", f"{step['pooled_ms']:.3f} ms, {step['ratio']:.3f} of stock"),
    ]
    if "sleep_mode" in found:
        sleep = found["sleep_mode"]
        rows += [
            ("vLLM's sleep, level 1", f"{sleep['sleep_ms']:.1f} ms"),
            ("  wake-up", f"{sleep['wake_up_ms']:.1f} ms"),
        ]
    for kind, mib in found.get("device_memory_mib", {}).items():
        of_torch = f"{found['of_torch_mib'][kind]:.0f} of torch"
        rows.append((f"memory, {kind.replace('_', ' ')}", f"{mib:.0f} MiB, {of_torch}"))
    name = f"{found['parameters'] / 1e9:.2f} B parameters on {found['device_name']}"
    lines = [f"{name}, vLLM {found['vllm']}, {found['steps']}"]
    lines += [f"{what:<28} {figure}" for what, figure in rows]
    lines += [f"left out: {key}: {why}" for key, why in found["left_out"].items()]
    return "\n".join(lines)


@click.command(help=__doc__, context_settings={"max_content_width": 100})
@engine_options
@click.option("--runs", default=11, show_default=True, type=click.IntRange(1))
@click.option(
    "--starts",
    default=3,
    show_default=True,
    type=click.IntRange(0),
    help="Cold starts of each kind; 0 leaves them out, and is done sooner.",
)
@click.option("--prompt-tokens", default=128, show_default=True, type=click.IntRange(1))
@click.option("--batch-size", default=8, show_default=True, type=click.IntRange(1, 32))
@click.option("--block-steps", default=16, show_default=True, type=click.IntRange(1))
def main(**given: Any) -> None:
    """Run and report."""
    with tempfile.TemporaryDirectory(prefix="gpupool-bench-") as passing:
        folder = given["folder"] or Path(passing)
        folder.mkdir(parents=True, exist_ok=True)
        found, path = {}, given["json_path"]
        try:
            for found in measure(given, folder):
                keep(path, found, complete=False)
        except (EngineError, GpupoolError, RuntimeError, OSError) as error:
            raise click.ClickException(str(error)) from error
    found = keep(path, found, complete=True)
    print(table(found), file=sys.stderr if path == "-" else sys.stdout)
    if path == "-":
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
