"""The daemon's status as text for people."""

from __future__ import annotations

from gpupool.daemon.protocol import ModelStatus, Status, Why

_COLUMNS = ("MODEL", "STATE", "NEEDS", "WEIGHTS", "KV CACHE", "SWAP-INS", "PROCESS")
_LEFT = 2  # columns of words; the others are figures
_UNITS = (("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10))


def describe(status: Status) -> str:
    """Several lines: the pool, its models, and whom it turned away."""
    pages = (
        f"{status.pages_free} free, {status.pages_granted} granted, {status.pages_fenced} fenced"
    )
    lines = [
        f"gpupool {status.version} on {status.device}: {size(status.budget_bytes)} "
        f"in pages of {size(status.page_bytes)} ({pages})",
        f"host memory handed out: {size(status.host_bytes)}",
    ]
    if status.models:
        lines += _table([_COLUMNS, *(_row(model) for model in status.models)])
    else:
        lines.append("no models")
    for model in status.models:
        if model.parked_bytes:
            lines.append(f"{model.name} is parked: {size(model.parked_bytes)} of it is in a file")
    lines += [f"{model.name} stays: {model.stays}" for model in status.models if model.stays]
    for refusal in status.refusals:
        lines.append(f"refused {refusal.model} (process {refusal.pid}): {refusal.message}")
    return "\n".join(lines)


def describe_why(why: Why) -> str:
    """A line per decision."""
    if why.policy == "turns":
        return "turns are of one length: there is nothing to explain (gpupool daemon --policy)"
    lines = [f"{ago_s:9.2f} s ago  {text}" for ago_s, text in why.decisions]
    return "\n".join([f"policy: {why.policy}", *(lines or ["nothing was decided yet"])])


def size(size_bytes: int) -> str:
    """A number of bytes in the largest unit it reaches, to a tenth."""
    for unit, factor in _UNITS:
        if size_bytes >= factor:
            return f"{size_bytes / factor:.1f}".removesuffix(".0") + f" {unit}"
    return f"{size_bytes} bytes"


def _row(model: ModelStatus) -> tuple[str, ...]:
    return (
        model.name,
        model.state,
        size(model.footprint_bytes),
        size(model.weights_bytes),
        size(model.kv_cache_bytes),
        str(model.swap_ins),
        str(model.pid),
    )


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if column < _LEFT else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
