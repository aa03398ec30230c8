"""The demo's table and verdict."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table

from demo.figures import Figures

_COLUMNS = (
    "",
    "chats",
    "tokens",
    "tokens\nthat\ndiffer",
    "swap-\nins",
    "swap-in\nmedian\nms",
    "swap-in\np99\nms",
    "bytes\nMB",
    "GB/s",
    "GB/s\nof a\nmemcpy",
    "cold\nstart\ns",
)


def print_report(console: Console, found: Figures, turn_ms: int, seconds: float) -> None:
    """Print the table and what follows from it."""
    table = Table(box=box.SIMPLE_HEAD, padding=0, pad_edge=False)
    for number, title in enumerate(_COLUMNS):
        table.add_column(title, justify="right" if number else "left", no_wrap=True)
    for model in found.models:
        table.add_row(
            model.name,
            str(model.requests),
            str(model.tokens),
            str(model.differing_tokens),
            str(model.swaps),
            f"{model.swap_in_ms_median:.1f}",
            f"{model.swap_in_ms_p99:.1f}",
            f"{model.swap_in_bytes / 1e6:.0f}",
            f"{model.swap_in_gbps:.1f}",
            f"{model.memcpy_gbps:.1f}",
            f"{model.cold_start_s:.1f}",
        )
    console.print(table)
    tokens = sum(model.tokens for model in found.models)
    answers = sum(model.requests for model in found.models)
    console.print(
        f"The pool holds {found.budget_bytes / 1e6:.0f} MB: any one of the models, no two. A turn "
        f"lasts {turn_ms} ms, shorter than the default of 200 ms, so that many swaps fall inside "
        f"answers. A swap-in is {found.cold_start_over_swap_in:.0f} times faster than the cold "
        "start of the same engine, or more."
    )
    if found.failures():
        return
    console.print(
        f"{answers} answers, {tokens} tokens, greedy and sampled, {found.swaps_inside_answers} "
        f"swap-ins inside them: every token is the one that the model gives when it runs alone. "
        f"{seconds:.0f} s in all.",
        style="green",
    )
