"""``gpupool replay``: decide again what a daemon's policy decided."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import msgspec

from gpupool.live import POLICIES
from gpupool.schedule.recording import Decided, differing, from_line
from gpupool.schedule.timeline import trace_events

_SHOWN_MAX = 5
_NO_DECISION = ValueError, LookupError, TypeError, AttributeError


@click.command()
@click.argument("recording", type=click.Path(path_type=Path, dir_okay=False, exists=True))
@click.option(
    "--trace",
    "trace_path",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="PATH",
    help="Write turns and switches, and why each was, as a Chrome trace, for ui.perfetto.dev.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures, for machines.")
@click.pass_context
def replay(context: click.Context, recording: Path, trace_path: Path | None, as_json: bool) -> None:
    """Decide again what is in RECORDING, which 'gpupool daemon --record' wrote.

    The policies are functions of what was known: from the same state, at the same time, the same
    must come out. Ends with 1 if something does not, as after a change of the policy.
    """
    policy = ""
    decisions = switches = 0
    differ: list[str] = []
    for number, (line, decided) in enumerate(_read(recording), 1):
        if line not in POLICIES:
            raise click.ClickException(f"{recording}: there is no policy {line!r}")
        policy, decisions = line, number
        with _understood(recording, number):
            switches += sum(action[0] == "Switch" for action in decided.actions)
            for _, before, now in differing([decided], POLICIES[policy]):
                differ.append(f"decision {decisions}: {before.actions} is {now} now")
    if trace_path is not None:
        events = _traced(recording)
        try:
            trace_path.write_bytes(msgspec.json.encode({"traceEvents": events}))
        except OSError as error:
            raise click.ClickException(f"{trace_path} cannot be written: {error}") from None
    if as_json:
        figures = {"policy": policy, "decisions": decisions, "switches": switches}
        click.echo(msgspec.json.encode({**figures, "differing": len(differ)}))
    else:
        click.echo(
            f"{policy or 'empty'}: {decisions} decisions, {switches} switches, "
            f"{len(differ)} decided otherwise now"
        )
        for text in differ[:_SHOWN_MAX]:
            click.echo(text)
    context.exit(int(bool(differ)))


def _read(path: Path) -> Iterator[tuple[str, Decided]]:
    with path.open(encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, 1):
            if not line.endswith("\n"):
                click.echo(f"{path}, line {number}: is cut off, and left out", err=True)
                return
            with _understood(path, number):
                found = from_line(line)
            yield found


def _traced(path: Path) -> list[dict[str, Any]]:
    number = 0

    def told() -> Iterator[Decided]:
        nonlocal number
        for number, (_, decided) in enumerate(_read(path), 1):  # noqa: B007 - used where it fails
            yield decided

    try:
        return list(trace_events(told()))
    except _NO_DECISION as error:
        raise _unreadable(path, number, error) from None


@contextmanager
def _understood(path: Path, number: int) -> Iterator[None]:
    """Lines that somebody changed, or that were cut, are no decisions."""
    try:
        yield
    except _NO_DECISION as error:
        raise _unreadable(path, number, error) from None


def _unreadable(path: Path, number: int, error: Exception) -> click.ClickException:
    return click.ClickException(f"{path}, line {number}: is no decision ({error!r})")
