"""What was measured, for people: tables of batches and switches, and how the fits stand to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from msgspec import Struct, structs

from gpupool.profile.measured import Measured
from gpupool.simulate.profiles import Verdict

_SPREAD_MAX = 0.2


def describe(found: Measured) -> str:
    """All of it."""
    one = found.checkpoint
    lines = [
        f"{one.name} on {found.gpu}: {one.weights_bytes / 1e9:.3f} GB of weights and buffers,"
        f" {one.kv_bytes_per_token} bytes of KV a token, a context of {one.context_tokens_max}",
        "",
        *_table(
            ["input", "batch", "prefill ms", "spread", "fit", "", "step ms", "spread", "fit", ""],
            [
                [
                    f"{batch.point.input_tokens}",
                    f"{batch.point.batch_size}",
                    f"{1e3 * batch.point.prefill_s:.2f}",
                    f"{batch.prefill_spread:.0%}",
                    *_verdict(batch.prefill),
                    f"{1e3 * batch.point.decode_step_s:.2f}",
                    f"{batch.step_spread:.0%}",
                    *_verdict(batch.step),
                ]
                for batch in found.batches
            ],
        ),
        "",
        *_fit(found),
        "",
        *_switches(found),
    ]
    return "\n".join(lines)


def figures(found: object) -> Any:
    """All of it for machines, every figure by its name."""
    if isinstance(found, Struct):
        named = structs.asdict(found)
    elif isinstance(found, tuple) and hasattr(found, "_asdict"):
        named = found._asdict()
    elif is_dataclass(found):
        named = {field.name: getattr(found, field.name) for field in fields(found)}
    elif isinstance(found, tuple):
        return [figures(one) for one in found]
    else:
        return found
    return {name: figures(one) for name, one in named.items()}


def _fit(found: Measured) -> list[str]:
    fit = found.fit
    a, b, c = fit.prefill_s
    fixed, context, request = fit.step_s
    lines = [
        f"prefill: {1e3 * a:.3f} ms + {1e6 * b:.3f} us a token + {1e9 * c:.4f} ns a token squared",
        f"step:    {1e3 * fixed:.3f} ms + {1e9 * context:.3f} ns a token of context"
        f" + {1e6 * request:.3f} us a request",
        f"relative errors of the fits: median {fit.error_median:.1%}, worst {fit.error_worst:.1%}"
        f" of those used; {fit.left_out} of {fit.points} batches left out of a fit",
    ]
    reasons: dict[str, int] = {}
    for one in found.left_out:
        reasons[one.why] = reasons.get(one.why, 0) + 1
    lines += [f"not measured: {count}, {why}" for why, count in reasons.items()]
    return lines


def _switches(found: Measured) -> list[str]:
    rows = [
        [
            f"{one.copied_bytes / 1e6:.1f}",
            f"{one.zeroed_bytes / 1e6:.1f}",
            f"{1e3 * one.out_s:.2f}",
            f"{1e3 * one.in_s:.2f}",
            f"{1e3 * one.map_s:.2f}",
            f"{1e3 * one.copy_s:.2f}",
            f"{one.spread:.0%}",
            f"{one.error:+.0%}",
        ]
        for one in found.switches
    ]
    lines = _table(["MB copied", "zeroed", "out ms", "in ms", "map", "copy", "spread", "fit"], rows)
    switch = found.checkpoint.switch
    assert switch is not None
    weights_bytes = found.checkpoint.weights_bytes
    rate = "any rate" if switch.s_per_byte == 0 else f"{1e-9 / switch.s_per_byte:.2f} GB/s"
    return [
        *lines,
        "",
        f"switch: {1e3 * switch.fixed_s:.2f} ms + bytes at {rate}:"
        f" {1e3 * (switch.fixed_s + weights_bytes * switch.s_per_byte):.2f} ms for all;"
        f" copies, with what is zeroed meanwhile: {1e-9 / switch.copy_s_per_byte:.2f} GB/s",
        *_unsteady(found),
    ]


def _unsteady(found: Measured) -> list[str]:
    spreads = [one.spread for one in found.switches]
    for batch in found.batches:
        spreads += [batch.prefill_spread, batch.step_spread]
    wide = sum(spread > _SPREAD_MAX for spread in spreads)
    if not wide:
        return []
    return [
        "",
        f"of {len(spreads)} medians {wide} are of times whose quartiles are more than"
        f" {_SPREAD_MAX:.0%} apart: unless they are very short, something else used the machine;"
        " measure again, with more --runs",
    ]


def _verdict(verdict: Verdict) -> list[str]:
    return ["" if verdict.error is None else f"{verdict.error:+.1%}", verdict.left_out]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [heads, *rows]
    widths = [max(len(row[column]) for row in cells) for column in range(len(heads))]
    return [
        "  ".join(text.rjust(width) for text, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
